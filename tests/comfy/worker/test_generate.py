"""The request ``generate`` on a real ComfyUI."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from samples.small_server import small_server
from yggdrasill.worker.handler import WorkerHost

Prompt = dict[str, Any]


def ask(host: WorkerHost, given: Any, job: str = "job", **more: Any) -> dict[str, Any]:
    return host.run(host.service.handle({"id": job, "input": given, **more}))


def image_prompt(color: int = 255, size: int = 16) -> Prompt:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": size, "height": size, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "out"}},
    }


def node(name: str, **inputs: Any) -> Prompt:
    return {"9": {"class_type": f"WorkerTest{name}", "inputs": inputs}}


async def exists(path: Path) -> None:
    """Wait until a node has written a file."""
    while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.05)


def pixel(text: str) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize("form", ["object", "text", "posted", "url"])
def test_a_workflow_is_accepted_in_every_form(host: WorkerHost, form: str) -> None:
    prompt = image_prompt(0x00FF00)
    with small_server({"/w.json": json.dumps(prompt).encode()}) as url:
        field: dict[str, dict[str, Any]] = {
            "object": {"workflow": prompt},
            "text": {"workflow": json.dumps(prompt)},
            "posted": {"workflow": {"prompt": prompt}},
            "url": {"workflow_url": f"{url}/w.json"},
        }
        result = ask(host, {"version_id": "tiny", "output_mode": "base64", **field[form]})
    assert pixel(result["base64"]) == (0, 255, 0), result
    assert result["size"] == len(base64.b64decode(result["base64"]))
    assert [entry["kind"] for entry in result["files"]] == ["image"]
    assert set(result["timing"]) == {"queue", "boot", "load", "run", "deliver"}


def test_a_prompt_without_a_type_fills_the_template_of_the_version(host: WorkerHost) -> None:
    result = ask(host, {"version_id": "tiny", "prompt": "named-by-prompt"})
    assert pixel(result["base64"]) == (0, 0, 255)
    assert result["files"][0]["filename"].startswith("named-by-prompt")
    assert pixel(ask(host, {"version_id": "tiny", "prompt": "x", "color": 0xFF0000})["base64"]) == (255, 0, 0)
    assert pixel(ask(host, {"type": "generate", "version_id": "tiny", "inputs": {"color": 0x00FF00}})["base64"]) == (0, 255, 0)


@pytest.mark.parametrize(
    "given, code",
    [
        ({"workflow": 3}, "invalid_workflow"),
        ({"workflow": "no json"}, "invalid_workflow"),
        ({"workflow": []}, "invalid_workflow"),
        ({"workflow": {}}, "invalid_workflow"),
        ({"workflow": {"nodes": [], "links": []}}, "invalid_workflow"),
        ({"workflow": image_prompt(), "workflow_url": "http://example.com"}, "workflow_ambiguous"),
        ({"workflow": image_prompt(), "prompt": "x"}, "workflow_ambiguous"),
        ({"workflow": image_prompt(), "graph_id": "x"}, "workflow_ambiguous"),
        ({"type": "generate"}, "workflow_required"),
        ({"workflow_url": "ftp://example.com/x"}, "invalid_url"),
        ({"workflow_url": "http://127.0.0.1:1/x"}, "fetch_failed"),
        ({"prompt": "x", "colour": 3}, "unknown_input"),
        ({"prompt": "x", "color": "red"}, "invalid_input"),
        ({"workflow": image_prompt(), "color": 3}, "invalid_input"),
        ({"workflow": image_prompt(), "version_id": "none"}, "unknown_version"),
        ({"workflow": image_prompt(), "models_dir": "/etc"}, "path_outside_workspace"),
        ({"workflow": image_prompt(), "output_mode": "gcs"}, "no_bucket"),
        ({"workflow": image_prompt(), "output_mode": "s3", "s3_bucket": "results"}, "no_credentials"),
        ({"workflow": image_prompt(), "images": [{"name": "../x.png", "image": "AAAA"}]}, "invalid_name"),
        ({"workflow": image_prompt(), "images": [{"name": "x.png", "image": "%"}]}, "invalid_base64"),
        ({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "workflow_refused"),
        ({"workflow": node("Broken", message="planted")}, "node_failed"),
        ({"graph_id": "nothing"}, "unknown_graph"),
    ],
)
def test_bad_input_has_a_code_and_no_path_or_secret(host: WorkerHost, folder: Path, given: dict[str, Any], code: str) -> None:
    result = ask(host, {"version_id": "tiny", **given})
    assert result.get("code") == code, result
    text = json.dumps(result)
    assert str(folder) not in text
    assert str(Path.home()) not in text
    assert "planted-secret" not in text


def test_every_kind_of_output_is_collected_and_what_is_outside_is_not(host: WorkerHost) -> None:
    result = ask(host, {"version_id": "tiny", "workflow": node("EveryKind", prefix="k")}, job="kinds")
    kinds = {entry["filename"]: entry["kind"] for entry in result["files"]}
    assert kinds == {"k.png": "image", "k.wav": "audio", "k.mp4": "video", "k.glb": "3d", "kinds-9-0.txt": "text"}
    assert next(entry for entry in result["files"] if entry["kind"] == "text")["text"] == "words of k"
    assert result["errors"] == ["The output 'never.png' does not exist.", "The output 'passwd' does not exist."]


def test_the_input_and_output_of_worker_comfyui_are_accepted(host: WorkerHost) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 8, 7)).save(buffer, format="PNG")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "given.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "again"}},
    }
    images = [{"name": "given.png", "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}]
    result = ask(host, {"workflow": prompt, "images": images})
    assert list(result) == ["images"]
    entry = result["images"][0]
    assert (entry["type"], pixel(entry["data"])) == ("base64", (9, 8, 7))
    preview = {"1": image_prompt()["1"], "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    assert ask(host, {"workflow": preview}) == {"status": "success_no_images", "images": []}


def test_two_jobs_with_different_files_of_one_name_do_not_mix(host: WorkerHost) -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "same.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "same"}},
    }

    def given(color: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (color, 0, 0)).save(buffer, format="PNG")
        return {"workflow": prompt, "images": [{"name": "same.png", "image": base64.b64encode(buffer.getvalue()).decode()}]}

    async def all_at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*(host.service.handle({"id": f"j{color}", "input": given(color)}) for color in (10, 20, 30, 40)))

    assert [pixel(result["images"][0]["data"])[0] for result in host.run(all_at_once())] == [10, 20, 30, 40]


def test_progress_and_previews_are_reported(host: WorkerHost) -> None:
    reports: list[dict[str, Any]] = []
    given = {"version_id": "tiny", "workflow": node("Wait", seconds=1.6, mark="")}
    result = host.run(host.service.handle({"id": "p", "input": given}, reports.append))
    assert "error" not in result, result
    assert [report["seq"] for report in reports] == list(range(1, len(reports) + 1))
    assert any(report.get("value") and report["max"] == 16 and report["node"] == "9" for report in reports)
    previews = [report["preview"] for report in reports if "preview" in report]
    assert previews
    assert Image.open(io.BytesIO(base64.b64decode(previews[0]["base64"]))).size == (64, 64)
    quiet: list[dict[str, Any]] = []
    again = {**given, "previews": False, "workflow": node("Wait", seconds=1.5, mark="")}
    host.run(host.service.handle({"id": "q", "input": again}, quiet.append))
    assert not [report for report in quiet if "preview" in report]


def test_a_cancellation_reaches_the_running_node_and_no_other_job(host: WorkerHost, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def cancelled() -> float:
        job = {"id": "c", "input": {"version_id": "tiny", "workflow": node("Wait", seconds=30.0, mark=str(mark))}}
        task = asyncio.create_task(host.service.handle(job))
        await exists(mark)
        other = asyncio.create_task(host.service.handle({"id": "o", "input": {"version_id": "tiny", "prompt": "other"}}))
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "error" not in await other
        return time.monotonic() - began

    assert host.run(cancelled()) < 15
    assert mark.read_text(encoding="utf-8") == "begun"


def test_a_waiting_job_is_cancelled_in_the_queue(host: WorkerHost, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def cancelled() -> None:
        first = asyncio.create_task(
            host.service.handle(
                {"id": "f", "input": {"version_id": "tiny", "workflow": node("Wait", seconds=1.5, mark=str(tmp_path / "first"))}}
            )
        )
        await exists(tmp_path / "first")
        waiting = asyncio.create_task(
            host.service.handle({"id": "w", "input": {"version_id": "tiny", "workflow": node("Wait", seconds=0.5, mark=str(mark))}})
        )
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert "error" not in await first

    host.run(cancelled())
    assert not mark.exists()


def test_a_crash_fails_the_running_job_at_once_with_the_end_of_the_log_and_the_next_one_runs(host: WorkerHost) -> None:
    crashes = host.service.comfy.crashes
    began = time.monotonic()
    result = ask(host, {"version_id": "tiny", "workflow": node("Crash", code=7)})
    assert time.monotonic() - began < 20
    assert result["code"] == "comfy_crashed", result
    assert "return code 7" in result["error"]
    assert "the last words of this ComfyUI" in result["error"]
    assert host.service.comfy.crashes == crashes + 1
    after = ask(host, {"version_id": "tiny", "prompt": "after the crash"})
    assert "error" not in after, after
    assert after["timing"]["boot"] > 0.1


def test_an_output_over_the_payload_limit_is_returned_by_reference(host: WorkerHost) -> None:
    result = ask(host, {"version_id": "tiny", "workflow": node("LargeFile", nbytes=10_000_000)})
    entry = result["files"][0]
    assert (entry["size"], entry["spilled"]) == (10_000_000, True), result
    assert "base64" not in result
    piece = ask(host, {"type": "download_file", "path": entry["path"], "offset": 9_999_990})
    assert (base64.b64decode(piece["base64"]), piece["next_offset"]) == (bytes(10), None)
    assert "base64" in ask(host, {"version_id": "tiny", "workflow": node("LargeFile", nbytes=10_000_000)}, job="sync-1")


def test_a_graph_of_the_graphs_folder_runs_through_the_endpoint(host: WorkerHost, folder: Path) -> None:
    prompt = {
        "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "value", "type": "INT", "default": 2}},
        "2": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "same", "value": ["1", 0]}},
    }
    (folder / "graphs" / "echo.json").write_text(json.dumps({"kind": "comfy", "graph_id": "echo", "prompt": prompt}), encoding="utf-8")
    result = ask(host, {"graph_id": "echo", "inputs": {"value": 7}, "output_mode": "base64"})
    assert result.get("outputs") == {"same": 7}, result
    assert "echo" in ask(host, {"graph_id": "nothing", "output_mode": "base64"})["error"]


def test_an_image_of_a_deployed_graph_is_a_file_of_the_result(host: WorkerHost, folder: Path) -> None:
    prompt = {
        "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "color", "type": "INT", "default": 2}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": ["1", 0]}},
        "3": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "image", "value": ["2", 0]}},
    }
    (folder / "graphs" / "paint.yaml").write_text(json.dumps({"kind": "comfy", "graph_id": "paint", "prompt": prompt}), encoding="utf-8")
    result = ask(host, {"graph_id": "paint", "color": 0x00FF00, "output_mode": "base64"})
    assert pixel(result["base64"]) == (0, 255, 0), result
    assert [(entry["filename"], entry["kind"]) for entry in result["files"]] == [("image.png", "image")]


def test_verbose_returns_the_end_of_the_log(host: WorkerHost, folder: Path) -> None:
    result = ask(host, {"version_id": "tiny", "prompt": "x", "verbose": True})
    assert "Prompt executed" in result["log"] or "got prompt" in result["log"]
    assert str(folder) not in result["log"]
    assert "\x1b" not in result["log"]


def test_the_overhead_of_the_handler_is_small(host: WorkerHost) -> None:
    overheads = []
    for number in range(12):
        began = time.monotonic()
        result = ask(host, {"version_id": "tiny", "prompt": f"n{number}"})
        overheads.append(time.monotonic() - began - result["timing"]["run"])
    assert sorted(overheads)[len(overheads) // 2] < 0.15


def test_no_secret_is_in_any_file_of_the_worker(host: WorkerHost, folder: Path) -> None:
    ask(host, {"workflow": image_prompt(), "comfy_org_api_key": "planted-secret-of-the-account"})
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and b"planted-secret" in path.read_bytes()]
    assert not found
