"""Comfy API v2 of gateways that are killed and restarted, that share a database and a folder of assets, and of callers with other roles."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from blake3 import blake3

from samples.gateways import GatewayProcess
from samples.http_client import until
from samples.plain_comfy import PNG, PlainComfy
from yggdrasill.server_ext.principals import PrincipalFile

Prompt = dict[str, Any]
FINAL = {"succeeded", "failed", "canceled", "expired"}
FAR = 90.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Return the file that a node ``Steps`` waits for. It exists after the test."""
    path = tmp_path / uuid.uuid4().hex
    yield path
    path.touch()


@pytest.fixture
def started(tmp_path: Path, comfys: list[PlainComfy]) -> Iterator[list[GatewayProcess]]:
    """Return a list of gateways that are killed after the test."""
    found: list[GatewayProcess] = []
    yield found
    for process in found:
        process.kill()


def node(kind: str, **inputs: Any) -> Prompt:
    return {"9": {"class_type": kind, "inputs": inputs}}


def submit(gateway: GatewayProcess, workflow: Prompt, **more: Any) -> str:
    answer = gateway.post("/api/v2/jobs", {"workflow": workflow, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def job(gateway: GatewayProcess, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.get(f"/api/v2/jobs/{job_id}").json()
    return found


def ended(gateway: GatewayProcess, job_id: str) -> dict[str, Any]:
    until(lambda: job(gateway, job_id)["status"] in FINAL, FAR)
    return job(gateway, job_id)


def upload(gateway: GatewayProcess, data: bytes, **headers: str) -> requests.Response:
    form: dict[str, Any] = {"content_type": (None, "image/png"), "file_path": (None, "photo.png"), "file": ("photo.png", data)}
    return gateway.session.post(f"{gateway.url}/api/v2/assets", files=form, headers=headers, timeout=60)


def test_jobs_and_files_survive_a_killed_gateway_and_credentials_do_not(
    tmp_path: Path, comfys: list[PlainComfy], started: list[GatewayProcess], gate: Path
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", comfys, ahead=0).start()
    started.append(gateway)
    data = PNG + uuid.uuid4().bytes
    asset = upload(gateway, data).json()
    reference = {"__type": "core/ASSET", "info": {"id": asset["id"]}}
    steps = {"1": {"class_type": "Picture", "inputs": {"color": 7}}, "2": {"class_type": "Steps", "inputs": {"gate": str(gate)}}}
    running = [submit(gateway, {**steps, **node("Load", image=reference)}) for _ in comfys]
    until(lambda: all(len(job(gateway, job_id)["outputs"]) == 1 for job_id in running), FAR)
    queued = submit(gateway, node("Picture", color=1))
    secret = f"planted-secret-{uuid.uuid4().hex}"
    lost = submit(gateway, node("Picture", color=2), extra_data={"api_key_comfy_org": secret})
    before = sum(len(comfy.prompts) for comfy in comfys)
    gateway.kill()
    gateway.start()
    gate.touch()
    for job_id in running:
        found = ended(gateway, job_id)
        assert (found["status"], [output["name"] for output in found["outputs"]]) == ("succeeded", ["picture_7.png", "loaded.png"]), found
        assert gateway.get(f"/api/v2/assets/{found['outputs'][1]['id']}/content").content == data
    assert ended(gateway, queued)["status"] == "succeeded"
    found = ended(gateway, lost)
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
    asset = upload(one, data).json()
    by_hash = f"{two.url}/api/v2/assets/by-hash/blake3:{blake3(data).hexdigest()}"
    assert two.session.head(by_hash, timeout=60).status_code == 200
    reference = {"__type": "core/ASSET", "info": {"id": asset["id"]}}
    held = [submit(one, {"1": {"class_type": "Steps", "inputs": {"gate": str(gate)}}, **node("Load", image=reference)}) for _ in comfys]
    secret = f"planted-secret-{uuid.uuid4().hex}"
    kept = submit(two, node("Picture", color=1), extra_data={"api_key_comfy_org": secret})
    until(lambda: all(job(two, job_id)["status"] == "running" for job_id in held), FAR)
    answers = [gateway.get(f"/api/v2/jobs/{held[0]}/events", stream=True) for gateway in (one, two)]
    gate.touch()
    for answer in answers:
        text = answer.text
        assert text.count("event: output") == 1
        assert text.rstrip().endswith('data: {"status":"succeeded"}')
    for job_id in held:
        outputs = ended(two, job_id)["outputs"]
        assert [gateway.get(f"/api/v2/assets/{outputs[0]['id']}/content").content for gateway in (one, two)] == [data, data]
    assert ended(one, kept)["status"] == "succeeded"
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
    headers = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}

    def error_of(answer: requests.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["code"]

    def get(name: str, path: str) -> requests.Response:
        return gateway.get(f"/api/v2{path}", headers=headers[name])

    data = PNG + uuid.uuid4().bytes
    asset = upload(gateway, data, **headers["ada"]).json()
    load = node("Load", image={"__type": "core/ASSET", "info": {"id": asset["id"]}})
    answer = gateway.post("/api/v2/jobs", {"workflow": load}, headers=headers["ada"])
    assert answer.status_code == 201
    job_id = answer.json()["id"]
    assert error_of(gateway.post("/api/v2/jobs", {"workflow": load}, headers=headers["bob"])) == (422, "missing_asset")
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/assets/{asset['id']}", f"/assets/{asset['id']}/content"):
        assert error_of(get("bob", path)) == (404, "not_found")
    assert error_of(gateway.post(f"/api/v2/jobs/{job_id}/cancel", headers=headers["bob"])) == (404, "not_found")
    minted = gateway.post("/api/v2/assets/from-hash", {"hash": asset["hash"]}, headers=headers["bob"])
    assert error_of(minted) == (404, "blob_not_found")
    assert get("bob", "/jobs").json() == {"jobs": []}
    assert [entry["id"] for entry in get("ada", "/jobs").json()["jobs"]] == [job_id]
    assert [entry["id"] for entry in gateway.get("/api/v2/jobs").json()["jobs"]] == [job_id]
    own = upload(gateway, data, **headers["bob"])
    assert (own.status_code, own.json()["created_new"], own.json()["id"] == asset["id"]) == (201, True, False)
    assert error_of(upload(gateway, PNG + bytes(100), **headers["bob"])) == (507, "storage_full")
    assert error_of(gateway.post("/api/v2/jobs", {"workflow": node("Picture", color=1)}, headers=headers["eve"])) == (403, "forbidden")
    assert error_of(upload(gateway, data, **headers["rob"])) == (403, "forbidden")
    assert ended(gateway, job_id)["status"] == "succeeded"


def test_a_file_that_exceeds_the_bound_fails_its_upload_and_its_job(
    tmp_path: Path, comfys: list[PlainComfy], started: list[GatewayProcess]
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", comfys, max_asset=20, asset_quota=100).start()
    started.append(gateway)
    answer = upload(gateway, bytes(21))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    found = ended(gateway, submit(gateway, node("Files", names=["small.png", f"{'large' * 5}.png"])))
    assert (found["status"], found["error"]["code"]) == ("failed", "limit_exceeded")
    assert [output["name"] for output in found["outputs"]] == ["small.png"]
    assert str(tmp_path) not in str(found)
