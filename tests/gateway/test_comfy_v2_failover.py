"""Comfy API v2 of gateways that are killed and restarted, that share a database and a folder of assets, and of callers with other roles."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from samples.comfy_v2 import FAR, V2, error_of, node, reference
from samples.gateways import GatewayProcess
from samples.http_client import until
from samples.plain_comfy import PNG, PlainComfy
from yggdrasill.server_ext.principals import PrincipalFile


@pytest.fixture
def started(tmp_path: Path, comfys: list[PlainComfy]) -> Iterator[list[GatewayProcess]]:
    """Return a list of gateways that are killed after the test."""
    found: list[GatewayProcess] = []
    yield found
    for process in found:
        process.kill()


def test_jobs_and_files_survive_a_killed_gateway_and_credentials_do_not(
    tmp_path: Path, comfys: list[PlainComfy], started: list[GatewayProcess], gate: Path
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", comfys, ahead=0).start()
    started.append(gateway)
    data = PNG + uuid.uuid4().bytes
    asset = V2(gateway).upload(data).json()
    steps = {"1": {"class_type": "Picture", "inputs": {"color": 7}}, "2": {"class_type": "Steps", "inputs": {"gate": str(gate)}}}
    running = [V2(gateway).start({**steps, **node("Load", image=reference(asset["id"]))}) for _ in comfys]
    until(lambda: all(len(V2(gateway).job(job_id)["outputs"]) == 1 for job_id in running), FAR)
    queued = V2(gateway).start(node("Picture", color=1))
    secret = f"planted-secret-{uuid.uuid4().hex}"
    lost = V2(gateway).start(node("Picture", color=2), extra_data={"api_key_comfy_org": secret})
    before = sum(len(comfy.prompts) for comfy in comfys)
    gateway.kill()
    gateway.start()
    gate.touch()
    for job_id in running:
        found = V2(gateway).ended(job_id)
        assert (found["status"], [output["name"] for output in found["outputs"]]) == ("succeeded", ["picture_7.png", "loaded.png"]), found
        assert gateway.get(f"/api/v2/assets/{found['outputs'][1]['id']}/content").content == data
    assert V2(gateway).ended(queued)["status"] == "succeeded"
    found = V2(gateway).ended(lost)
    assert (found["status"], found["error"]["code"]) == ("failed", "credentials_lost")
    # the running prompts were found again, and the one without its credentials was not queued
    assert sum(len(comfy.prompts) for comfy in comfys) - before == 1
    assert not [path for path in gateway.data_dir.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_two_gateways_share_jobs_files_and_events(
    tmp_path: Path, comfys: list[PlainComfy], started: list[GatewayProcess], gate: Path
) -> None:
    shared = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "assets": str(tmp_path / "assets"), "ahead": 0}
    one, two = (GatewayProcess(tmp_path / name, comfys, **shared).start() for name in ("one", "two"))
    started += [one, two]
    data = PNG + uuid.uuid4().bytes
    asset = V2(one).upload(data).json()
    by_hash = f"{two.url}/api/v2/assets/by-hash/blake3:{blake3(data).hexdigest()}"
    assert two.session.head(by_hash, timeout=60).status_code == 200
    held = [
        V2(one).start({"1": {"class_type": "Steps", "inputs": {"gate": str(gate)}}, **node("Load", image=reference(asset["id"]))})
        for _ in comfys
    ]
    secret = f"planted-secret-{uuid.uuid4().hex}"
    kept = V2(two).start(node("Picture", color=1), extra_data={"api_key_comfy_org": secret})
    until(lambda: all(V2(two).job(job_id)["status"] == "running" for job_id in held), FAR)
    answers = [gateway.get(f"/api/v2/jobs/{held[0]}/events", stream=True) for gateway in (one, two)]
    gate.touch()
    for answer in answers:
        text = answer.text
        assert text.count("event: output") == 1
        assert text.rstrip().endswith('data: {"status":"succeeded"}')
    for job_id in held:
        outputs = V2(two).ended(job_id)["outputs"]
        assert [gateway.get(f"/api/v2/assets/{outputs[0]['id']}/content").content for gateway in (one, two)] == [data, data]
    assert V2(one).ended(kept)["status"] == "succeeded"
    assert {"api_key_comfy_org": secret} in [body["extra_data"] for comfy in comfys for body in comfy.prompts]


def test_callers_see_their_own_jobs_and_assets_and_need_the_roles(
    tmp_path: Path, comfys: list[PlainComfy], started: list[GatewayProcess]
) -> None:
    data_dir = tmp_path / "gateway"
    data_dir.mkdir()
    principals = PrincipalFile(data_dir)
    tokens = {
        name: principals.add(name, roles, quota_bytes=quota)
        for name, roles, quota in (
            ("ada", ["run", "deploy"], None),
            ("bob", ["run", "deploy"], 100),
            ("eve", ["run"], None),
            ("rob", ["read"], None),
        )
    }
    gateway = GatewayProcess(data_dir, comfys).start()
    started.append(gateway)
    ada, bob, eve, rob = (V2(gateway, tokens[name]) for name in ("ada", "bob", "eve", "rob"))
    data = PNG + uuid.uuid4().bytes
    asset = ada.upload(data).json()
    load = node("Load", image=reference(asset["id"]))
    job_id = ada.start(load)
    assert error_of(bob.post(load)) == (422, "missing_asset")
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/assets/{asset['id']}", f"/assets/{asset['id']}/content"):
        assert error_of(bob.get(path)) == (404, "not_found")
    as_bob = {"headers": {"Authorization": f"Bearer {tokens['bob']}"}}
    assert error_of(gateway.post(f"/api/v2/jobs/{job_id}/cancel", **as_bob)) == (404, "not_found")
    assert error_of(gateway.post("/api/v2/assets/from-hash", {"hash": asset["hash"]}, **as_bob)) == (404, "blob_not_found")
    assert bob.get("/jobs").json() == {"jobs": []}
    assert [[entry["id"] for entry in caller.get("/jobs").json()["jobs"]] for caller in (ada, V2(gateway))] == [[job_id]] * 2
    own = bob.upload(data)
    assert (own.status_code, own.json()["created_new"], own.json()["id"] == asset["id"]) == (201, True, False)
    assert error_of(bob.upload(PNG + bytes(100))) == (507, "storage_full")
    assert error_of(eve.post(node("Picture", color=1))) == (403, "forbidden")
    assert error_of(rob.upload(data)) == (403, "forbidden")
    assert V2(gateway).ended(job_id)["status"] == "succeeded"


def test_a_file_that_exceeds_the_bound_fails_its_upload_and_its_job(
    tmp_path: Path, comfys: list[PlainComfy], started: list[GatewayProcess]
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", comfys, max_asset=20, asset_quota=100).start()
    started.append(gateway)
    answer = V2(gateway).upload(bytes(21))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    found = V2(gateway).ended(V2(gateway).start(node("Files", names=["small.png", f"{'large' * 5}.png"])))
    assert (found["status"], found["error"]["code"]) == ("failed", "limit_exceeded")
    assert [output["name"] for output in found["outputs"]] == ["small.png"]
    assert str(tmp_path) not in str(found)
