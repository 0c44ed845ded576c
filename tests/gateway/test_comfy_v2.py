"""Comfy API v2 of a gateway before two ComfyUIs, by HTTP: jobs, events, and everything that is refused."""

from __future__ import annotations

import base64
import json
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samples.comfy_v2 import FAR, V2, error_of, hash_of, node, reference
from samples.gateways import GatewayProcess
from samples.http_client import events_of, until
from samples.plain_comfy import PNG, PREVIEW, PlainComfy


@pytest.fixture(scope="module")
def v2(comfy_gateway: GatewayProcess) -> V2:
    return V2(comfy_gateway)


# -- jobs ---------------------------------------------------------------------------------------------------------------


def test_a_workflow_runs_and_its_file_is_an_asset(v2: V2) -> None:
    created = v2.submit(node("Picture", color=3), metadata={"client": "acme"})
    assert created["status"] in ("queued", "running")
    assert created["outputs"] == []
    found = v2.ended(created["id"])
    assert (found["status"], found["error"], found["metadata"]) == ("succeeded", None, {"client": "acme"})
    assert found["progress"] == {"value": 1.0, "nodes_done": 1, "nodes_total": 1}
    (output,) = found["outputs"]
    data = v2.content(output["id"])
    assert data.content.startswith(PNG + b"3")
    assert (output["node_id"], output["name"], output["type"]) == ("9", "picture_3.png", "image")
    assert (output["content_type"], output["size_bytes"]) == ("image/png", len(data.content))
    assert (output["hash"], output["job_id"]) == (hash_of(data.content), found["id"])
    assert data.headers["Content-Type"] == "image/png"
    assert requests.get(output["url"], headers=v2.gateway.session.headers, timeout=60).content == data.content
    assert found["metrics"]["queue_ms"] >= 0
    assert found["metrics"]["execution_ms"] >= 0
    assert found["urls"]["self"] == f"/api/v2/jobs/{found['id']}"
    assert v2.gateway.get(f"/api/v2/jobs/{found['id']}/workflow").json() == {"workflow": node("Picture", color=3), "format": "api"}


def test_every_kind_of_output_is_an_asset_and_a_file_that_does_not_exist_is_left_out(v2: V2) -> None:
    names = ["a.png", "b.mp4", "c.flac", "d.glb", "e.latent", "f.txt", "g.json", "h.webp"]
    prompt = {**node("Files", names=names), "10": {"class_type": "Text", "inputs": {"text": "words"}}}
    outputs = {output["name"]: output for output in v2.run(prompt)["outputs"]}
    kinds = {name: output["type"] for name, output in outputs.items()}
    assert kinds == {
        "a.png": "image", "b.mp4": "video", "c.flac": "audio", "d.glb": "file", "e.latent": "latent", "f.txt": "text", "g.json": "text",
        "h.webp": "image", "10.txt": "text",
    }  # fmt: skip
    assert outputs["10.txt"]["node_id"] == "10"
    assert v2.content(outputs["10.txt"]["id"]).content == b"words"
    glb = v2.content(outputs["d.glb"]["id"])
    assert glb.content == b"d.glb"
    assert (glb.headers["Content-Type"], glb.headers["X-Content-Type-Options"]) == ("application/octet-stream", "nosniff")


def test_a_workflow_runs_where_its_nodes_are_and_two_run_at_once(v2: V2, comfys: list[PlainComfy], gate: Path) -> None:
    waiting = [v2.submit(node("Steps", gate=str(gate)))["id"] for _ in comfys]
    until(lambda: all(v2.job(job_id)["status"] == "running" for job_id in waiting), FAR)
    places = {v2.gateway.get(f"/v1/jobs/{job_id}").json()["endpoint"] for job_id in waiting}
    assert places == {"easel", "lathe"}
    queued = [v2.submit(node("Files", names=[f"{number}.png"]))["id"] for number in range(2)]
    until(lambda: [v2.job(job_id)["queue_position"] for job_id in queued] == [0, 1], FAR)
    assert [v2.job(job_id)["status"] for job_id in queued] == ["queued", "queued"]
    gate.touch()
    assert {v2.ended(job_id)["status"] for job_id in waiting + queued} == {"succeeded"}
    assert {v2.gateway.get(f"/v1/jobs/{job_id}").json()["endpoint"] for job_id in queued} == {"easel"}


def test_a_node_that_fails_fails_the_job_with_its_node_and_without_paths(v2: V2) -> None:
    prompt = {"1": node("Picture", color=8)["9"], **node("Broken", message="out of paint")}
    found = v2.run(prompt)
    error = found["error"]
    assert (found["status"], error["code"], error["node_id"], error["class_type"]) == ("failed", "node_execution_error", "9", "Broken")
    assert "out of paint" in error["message"]
    assert "/usr/lib" not in json.dumps(found)
    assert [output["name"] for output in found["outputs"]] == ["picture_8.png"]


def test_a_workflow_that_the_comfyui_refuses_fails_with_the_reason(v2: V2) -> None:
    found = v2.run(node("Picture"))
    assert (found["status"], found["error"]["code"]) == ("failed", "invalid_workflow")
    assert "Required input is missing" in found["error"]["message"]


def test_cancel_reaches_the_running_node_and_is_repeatable(v2: V2, gate: Path) -> None:
    job_id = v2.submit(node("Steps", gate=str(gate)))["id"]
    until(lambda: v2.job(job_id)["status"] == "running" and v2.job(job_id)["progress"] is not None, FAR)
    answers = [v2.gateway.post(f"/api/v2/jobs/{job_id}/cancel") for _ in range(2)]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "canceled")] * 2
    until(gate.with_suffix(".interrupted").exists, FAR)
    done = v2.run(node("Picture", color=1))
    again = v2.gateway.post(f"/api/v2/jobs/{done['id']}/cancel").json()
    assert again["status"] == "succeeded"


def test_a_job_whose_lifetime_is_over_has_expired(tmp_path: Path, comfys: list[PlainComfy], gate: Path) -> None:
    gateway = GatewayProcess(tmp_path / "brief", comfys, comfy_ttl=1.0).start()
    try:
        found = V2(gateway).run(node("Steps", gate=str(gate)))
        assert (found["status"], found["error"]["code"]) == ("expired", "ttl")
    finally:
        gateway.stop()


def test_an_idempotency_key_is_accepted_once(v2: V2) -> None:
    key = "k" * 255
    first = v2.submit(node("Picture", color=1), key)
    for color in (1, 2):
        answer = v2.post(node("Picture", color=color), key)
        assert error_of(answer) == (422, "idempotency_key_reuse")
        assert answer.json()["error"]["details"] == {"job_id": first["id"]}
    refused = uuid.uuid4().hex
    assert error_of(v2.post(node("Unknown"), refused)) == (422, "invalid_workflow")
    assert v2.post(node("Picture", color=1), refused).status_code == 201


def test_a_full_queue_is_429_with_the_seconds_to_wait(v2: V2, gate: Path) -> None:
    answers = [v2.post(node("Steps", gate=str(gate))) for _ in range(9)]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert {error_of(answer) for answer in refused} == {(429, "queue_full")}
    assert int(refused[0].headers["Retry-After"]) >= 1
    gate.touch()
    assert {v2.ended(answer.json()["id"])["status"] for answer in answers if answer.status_code == 201} == {"succeeded"}


def test_a_gateway_without_a_comfyui_says_whether_waiting_helps(tmp_path: Path, comfys: list[PlainComfy]) -> None:
    away = PlainComfy("away", tmp_path / "away")
    away.url = "http://127.0.0.1:9"
    gateway = GatewayProcess(tmp_path / "gateway", [away]).start()
    try:
        answer = V2(gateway).post(node("Picture", color=1))
        assert error_of(answer) == (429, "deployment_not_ready")
        assert int(answer.headers["Retry-After"]) >= 1
    finally:
        gateway.stop()
    gateway = GatewayProcess(tmp_path / "empty").start()
    try:
        assert error_of(V2(gateway).post(node("Picture", color=1))) == (422, "deployment_stopped")
    finally:
        gateway.stop()


# -- lists --------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_by_pages_and_by_labels(v2: V2) -> None:
    mark = uuid.uuid4().hex
    ids = [v2.run(node("Picture", color=1), metadata={"mark": mark, "turn": str(number % 2), "Case": "A"})["id"] for number in range(5)]
    listed: list[str] = []
    query = {"metadata[mark]": mark, "limit": "2"}
    while True:
        page = v2.gateway.get("/api/v2/jobs", params=query).json()
        listed += [entry["id"] for entry in page["jobs"]]
        if "next_cursor" not in page:
            break
        query["cursor"] = page["next_cursor"]
    assert listed == ids[::-1]
    odd = v2.gateway.get("/api/v2/jobs", params={"metadata[mark]": mark, "metadata[turn]": "1"}).json()["jobs"]
    assert [entry["id"] for entry in odd] == [ids[3], ids[1]]
    assert odd[0]["status"] == "succeeded"
    assert odd[0]["create_time"] <= odd[0]["update_time"]
    assert v2.gateway.get("/api/v2/jobs", params={"metadata[mark]": mark, "metadata[Case]": "a"}).json()["jobs"] == []
    everything = v2.gateway.get("/api/v2/jobs", params={"limit": "500"}).json()["jobs"]
    assert set(ids) <= {entry["id"] for entry in everything}


@pytest.mark.parametrize(
    "query, refusal",
    [
        ({"cursor": "nonsense"}, (400, "invalid_cursor")),
        ({"cursor": "W10"}, (400, "invalid_cursor")),
        ({"limit": "0"}, (400, "invalid_request")),
        ({"limit": "x"}, (400, "invalid_request")),
        ({"metadata[]": "x"}, (400, "invalid_metadata_filter")),
        ({"metadata": "x"}, (400, "invalid_metadata_filter")),
        ({"metadata[a]": "x" * 600}, (400, "invalid_metadata_filter")),
    ],
)
def test_a_bad_list_is_refused(v2: V2, query: dict[str, str], refusal: tuple[int, str]) -> None:
    assert error_of(v2.gateway.get("/api/v2/jobs", params=query)) == refusal


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, refusal",
    [
        ([], (400, "invalid_request")),
        ({}, (422, "invalid_workflow")),
        ({"workflow": "text"}, (422, "invalid_workflow")),
        ({"workflow": {}}, (422, "invalid_workflow")),
        ({"workflow": {"1": {"inputs": {}}}}, (422, "invalid_workflow")),
        ({"workflow": {"1": {"class_type": "Load", "inputs": {"image": ["7", 0]}}}}, (422, "invalid_workflow")),
        ({"workflow": {"nodes": [], "links": [], "last_node_id": 1}}, (422, "workflow_format_ui")),
        ({"workflow": node("Unknown")}, (422, "invalid_workflow")),
        ({"workflow": node("Load", image=reference(str(uuid.uuid4())))}, (422, "missing_asset")),
        ({"workflow": node("Load", image={"__type": "core/ASSET"})}, (422, "missing_asset")),
        ({"workflow": node("Load", image={"__type": "core/ASSET", "info": {"id": 3}})}, (422, "missing_asset")),
        ({"workflow": node("Picture", color=1), "inputs": {}}, (422, "invalid_request")),
        ({"workflow": node("Picture", color=1), "webhook_url": "http://example.com"}, (422, "invalid_request")),
        ({"workflow": node("Picture", color=1), "extra_data": {}}, (422, "invalid_request")),
        ({"workflow": node("Picture", color=1), "extra_data": {"api_key_comfy_org": 3}}, (422, "invalid_request")),
        ({"workflow": node("Picture", color=1), "extra_data": {"other": "x"}}, (422, "invalid_request")),
        ({"workflow": node("Picture", color=1), "metadata": []}, (422, "metadata_invalid")),
        ({"workflow": node("Picture", color=1), "metadata": {"a": 1}}, (422, "metadata_invalid")),
        ({"workflow": node("Picture", color=1), "metadata": {"": "x"}}, (422, "metadata_invalid")),
        ({"workflow": node("Picture", color=1), "metadata": {str(number): "x" for number in range(17)}}, (422, "metadata_invalid")),
    ],
)
def test_a_bad_submission_is_refused(v2: V2, body: Any, refusal: tuple[int, str]) -> None:
    answer = v2.gateway.post("/api/v2/jobs", body)
    assert error_of(answer) == refusal
    assert answer.json()["error"]["message"]


def test_an_unknown_node_class_is_named_by_its_node(v2: V2) -> None:
    error = v2.post({"7": {"class_type": "Unknown", "inputs": {}}, **node("Picture", color=1)}).json()["error"]
    assert error["details"]["missing"] == ["Unknown"]
    assert [entry["field"] for entry in error["details"]["node_errors"]["7"]] == ["class_type"]


def test_a_body_that_is_not_json_is_refused(v2: V2) -> None:
    answer = v2.gateway.session.post(f"{v2.gateway.url}/api/v2/jobs", data=b"{", timeout=60)
    assert error_of(answer) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["", "/workflow", "/events"])
def test_an_unknown_job_and_one_of_another_dialect_are_404(v2: V2, path: str) -> None:
    other = v2.gateway.post("/v1/workflows", {"workflow": node("Picture", color=1)}).json()["job_id"]
    for job_id in (str(uuid.uuid4()), other):
        assert error_of(v2.gateway.get(f"/api/v2/jobs/{job_id}{path}")) == (404, "not_found")
    assert error_of(v2.gateway.post(f"/api/v2/jobs/{other}/cancel")) == (404, "not_found")


def test_without_a_token_and_with_a_wrong_one_the_answer_is_401(v2: V2) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong-token-of-somewhere"}):
        answer = requests.get(f"{v2.gateway.url}/api/v2/jobs", headers=headers, timeout=60)
        assert error_of(answer) == (401, "unauthorized")
        assert requests.head(f"{v2.gateway.url}/api/v2/assets/by-hash/{hash_of(b'x')}", headers=headers, timeout=60).status_code == 401


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["core/ASSET", "Picture", "9", "blake3:" + "0" * 64]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["__type", "info", "id", "class_type", "inputs", "9", ""]) | st.text(max_size=4), part, max_size=3),
    max_leaves=12,
)  # fmt: skip
_bodies = _json | st.dictionaries(st.sampled_from(["workflow", "metadata", "extra_data", "hash", "file_path", "expires_in"]), _json)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/jobs", "/assets/from-hash"]), body=_bodies)
def test_no_body_makes_the_gateway_fail(v2: V2, path: str, body: Any) -> None:
    answer = v2.gateway.post(f"/api/v2{path}", body)
    assert answer.status_code in (201, 400, 404, 422), (answer.status_code, answer.text)
    if answer.status_code != 201:
        assert set(answer.json()["error"]) <= {"code", "message", "details"}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=12))
def test_no_id_or_query_makes_the_gateway_fail(v2: V2, text: str) -> None:
    name = urllib.parse.quote(text, safe="")
    for path in (
        f"/jobs/{name}",
        f"/jobs/{name}/workflow",
        f"/assets/{name}",
        f"/assets/{name}/content",
        f"/jobs?cursor={name}",
        f"/jobs?metadata[{name}]={name}",
    ):
        assert v2.gateway.get(f"/api/v2{path}").status_code in (200, 400, 404)
    assert v2.gateway.session.head(f"{v2.gateway.url}/api/v2/assets/by-hash/{name}", timeout=60).status_code == 404


# -- events -------------------------------------------------------------------------------------------------------------


def test_the_events_of_a_job_are_its_state_progress_previews_and_outputs(v2: V2, gate: Path) -> None:
    prompt = {
        "1": node("Picture", color=4)["9"],
        "2": {"class_type": "Steps", "inputs": {"gate": str(gate)}},
        "3": node("Text", text="end")["9"],
    }
    job_id = v2.submit(prompt)["id"]
    until(lambda: (v2.job(job_id)["progress"] or {}).get("step") is not None, FAR)
    answer = v2.gateway.get(f"/api/v2/jobs/{job_id}/events", stream=True)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    seen: list[dict[str, Any]] = []
    for event in events_as_they_come(answer):
        seen.append(event)
        if {"preview", "progress", "output"} <= {found["event"] for found in seen}:
            gate.touch()
    assert seen[0] == {"event": "status", "data": {"status": "running"}}
    assert seen[-1] == {"event": "status", "data": {"status": "succeeded"}}
    progress = next(event["data"] for event in seen if event["event"] == "progress" and event["data"].get("step"))
    assert (progress["current_node"], progress["current_node_class"], progress["steps"]) == ("2", "Steps", 10)
    assert (progress["nodes_done"], progress["nodes_total"]) == (1, 3)
    assert progress["value"] == pytest.approx((1 + progress["step"] / 10) / 3)
    preview = next(event["data"] for event in seen if event["event"] == "preview")
    assert (preview["node_id"], preview["content_type"]) == ("2", "image/jpeg")
    assert base64_of(PREVIEW) == preview["data_base64"]
    outputs = [event["data"]["name"] for event in seen if event["event"] == "output"]
    assert outputs == ["picture_4.png", "3.txt"]
    assert all("id" not in event for event in seen)
    assert [event["event"] for event in events_of(v2.gateway.get(f"/api/v2/jobs/{job_id}/events", stream=True))][-3:] == [
        "output", "output", "status",
    ]  # fmt: skip


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def events_as_they_come(answer: requests.Response) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        name, _, text = line.partition(": ")
        if line and name:
            event[name] = json.loads(text) if name == "data" else text
        elif event:
            yield event
            event = {}
