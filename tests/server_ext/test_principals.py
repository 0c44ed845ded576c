"""Callers with names: tokens with roles, quotas, expiry and revocation, and what each caller sees and may change."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from samples.endpoints import EndpointProcess
from samples.http_client import BASE, GateFile, Http, error_of, events_of, in_background, one_node, until
from yggdrasill.errors import AccessDenied, DuplicateName, InvalidArgument, InvalidConfig, UnknownName
from yggdrasill.protocol.version import PROTOCOL_HEADER
from yggdrasill.server_ext.auth import Guard, check_role
from yggdrasill.server_ext.principals import (
    OWNER,
    ROLES,
    Principal,
    PrincipalFile,
    Principals,
    call_key,
    principal_of_key,
    private_key,
)
from yggdrasill.server_ext.route_table import ROUTES
from yggdrasill.values.payload import blake3_hex

OWNER_TOKEN = "the-token-of-the-owner"


def guard_of(folder: Path) -> Guard:
    return Guard(Principals(OWNER_TOKEN, folder))


def name_by(guard: Guard, token: str) -> str:
    return guard.authenticate(f"Bearer {token}").name


# -- the file -----------------------------------------------------------------------------------------------------


def test_a_token_is_a_principal_with_its_roles(tmp_path: Path) -> None:
    token = PrincipalFile(tmp_path).add("bob", ["run"], quota_bytes=1000, max_jobs=3)
    guard = guard_of(tmp_path)
    bob = guard.authenticate(f"Bearer {token}")
    assert (bob.name, set(bob.roles), bob.quota_bytes, bob.max_jobs) == ("bob", {"run"}, 1000, 3)
    owner = guard.authenticate(f"Bearer {OWNER_TOKEN}")
    assert owner.name == "owner"
    assert all(owner.may(role) for role in ROLES)


def test_the_file_of_principals_is_private_and_contains_no_token(tmp_path: Path) -> None:
    token = PrincipalFile(tmp_path).add("bob", ["run"])
    path = tmp_path / "principals.json"
    assert token not in path.read_text(encoding="utf-8")
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        PrincipalFile(tmp_path).read()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "roles, may",
    [
        (["read"], {"read"}),
        (["run"], {"read", "run"}),
        (["deploy"], {"read", "deploy"}),
        (["run", "deploy"], {"read", "run", "deploy"}),
        (["admin"], set(ROLES)),
    ],
)
def test_roles_include_read_and_admin_includes_all(roles: list[str], may: set[str]) -> None:
    assert {role for role in ROLES if Principal("bob", frozenset(roles)).may(role)} == may


def test_a_refusal_names_the_role_to_request() -> None:
    with pytest.raises(AccessDenied, match=r"needs the role 'deploy'; 'bob' has 'read', 'run'\. Ask the endpoint's owner") as caught:
        check_role(Principal("bob", frozenset(["read", "run"])), "deploy")
    assert caught.value.details == {"reason": "role", "needed": "deploy", "has": ["read", "run"]}


def test_unknown_expired_and_revoked_tokens_get_the_same_answer(tmp_path: Path) -> None:
    file = PrincipalFile(tmp_path)
    revoked, expired = file.add("bob", ["run"]), file.add("eve", ["run"], expires=time.time() + 0.2)
    guard = guard_of(tmp_path)
    assert (name_by(guard, revoked), name_by(guard, expired)) == ("bob", "eve")
    file.revoke("bob")
    time.sleep(0.3)
    found = set()
    for token in (revoked, expired, "never-a-token-of-anybody"):
        with pytest.raises(AccessDenied) as caught:
            name_by(guard, token)
        found.add((caught.value.message, str(caught.value.details)))
    assert len(found) == 1


def test_a_rotated_token_of_a_principal_replaces_the_old_one_and_ends_a_revocation(tmp_path: Path) -> None:
    file = PrincipalFile(tmp_path)
    guard, old = guard_of(tmp_path), file.add("bob", ["run"])
    bob = guard.authenticate(f"Bearer {old}")
    new = file.rotate("bob")
    assert name_by(guard, new) == "bob"
    assert not guard.principals.accepts(bob)
    with pytest.raises(AccessDenied):
        name_by(guard, old)
    file.revoke("bob")
    assert not guard.principals.is_valid("bob")
    assert name_by(guard, file.rotate("bob")) == "bob"


@pytest.mark.parametrize("name", ["", "owner", "Bob", "a/b", "a\x1fb", "-x", "x" * 65, "bób"])
def test_an_invalid_name_of_a_principal_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot name a principal"):
        PrincipalFile(tmp_path).add(name, ["run"])


def test_invalid_principals_are_refused(tmp_path: Path) -> None:
    file = PrincipalFile(tmp_path)
    file.add("bob", ["run"])
    with pytest.raises(DuplicateName, match="token rotate bob"):
        file.add("bob", ["run"])
    with pytest.raises(UnknownName, match=r"Unknown role 'write'\. Available: 'admin'"):
        file.add("eve", ["write"])
    with pytest.raises(InvalidArgument, match="at least one role"):
        file.add("eve", [])
    with pytest.raises(InvalidArgument, match="already be expired"):
        file.add("eve", ["run"], expires=time.time() - 1)
    with pytest.raises(UnknownName, match=r"Unknown principal 'eve'\. Available: 'bob'"):
        file.revoke("eve")
    assert list(file.read()) == ["bob"]


def test_two_processes_may_change_the_principals_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=PrincipalFile(tmp_path).add, args=(f"caller-{number}", ["run"])) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(PrincipalFile(tmp_path).read()) == 20


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "principals": {"bob": {"roles": "run"}}}', '{"version": 9}'])
def test_a_damaged_file_of_principals_stops_the_start_and_no_running_endpoint(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = PrincipalFile(tmp_path).add("bob", ["run"])
    guard = guard_of(tmp_path)
    (tmp_path / "principals.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidConfig, match=r"principals\.json"):
        guard_of(tmp_path)
    assert name_by(guard, token) == "bob"
    assert "cannot be read; those read before stay valid" in caplog.text


def test_deleting_the_file_revokes_all_but_the_owner(tmp_path: Path) -> None:
    token = PrincipalFile(tmp_path).add("bob", ["run"])
    guard = guard_of(tmp_path)
    (tmp_path / "principals.json").unlink()
    with pytest.raises(AccessDenied):
        name_by(guard, token)
    assert name_by(guard, OWNER_TOKEN) == "owner"


@pytest.mark.parametrize("key", ["k", "a/b", "bob/k", "owner", "with \x1f inside", "\x1f", "Not A Name\x1fx"])
def test_keys_of_the_owner_stay_as_they_are_and_others_are_kept_apart(key: str) -> None:
    assert private_key("owner", key) == key
    assert (principal_of_key(key), call_key(key)) == ("owner", key)
    stored = private_key("bob", key)
    assert stored not in (key, private_key("eve", key))
    assert (principal_of_key(stored), call_key(stored)) == ("bob", key)


def test_a_key_of_the_owner_cannot_be_that_of_another_principal() -> None:
    with pytest.raises(InvalidArgument, match="U\\+001F"):
        private_key("owner", private_key("bob", "k"))


# -- over HTTP ----------------------------------------------------------------------------------------------------


class Caller(Http):
    """A caller of an endpoint with a token of its own."""

    def __init__(self, process: EndpointProcess, token: str) -> None:
        super().__init__(process)
        self.session.headers["Authorization"] = f"Bearer {token}"


class Callers:
    """An endpoint and callers with several roles."""

    def __init__(self, process: EndpointProcess) -> None:
        self.process, self.file = process, PrincipalFile(process.data_dir)
        self.owner = Http(process)

    def add(self, *roles: str, **bounds: Any) -> tuple[str, Caller]:
        """Add a principal and return its name and its client."""
        name = f"caller-{uuid.uuid4().hex[:8]}"
        return name, Caller(self.process, self.file.add(name, roles, **bounds))


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    process = EndpointProcess("callers", tmp_path_factory.mktemp("callers"), plugins=["samples.served_blocks"], slots=3).start()
    found = Callers(process)
    found.owner.deploy("double", one_node("double"))
    found.owner.deploy("gate", one_node("gate", ("path", "x")))
    yield found
    process.stop()


@pytest.mark.parametrize("has", [{"read"}, {"run"}, {"deploy"}])
def test_every_route_needs_the_role_of_its_table(callers: Callers, has: set[str]) -> None:
    _, caller = callers.add(*has)
    for route in ROUTES:
        path = BASE + route.path.format(graph_id="no-graph", job_id="x", key="x", hash="0" * 64, upload_id="0" * 32)
        answer = requests.request(
            route.method, callers.process.url + path, headers=dict(caller.session.headers), timeout=10, stream=True, data=b"{}"
        )
        may = route.role in {"read", *has}
        assert (answer.status_code != 403) == may, (route.method, route.path, answer.status_code)
        if not may:
            assert answer.json()["error"]["details"]["needed"] == route.role
        answer.close()


def test_a_caller_sees_and_cancels_only_its_jobs(callers: Callers, gate_file: GateFile) -> None:
    (name, bob), (_, eve), (_, admin) = callers.add("run"), callers.add("run"), callers.add("admin")
    job = bob.start("gate", gate_file.inputs(x=torch.ones(1)))
    gate_file.wait_begun()
    assert bob.get(f"/jobs/{job}").json()["principal"] == name
    assert job in [row["job_id"] for row in bob.get("/jobs").json()["jobs"]]
    assert eve.get("/jobs").json()["jobs"] == []
    for path in (f"/jobs/{job}", f"/jobs/{job}/output", f"/jobs/{job}/events"):
        assert error_of(eve.get(path)) == (404, "UnknownJob")
    unknown = eve.get("/jobs/never").json()["error"]["message"].replace("never", job, 1)
    assert eve.get(f"/jobs/{job}").json()["error"]["message"] == unknown
    assert error_of(eve.post(f"/jobs/{job}/cancel")) == (404, "UnknownJob")
    assert bob.status(job) == "IN_PROGRESS"
    assert job in [row["job_id"] for row in admin.get("/jobs").json()["jobs"]]
    assert admin.post(f"/jobs/{job}/cancel").status_code == 200
    gate_file.open()
    assert bob.result(job)["status"] == "CANCELLED"


def test_equal_keys_of_two_callers_do_not_meet(callers: Callers, gate_file: GateFile) -> None:
    (_, bob), (_, eve) = callers.add("run"), callers.add("run")
    key = uuid.uuid4().hex
    assert bob.run("double", {"x": torch.full((1,), 2.0)}, key=key)["y"].item() == 4.0
    assert eve.run("double", {"x": torch.full((1,), 5.0)}, key=key)["y"].item() == 10.0
    assert callers.owner.run("double", {"x": torch.full((1,), 7.0)}, key=key)["y"].item() == 14.0
    assert [row["key"] for row in bob.get("/jobs").json()["jobs"]] == [key]
    conflict = bob.submit("double", {"x": torch.full((1,), 3.0)}, key=key)
    assert error_of(conflict) == (409, "JobConflict")
    assert repr(key) in conflict.json()["error"]["message"]
    running = uuid.uuid4().hex
    job = bob.start("gate", gate_file.inputs(x=torch.ones(1)), key=running)
    gate_file.wait_begun()
    assert eve.post(f"/jobs/keys/{running}/cancel").json()["job_id"] != job
    assert bob.status(job) == "IN_PROGRESS"
    gate_file.open()
    assert bob.result(job)["status"] == "COMPLETED"


def test_the_stream_of_all_events_contains_only_those_of_the_caller(callers: Callers) -> None:
    (_, bob), (_, eve) = callers.add("run"), callers.add("run")
    stream = bob.get("/events", stream=True)
    eve.run("double", {"x": torch.ones(1)})
    bob.run("double", {"x": torch.ones(1)})
    job = bob.get("/jobs").json()["jobs"][0]["job_id"]
    found = events_of(stream, stop_after=2)
    assert {event["data"]["job_id"] for event in found} == {job}


def test_graphs_are_replaced_and_removed_by_their_deployer_or_an_admin(callers: Callers) -> None:
    (_, bob), (_, eve), (_, admin) = callers.add("deploy"), callers.add("deploy"), callers.add("admin")
    name = uuid.uuid4().hex
    bob.deploy(name, one_node("double"))
    other = {"kind": "graph", "config": one_node("noise", (), ("noise",))}
    same = {"kind": "graph", "config": one_node("double"), "idle_after": 5.0}
    assert eve.put(f"/graphs/{name}", json=same).json()["created"] is False
    assert eve.get(f"/graphs/{name}").json()["idle_after"] is None
    assert error_of(eve.put(f"/graphs/{name}", json=other)) == (403, "AccessDenied")
    assert error_of(eve.session.delete(f"{eve.url}/graphs/{name}")) == (403, "AccessDenied")
    assert bob.put(f"/graphs/{name}", json=other).status_code == 201
    assert admin.put(f"/graphs/{name}", json=same).status_code == 201
    assert error_of(bob.session.delete(f"{bob.url}/graphs/{name}")) == (403, "AccessDenied")
    assert admin.session.delete(f"{admin.url}/graphs/{name}").status_code == 204


def test_a_job_that_deploys_belongs_to_its_principal_and_needs_its_rights(callers: Callers) -> None:
    (name, bob), (_, eve) = callers.add("deploy"), callers.add("deploy")
    for caller in (bob, eve):
        caller.session.headers[PROTOCOL_HEADER] = "2"
    graph = uuid.uuid4().hex
    mine = {"kind": "graph", "config": one_node("double"), "key": graph, "wait": 30}
    other = {"kind": "graph", "config": one_node("noise", (), ("noise",)), "wait": 30}
    row = bob.put(f"/graphs/{graph}", json=mine).json()
    assert (row["status"], row["key"], row["principal"], row["output"]["created"]) == ("COMPLETED", graph, name, True)
    assert bob.get(f"/jobs/keys/{graph}").json()["job_id"] == row["job_id"]
    for answer in (
        eve.get(f"/jobs/keys/{graph}"),
        eve.get(f"/jobs/{row['job_id']}"),
        callers.add("run")[1].post(f"/jobs/{row['job_id']}/inputs"),
    ):
        assert error_of(answer) == (404, "UnknownJob")
    assert error_of(eve.put(f"/graphs/{graph}", json=other)) == (403, "AccessDenied")
    assert eve.put(f"/graphs/{graph}", json={**mine, "key": None, "idle_after": 5.0}).json()["created"] is False
    assert bob.get(f"/graphs/{graph}").json()["idle_after"] is None
    # without a key, the endpoint chooses one
    again = bob.put(f"/graphs/{graph}", json=other).json()
    assert again["key"].startswith("deploy:")
    assert again["output"]["created"] is True


def test_the_deployer_of_a_graph_is_known_after_a_restart(tmp_path: Path) -> None:
    process = EndpointProcess("restarted", tmp_path, plugins=["samples.served_blocks"]).start()
    try:
        callers = Callers(process)
        (_, bob), (_, eve) = callers.add("deploy"), callers.add("deploy")
        bob.deploy("one", one_node("double"))
        process.stop()
        process.start()
        assert error_of(eve.session.delete(f"{eve.url}/graphs/one")) == (403, "AccessDenied")
        assert bob.session.delete(f"{bob.url}/graphs/one").status_code == 204
    finally:
        process.stop()


def test_unfinished_jobs_of_a_principal_are_bounded(callers: Callers, gate_file: GateFile) -> None:
    _, bob = callers.add("run", max_jobs=1)
    job = bob.start("gate", gate_file.inputs(x=torch.ones(1)))
    refused = bob.submit("double", {"x": torch.ones(1)})
    assert error_of(refused) == (429, "QueueFull")
    assert refused.headers["Retry-After"]
    assert callers.owner.run("double", {"x": torch.ones(1)})["y"].item() == 2.0
    gate_file.open()
    assert bob.result(job)["status"] == "COMPLETED"
    assert bob.run("double", {"x": torch.ones(1)})["y"].item() == 2.0


def put(caller: Http, data: bytes) -> requests.Response:
    return caller.put(f"/artifacts/{blake3_hex(memoryview(data))}", data=data)


def test_the_artifacts_that_a_principal_wrote_count_against_its_quota(callers: Callers) -> None:
    _, bob = callers.add("run", quota_bytes=100_000)
    _, eve = callers.add("run", quota_bytes=100_000)
    first = os.urandom(60_000)
    assert put(bob, first).status_code == 201
    assert put(bob, first).status_code == 200
    refused = put(bob, os.urandom(60_000))
    assert error_of(refused) == (507, "StorageFailed")
    assert refused.json()["error"]["details"] == {"reason": "quota", "used": 60_000, "quota": 100_000}
    assert put(eve, os.urandom(60_000)).status_code == 201
    assert put(callers.owner, os.urandom(60_000)).status_code == 201
    chunked = bob.put(f"/artifacts/{'0' * 64}", data=iter([b"abc"]))
    assert error_of(chunked) == (400, "InvalidArgument")


def put_piece(caller: Http, name: str, upload_id: str, data: bytes, start: int, total: int) -> requests.Response:
    span = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/{total}"}
    return caller.put(f"/artifacts/{name}/uploads/{upload_id}", data=data, headers=span)


def test_an_upload_in_pieces_counts_once_from_its_first_piece_on(callers: Callers) -> None:
    _, bob = callers.add("run", quota_bytes=100_000)
    data, upload_id = os.urandom(60_000), uuid.uuid4().hex
    name = blake3_hex(memoryview(data))
    assert error_of(put_piece(bob, name, upload_id, data[1:9], 1, 60_000)) == (409, "UploadConflict")
    assert put_piece(bob, name, upload_id, data[:40_000], 0, 60_000).json() == {"offset": 40_000, "stored": False}
    refused = put(bob, os.urandom(50_000))
    assert error_of(refused) == (507, "StorageFailed")
    assert refused.json()["error"]["details"]["used"] == 60_000
    assert put_piece(bob, name, upload_id, data[40_000:], 40_000, 60_000).status_code == 201
    assert put(bob, os.urandom(50_000)).json()["error"]["details"]["used"] == 60_000
    assert put(bob, os.urandom(30_000)).status_code == 201


def test_the_room_of_an_upload_that_is_dropped_or_damaged_is_free_again(callers: Callers) -> None:
    _, bob = callers.add("run", quota_bytes=100_000)
    data, upload_id = os.urandom(90_000), uuid.uuid4().hex
    name = blake3_hex(memoryview(data))
    assert put_piece(bob, name, upload_id, data[:10], 0, 90_000).status_code == 200
    assert error_of(put_piece(bob, name, uuid.uuid4().hex, data[:10], 0, 90_000)) == (507, "StorageFailed")
    assert bob.session.delete(f"{bob.url}/artifacts/{name}/uploads/{upload_id}").status_code == 204
    assert error_of(put_piece(bob, "0" * 64, upload_id, data, 0, 90_000)) == (400, "CorruptData")
    assert put_piece(bob, name, upload_id, data, 0, 90_000).status_code == 201


def test_an_upload_in_pieces_belongs_to_the_principal_that_began_it(callers: Callers) -> None:
    (_, bob), (_, eve) = callers.add("run"), callers.add("run")
    data, upload_id = os.urandom(100), uuid.uuid4().hex
    path = f"/artifacts/{blake3_hex(memoryview(data))}/uploads/{upload_id}"
    assert put_piece(bob, blake3_hex(memoryview(data)), upload_id, data[:40], 0, 100).status_code == 200
    assert eve.get(path).json() == {"offset": 0, "nbytes": None, "stored": False}
    assert eve.session.delete(eve.url + path).status_code == 204
    assert bob.get(path).json() == {"offset": 40, "nbytes": 100, "stored": False}


def test_artifacts_count_after_a_restart_and_until_they_are_evicted(tmp_path: Path) -> None:
    process = EndpointProcess("quota", tmp_path, plugins=["samples.served_blocks"], artifact_quota=1 << 20).start()
    try:
        callers = Callers(process)
        _, bob = callers.add("run", quota_bytes=600_000)
        assert put(bob, os.urandom(500_000)).status_code == 201
        process.stop()
        process.start()
        assert error_of(put(bob, os.urandom(500_000))) == (507, "StorageFailed")
        for _ in range(3):
            assert put(callers.owner, os.urandom(400_000)).status_code == 201
        assert put(bob, os.urandom(500_000)).status_code == 201
    finally:
        process.stop()


def test_a_revoked_token_ends_its_jobs_and_streams_in_mid_call(callers: Callers, gate_file: GateFile) -> None:
    name, bob = callers.add("run")
    stream = bob.get("/events", stream=True)
    job = bob.start("gate", gate_file.inputs(x=torch.ones(1)), detached=True)
    gate_file.wait_begun()
    reading = in_background(events_of, stream)
    callers.file.revoke(name)
    assert error_of(bob.get(f"/jobs/{job}")) == (401, "AccessDenied")
    reading.result(10)
    gate_file.open()
    until(lambda: callers.owner.status(job) == "CANCELLED")
    assert "was revoked or has expired" in callers.owner.get(f"/jobs/{job}").json()["error"]["message"]


def test_jobs_of_an_expired_token_are_cancelled(callers: Callers, gate_file: GateFile) -> None:
    _, bob = callers.add("run", expires=time.time() + 1.0)
    job = bob.start("gate", gate_file.inputs(x=torch.ones(1)), detached=True)
    gate_file.wait_begun()
    assert callers.owner.status(job) == "IN_PROGRESS"
    time.sleep(1.6)
    gate_file.open()
    until(lambda: callers.owner.status(job) == "CANCELLED")
    assert error_of(bob.get("/health")) == (401, "AccessDenied")


def test_the_audit_log_says_who_did_what(callers: Callers) -> None:
    (name, bob), (_, admin) = callers.add("run", "deploy"), callers.add("admin")
    data, graph = os.urandom(1000), uuid.uuid4().hex
    put(bob, data)
    bob.deploy(graph, one_node("double"))
    admin.session.delete(f"{admin.url}/graphs/{graph}")
    path = callers.process.data_dir / "audit.log"

    def entries() -> list[dict[str, Any]]:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    until(lambda: any(entry["object"] == graph and entry["action"] == "remove" for entry in entries()))
    mine = [(entry["action"], entry["object"], entry["bytes"]) for entry in entries() if entry["principal"] == name]
    assert mine == [("write", blake3_hex(memoryview(data)), 1000), ("deploy", graph, None)]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(bob.session.headers["Authorization"]).removeprefix("Bearer ") not in path.read_text(encoding="utf-8")


def test_the_log_names_the_principal_of_a_job(callers: Callers) -> None:
    name, bob = callers.add("run")
    bob.run("double", {"x": torch.ones(1)})
    job = bob.get("/jobs").json()["jobs"][0]["job_id"]
    until(lambda: f"Job {job} of {name!r} (double): COMPLETED" in callers.process.log())
    assert f"Job {job} of {name!r} (double): started" in callers.process.log()


def test_the_owner_has_no_bounds() -> None:
    assert (OWNER.quota_bytes, OWNER.max_jobs, OWNER.expires) == (None, None, None)
