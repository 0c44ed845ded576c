"""The gateway before real ComfyUIs, in its own dialect and in Comfy API v2: the files are those of a direct run."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from samples.comfy import Server
from samples.comfy_graphs import node
from samples.comfy_sdk import ComfySdk
from samples.gateways import GatewayProcess
from samples.http_client import until

Prompt = dict[str, Any]
pytestmark = pytest.mark.timeout(400)
FAR = 120.0


def picture(color: int, prefix: str) -> Prompt:
    drawn = node("EmptyImage", width=24, height=16, batch_size=2, color=color)
    scaled = node("ImageScale", image=("1", 0), upscale_method="lanczos", width=40, height=24, crop="disabled")
    return {"1": drawn, "2": scaled, "3": node("SaveImage", images=("2", 0), filename_prefix=prefix)}


def direct(server: Server, prompt: Prompt) -> dict[str, bytes]:
    """Return the files that a direct run of a prompt on a server saves, by name."""
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry
    found = {}
    for output in entry["outputs"].values():
        for file in output["images"]:
            query = urllib.parse.urlencode({name: file[name] for name in ("filename", "subfolder", "type")})
            with urllib.request.urlopen(f"{server.url}/view?{query}", timeout=60) as answer:
                found[file["filename"]] = answer.read()
    return found


def without_metadata(data: bytes) -> tuple[tuple[int, int], bytes]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.size, image.tobytes()


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), color).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("endpoint", ["extended", "plain"])
def test_the_files_of_a_workflow_are_those_of_a_direct_run(gateway: GatewayProcess, studio: dict[str, Server], endpoint: str) -> None:
    prompt = picture(0x3366CC, f"bare_{endpoint}")
    found = gateway.post("/v1/workflows", {"workflow": prompt, "endpoint": endpoint, "wait": 60}).json()
    assert (found["status"], found["endpoint"], found["kind"]) == ("COMPLETED", endpoint, "prompt"), found
    files = {file["filename"]: gateway.session.get(file["url"], timeout=60).content for file in found["files"]}
    assert sorted(files) == [f"bare_{endpoint}_00001_.png", f"bare_{endpoint}_00002_.png"]
    # the prompt that is saved in the files is equal too
    again = picture(0x3366CC, f"bare_{endpoint}")
    assert sorted(files.values()) == sorted(direct(studio[endpoint], again).values())
    saved = {path.name: path.read_bytes() for path in (studio[endpoint].base / "output").glob(f"bare_{endpoint}_0000[12]_.png")}
    assert files == saved


def test_the_files_of_comfy_api_v2_are_those_of_a_direct_run(gateway: GatewayProcess, studio: dict[str, Server]) -> None:
    prompt = picture(0x11AA22, "second")
    answer = gateway.post("/api/v2/jobs", {"workflow": prompt})
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    until(lambda: gateway.get(f"/api/v2/jobs/{job_id}").json()["status"] in ("succeeded", "failed"), FAR)
    found = gateway.get(f"/api/v2/jobs/{job_id}").json()
    assert found["status"] == "succeeded", found
    assert [(output["node_id"], output["name"], output["type"]) for output in found["outputs"]] == [
        ("3", "second_00001_.png", "image"),
        ("3", "second_00002_.png", "image"),
    ]
    files = [gateway.get(f"/api/v2/assets/{output['id']}/content").content for output in found["outputs"]]
    expected = list(direct(studio["plain"], prompt).values())
    assert files == expected
    assert without_metadata(files[0])[0] == (40, 24)


def test_the_sdk_runs_on_both_servers_at_once_with_progress_and_previews(
    gateway: GatewayProcess, studio: dict[str, Server], tmp_path: Path
) -> None:
    marks = [str(tmp_path / name) for name in ("a", "b")]
    seen, statuses, ids = ComfySdk(gateway).run(
        """
import pathlib

def waiting(mark, seconds):
    return client.submit(client.workflows.from_json({"9": {"class_type": "WorkerTestWait", "inputs": {"seconds": seconds, "mark": mark}}}))

jobs = [waiting(mark, 900.0) for mark in given]
while not all(pathlib.Path(mark).exists() for mark in given):
    time.sleep(0.1)
seen = []
for event in jobs[0].events():
    match event:
        case Progress() as progress:
            seen.append(["progress", progress.step is not None, progress.steps, progress.current_node])
        case Preview() as preview:
            seen.append(["preview", preview.node_id, preview.data[:2].hex()])
        case StatusChange(status=status):
            seen.append(["status", status])
    if {"progress", "preview"} <= {kind for kind, *_ in seen} and jobs[0].status != "canceled":
        for job in jobs:
            job.cancel()
for event in waiting("", 0.1).events():
    match event:
        case OutputReady() as ready:
            seen.append(["output", ready.output.to_bytes().decode()])
        case StatusChange(status=status):
            seen.append(["status", status])
answer([seen, [job.wait(timeout=100).status for job in jobs], [job.id for job in jobs]])
""",
        marks,
    )
    assert statuses == ["canceled", "canceled"]
    assert ["status", "canceled"] in seen
    assert seen[-2:] == [["output", "waited"], ["status", "succeeded"]]
    assert ["preview", "9", "ffd8"] in seen
    assert ["progress", True, 9000, "9"] in seen
    assert {gateway.get(f"/v1/jobs/{job_id}").json()["endpoint"] for job_id in ids} == set(studio)


def test_an_uploaded_picture_is_the_input_on_either_server(gateway: GatewayProcess, studio: dict[str, Server]) -> None:
    data = png((0, 255, 0))
    program = """
asset = client.assets.from_bytes(bytes.fromhex(given[0]), filename="the photo.png")
workflow = client.workflows.from_json(given[1])
workflow.set_input("1", "image", asset)
jobs = [client.submit(workflow) for _ in range(6)]
answer([[job.result().outputs[0].to_bytes().hex() for job in jobs], [job.id for job in jobs], asset.hash])
"""
    prompt = {
        "1": node("LoadImage", image=""),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix="inverted"),
    }
    results, ids, digest = ComfySdk(gateway).run(program, [data.hex(), prompt])
    pixels = {without_metadata(bytes.fromhex(result)) for result in results}
    assert pixels == {((20, 12), bytes([255, 0, 255]) * 240)}
    name = f"the_photo-{digest.removeprefix('blake3:')[:16]}.png"
    places = {gateway.get(f"/v1/jobs/{job_id}").json()["endpoint"] for job_id in ids}
    for place in places:
        assert (studio[place].base / "input" / name).read_bytes() == data
        assert len(list((studio[place].base / "input").glob("the_photo*"))) == 1


def test_every_kind_of_output_of_the_nodes_is_an_asset(gateway: GatewayProcess) -> None:
    found = ComfySdk(gateway).run(
        """
job = client.run(client.workflows.from_json({"9": {"class_type": "WorkerTestEveryKind", "inputs": {"prefix": given}}}))
answer({output.name: [output.type, output.content_type, output.size_bytes == len(output.to_bytes())] for output in job.get_outputs("9")})
""",
        "k",
    )
    assert found == {
        "k.png": ["image", "image/png", True], "k.wav": ["audio", found["k.wav"][1], True], "k.mp4": ["video", "video/mp4", True],
        "k.glb": ["file", "model/gltf-binary", True], "9.txt": ["text", "text/plain", True],
    }  # fmt: skip


def test_a_failure_and_a_refusal_have_their_node_and_no_paths(gateway: GatewayProcess, studio: dict[str, Server]) -> None:
    broken, refused = ComfySdk(gateway).run(
        """
def failed(node):
    job = client.submit(client.workflows.from_json({"9": node})).wait(timeout=100)
    return [job.status, job.error.code, job.error.node_id, job.error.class_type, job.error.message]

answer([failed({"class_type": "WorkerTestBroken", "inputs": {"message": "out of paint"}}),
        failed({"class_type": "WorkerTestWait", "inputs": {"seconds": "never"}})])
"""
    )
    assert broken[:4] == ["failed", "node_execution_error", "9", "WorkerTestBroken"]
    assert "out of paint" in broken[4]
    assert refused[:2] == ["failed", "invalid_workflow"]
    text = json.dumps([broken, refused])
    assert not any(str(folder) in text for server in studio.values() for folder in (server.base, Path.home()))


def test_a_cancel_reaches_the_running_node(gateway: GatewayProcess, studio: dict[str, Server], tmp_path: Path) -> None:
    mark = tmp_path / uuid.uuid4().hex
    status = ComfySdk(gateway).run(
        """
import pathlib
job = client.submit(client.workflows.from_json({"9": {"class_type": "WorkerTestWait", "inputs": {"seconds": 900.0, "mark": given}}}))
while not pathlib.Path(given).exists():
    time.sleep(0.1)
answer(job.cancel().wait(timeout=100).status)
""",
        str(mark),
    )
    assert status == "canceled"

    def is_idle(server: Server) -> bool:
        queue = server.get("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]

    until(lambda: all(map(is_idle, studio.values())), FAR)
    assert mark.read_text(encoding="utf-8") == "begun"


def test_a_workflow_with_graph_outputs_has_its_files_too(gateway: GatewayProcess) -> None:
    prompt = {**picture(0x445566, "ports"), "4": node("YggdrasillGraphOutput", name="picture", value=("2", 0), type="IMAGE")}
    job_id = gateway.post("/api/v2/jobs", {"workflow": prompt}).json()["id"]
    until(lambda: gateway.get(f"/api/v2/jobs/{job_id}").json()["status"] in ("succeeded", "failed"), FAR)
    found = gateway.get(f"/api/v2/jobs/{job_id}").json()
    assert (found["status"], found["error"]) == ("succeeded", None)
    assert [output["name"] for output in found["outputs"]] == ["ports_00001_.png", "ports_00002_.png"]
    output = gateway.get(f"/v1/jobs/{job_id}/output").json()["output"]
    assert output["picture"]["shape"] == [2, 24, 40, 3]
