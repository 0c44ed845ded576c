"""The unmodified ``comfy-sdk`` against a gateway before two ComfyUIs, which it takes for one."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from samples.comfy_sdk import ComfySdk
from samples.gateways import GatewayProcess
from samples.http_client import until
from samples.plain_comfy import PNG, PREVIEW, PlainComfy

pytestmark = pytest.mark.timeout(240)
FAR = 120.0


@pytest.fixture(scope="module")
def sdk(comfy_gateway: GatewayProcess) -> ComfySdk:
    return ComfySdk(comfy_gateway)


def test_run_returns_outputs_that_are_read_in_every_way(sdk: ComfySdk, tmp_path: Path) -> None:
    found = sdk.run(
        """
import io
job = client.run(client.workflows.from_json({"9": {"class_type": "Picture", "inputs": {"color": 5}}}))
output = job.get_outputs("9")[0]
stream = io.BytesIO()
url = output.get_download_url()
answer({
    "status": job.status, "name": output.name, "type": output.type, "size": output.size_bytes, "bytes": output.to_bytes().hex(),
    "range": output.to_bytes(range=(1, 3)).hex(), "file": output.to_file(given).read_bytes().hex(), "stream": [output.to_stream(stream), stream.getvalue().hex()],
    "url": url.url, "job": [output.job_id == job.id, client.jobs.get(job.id).status, client.jobs.get(job.id).get_workflow().format],
})
""",
        str(tmp_path / "file"),
    )
    data = bytes.fromhex(found["bytes"])
    assert data.startswith(PNG + b"5")
    assert (found["status"], found["name"], found["type"], found["size"]) == ("succeeded", "picture_5.png", "image", len(data))
    assert (found["range"], found["file"], found["stream"]) == (data[1:4].hex(), data.hex(), [len(data), data.hex()])
    assert found["url"].startswith("http://127.0.0.1")
    assert found["job"] == [True, "succeeded", "api"]


def test_the_events_are_states_progress_previews_and_outputs(sdk: ComfySdk, gate: Path) -> None:
    program = sdk.begin(
        """
import pathlib
picture = {"class_type": "Picture", "inputs": {"color": 6}}
workflow = {"1": picture, "2": {"class_type": "Steps", "inputs": {"gate": given}}, "3": {"class_type": "Text", "inputs": {"text": "end"}}}
job = client.submit(client.workflows.from_json(workflow))
seen = []
for event in job.events():
    match event:
        case Progress() as progress:
            seen.append(["progress", progress.value, progress.step, progress.current_node])
            if progress.step and ["output", "picture_6.png"] in seen and any(kind == "preview" for kind, *_ in seen):
                pathlib.Path(given).touch()
        case Preview() as preview:
            seen.append(["preview", preview.node_id, preview.data.hex()])
        case OutputReady() as ready:
            seen.append(["output", ready.output.name])
        case StatusChange(status=status):
            seen.append(["status", status])
answer([seen, job.wait(timeout=100).status])
""",
        str(gate),
    )
    seen, status = sdk.end(program)[-1]
    assert status == "succeeded"
    assert [entry for entry in seen if entry[0] == "status"][-1] == ["status", "succeeded"]
    assert seen[-1] == ["status", "succeeded"]
    assert [entry[1] for entry in seen if entry[0] == "output"] == ["picture_6.png", "3.txt"]
    assert ["preview", "2", PREVIEW.hex()] in seen
    steps = [entry for entry in seen if entry[0] == "progress" and entry[2]]
    assert all(0 < value < 1 and node == "2" for _, value, _, node in steps)


def test_known_bytes_do_not_travel_and_an_asset_is_an_input(sdk: ComfySdk, comfys: list[PlainComfy]) -> None:
    program = """
import httpx
sent = []
send = httpx.Client.send
def counted(self, request, **options):
    sent.append([request.method, request.url.path.removeprefix("/api/v2")])
    return send(self, request, **options)
httpx.Client.send = counted
data = bytes.fromhex(given)
asset = client.assets.from_bytes(data, filename="photo.png")
workflow = client.workflows.from_json({"9": {"class_type": "Load", "inputs": {"image": ""}}})
workflow.set_input("9", "image", asset)
job = client.run(workflow)
again = client.assets.get(asset.id)
answer({"same": job.outputs[0].to_bytes() == data, "hash": asset.hash == job.outputs[0]._model.hash, "again": again.hash == asset.hash, "sent": sent,
        "id": asset.id, "new": asset.created_new, "path": again.file_path})
"""
    data = (PNG + uuid.uuid4().bytes).hex()
    first, second = (sdk.run(program, data) for _ in range(2))
    for found in (first, second):
        assert (found["same"], found["hash"], found["again"], found["path"]) == (True, True, True, "photo.png")
    assert (first["new"], second["new"], second["id"]) == (True, False, first["id"])
    assert ["POST", "/assets"] in first["sent"]
    assert ["POST", "/assets"] not in second["sent"]
    assert ["POST", "/assets/from-hash"] in second["sent"]
    assert all(name.startswith("photo-") for comfy in comfys for name in comfy.uploads if name.endswith("png") and "photo" in name)


def test_cancel_ends_the_job_and_reaches_the_node(sdk: ComfySdk, gate: Path) -> None:
    status, again = sdk.run(
        """
job = client.submit(client.workflows.from_json({"9": {"class_type": "Steps", "inputs": {"gate": given}}}))
while job.refresh().status != "running":
    time.sleep(0.1)
answer([job.cancel().wait(timeout=100).status, job.cancel().status])
""",
        str(gate),
    )
    assert (status, again) == ("canceled", "canceled")
    until(gate.with_suffix(".interrupted").exists, FAR)


def test_every_state_is_seen(sdk: ComfySdk, comfys: list[PlainComfy], tmp_path: Path, gate: Path) -> None:
    found = sdk.run(
        """
import pathlib

def submitted(**node):
    return client.submit(client.workflows.from_json({"9": node}))

held = [submitted(class_type="Steps", inputs={"gate": given}) for _ in range(3)]
while sorted(job.refresh().status for job in held) != ["queued", "running", "running"]:
    time.sleep(0.05)
states = {job.status for job in held} | {held[2].cancel().status}
pathlib.Path(given).touch()
states |= {job.wait(timeout=100).status for job in held}
answer(sorted(states | {submitted(class_type="Broken", inputs={"message": "x"}).wait(timeout=100).status}))
""",
        str(gate),
    )
    assert found == ["canceled", "failed", "queued", "running", "succeeded"]
    brief = GatewayProcess(tmp_path / "brief", comfys, comfy_ttl=1.0).start()
    try:
        program = """
job = client.submit(client.workflows.from_json({"9": {"class_type": "Steps", "inputs": {"gate": given}}}))
answer([job.wait(timeout=100).status, job.error.code])
"""
        assert ComfySdk(brief).run(program, str(gate.with_name("never"))) == ["expired", "ttl"]
    finally:
        brief.stop()


def test_a_failed_job_raises_with_its_node(sdk: ComfySdk) -> None:
    found = sdk.run(
        """
try:
    client.run(client.workflows.from_json({"9": {"class_type": "Broken", "inputs": {"message": "out of paint"}}}))
except JobFailed as error:
    answer([error.code, error.error.node_id, error.error.class_type, error.error.message])
"""
    )
    assert found[:3] == ["node_execution_error", "9", "Broken"]
    assert "out of paint" in found[3]
    assert "/usr/lib" not in found[3]


def test_refusals_are_the_exceptions_of_the_sdk(sdk: ComfySdk, gate: Path) -> None:
    found = sdk.run(
        """
def raised(act):
    try:
        act()
    except ComfyError as error:
        return [type(error).__name__, error.code, error.http_status]

def submitted(graph, **options):
    return client.submit(client.workflows.from_json(graph), **options)

picture = {"9": {"class_type": "Picture", "inputs": {"color": 1}}}
missing = {"__type": "core/ASSET", "info": {"id": "00000000-0000-4000-8000-000000000000"}}
first = submitted(picture, idempotency_key=given)
wrong = Comfy(api_key="wrong-token-of-somewhere")
answer({
    "reused": raised(lambda: submitted(picture, idempotency_key=given)),
    "unknown": raised(lambda: submitted({"9": {"class_type": "Unknown", "inputs": {}}})),
    "asset": raised(lambda: submitted({"9": {"class_type": "Load", "inputs": {"image": missing}}})),
    "job": raised(lambda: client.jobs.get("nothing")),
    "bytes": raised(lambda: client.assets.get("nothing")),
    "token": raised(lambda: wrong.jobs.get(first.id)),
    "labels": raised(lambda: submitted(picture, metadata={str(number): "x" for number in range(17)})),
    "filter": raised(lambda: list(client.list_jobs(metadata={"": "x"}))),
    "in use": raised(lambda: client.assets.delete("nothing")),
})
""",
        uuid.uuid4().hex,
    )
    assert found == {
        "reused": ["IdempotencyKeyReuse", "idempotency_key_reuse", 422],
        "unknown": ["InvalidWorkflow", "invalid_workflow", 422],
        "asset": ["MissingAsset", "missing_asset", 422],
        "job": ["NotFound", "not_found", 404],
        "bytes": ["NotFound", "not_found", 404],
        "token": ["Unauthorized", "unauthorized", 401],
        "labels": ["ComfyError", "metadata_invalid", 422],
        "filter": ["ComfyError", "invalid_metadata_filter", 400],
        "in use": ["NotFound", "not_found", 404],
    }


def test_a_full_queue_is_waited_for(sdk: ComfySdk, gate: Path) -> None:
    program = sdk.begin(
        """
graph = {"9": {"class_type": "Steps", "inputs": {"gate": given}}}
jobs = [client.submit(client.workflows.from_json(graph)) for _ in range(8)]
answer("full")
jobs.append(client.submit(client.workflows.from_json(graph)))
answer([job.wait(timeout=100).status for job in jobs])
""",
        str(gate),
    )
    assert program.stdout is not None
    assert program.stdout.readline() == 'RESULT"full"\n'
    gate.touch()
    assert sdk.end(program)[-1] == ["succeeded"] * 9


def test_jobs_are_listed_by_their_labels(sdk: ComfySdk) -> None:
    listed, submitted, labels = sdk.run(
        """
graph = {"9": {"class_type": "Picture", "inputs": {"color": 2}}}
jobs = [client.submit(client.workflows.from_json(graph), metadata={"mark": given, "number": str(number)}) for number in range(3)]
listed = list(client.list_jobs(metadata={"mark": given}, limit=2))
answer([[summary.id for summary in listed], [job.id for job in jobs], [listed[0].metadata, jobs[2].metadata, listed[0].create_time is not None]])
for job in jobs:
    job.wait(timeout=100)
""",
        uuid.uuid4().hex,
    )
    assert listed == submitted[::-1]
    assert labels[0] == labels[1]
    assert (labels[0]["number"], labels[2]) == ("2", True)


def test_the_asynchronous_client_does_the_same(sdk: ComfySdk, gate: Path) -> None:
    found = sdk.run(
        """
import asyncio

async def main():
    async with AsyncComfy() as client:
        asset = client.assets.from_bytes(bytes.fromhex(given), filename="a.png")
        workflow = client.workflows.from_json({"9": {"class_type": "Load", "inputs": {"image": asset}}})
        job = await client.submit(workflow, metadata={"kind": "async"})
        events = [event async for event in job.events()]
        job = await job.result()
        data = await job.outputs[0].to_bytes()
        listed = [summary.id async for summary in client.list_jobs(metadata={"kind": "async"})]
        await asset.delete()
        return [data.hex() == given, events[-1].status, job.id in listed]

answer(asyncio.run(main()))
""",
        (PNG + uuid.uuid4().bytes).hex(),
    )
    assert found == [True, "succeeded", True]


def test_the_key_of_partner_nodes_reaches_the_comfyui_and_is_stored_nowhere(
    sdk: ComfySdk, comfy_gateway: GatewayProcess, comfys: list[PlainComfy]
) -> None:
    secret = f"planted-secret-{uuid.uuid4().hex}"
    error = sdk.run(
        """
job = client.submit(client.workflows.from_json({"9": {"class_type": "Broken", "inputs": {"message": "refused key"}}}), api_key=given)
answer([job.wait(timeout=100).status, job.error.message])
""",
        secret,
    )
    assert error[0] == "failed"
    given = [body["extra_data"] for comfy in comfys for body in comfy.prompts if body["extra_data"]]
    assert {"api_key_comfy_org": secret} in given
    kept = [path for path in comfy_gateway.data_dir.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert kept == []
