"""Files and texts that nodes at an endpoint show: they arrive, or are reported as left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.comfy_modules import FakeServer, install_comfy
from yggdrasill.executor.context import RunContext
from yggdrasill.remote.channel import MAX_EVENT_BYTES
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.server_ext.comfy import preview_files
from yggdrasill.server_ext.comfy.event_throttle import EventThrottle
from yggdrasill.server_ext.comfy.placement.inner_messages import InnerMessages
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.deployment import canonical_json

GRAPH = ComfyGraph(
    {
        "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "x", "type": "INT"}},
        "2": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "y", "type": "INT", "value": ["1", 0]}},
    },
    "g",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    found = install_comfy(monkeypatch, tmp_path)
    found.client_id = "page"
    (tmp_path / "output").mkdir()
    return found


def shown(server: FakeServer, output: Any) -> tuple[Any, list[str]]:
    """Send an output through an endpoint's throttle to a caller, and return what its page receives: the output and the texts on nodes."""
    posted = {"5": {"class_type": "Class5", "inputs": {}}}
    call = PartCall("part", "1", 0, dict(posted), (), (), ("5",), (), False)
    partitioned = PartitionedPrompt({"1": {"class_type": "YggdrasillPlacedPart", "inputs": {}}}, posted, {"1": call}, {})
    caller = InnerMessages("1", "prompt-id", partitioned)

    def send(kind: str, facts: dict[str, Any]) -> None:
        assert len(canonical_json(facts)) < MAX_EVENT_BYTES
        caller.watch("comfy", {"what": kind, **facts})

    throttle = EventThrottle(PromptRun("p", GRAPH, RunContext(0), send))
    throttle.handle("executed", {"node": "5", "output": output})
    (message,) = [data for event, data, _ in server.sent if event == "executed"]
    return message["output"], [data[0] for event, data, _ in server.sent if event == 3]


def file_of(folder: Path, name: str, size: int) -> dict[str, str]:
    (folder / "output" / name).write_bytes(bytes(number % 251 for number in range(size)))
    return {"filename": name, "subfolder": "", "type": "output"}


@pytest.mark.parametrize("sizes", [(0,), (10, 20), (300 << 10,), (5 << 20, 100, 512 << 10)])
def test_files_of_every_size_arrive_with_the_same_bytes(server: FakeServer, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    files = [file_of(tmp_path, f"{index}.png", size) for index, size in enumerate(sizes)]
    output, texts = shown(server, {"images": files})
    assert texts == []
    assert len(output["images"]) == len(files)
    for stored, file in zip(output["images"], files, strict=True):
        assert (tmp_path / stored["type"] / stored["filename"]).read_bytes() == (tmp_path / "output" / file["filename"]).read_bytes()


def test_files_over_the_limit_and_missing_files_are_reported_on_the_node(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preview_files, "MAX_BYTES", 1 << 20)
    files = [file_of(tmp_path, "small.png", 10), file_of(tmp_path, "large.mp4", 2 << 20)]
    output, texts = shown(server, {"images": [*files, {"filename": "no.png", "subfolder": "", "type": "output"}]})
    assert [item["filename"] for item in output["images"]] == ["prompt-i-5-small.png"]
    (text,) = texts
    assert "file 'large.mp4' of 2048 KiB, over the limit of 1 MiB" in text
    assert "file 'no.png', which does not exist" in text
    assert "large.mp4" in caplog.text


def test_a_text_of_400_kilobytes_arrives_and_a_longer_one_is_reported(server: FakeServer) -> None:
    assert shown(server, {"text": ["x" * (400 << 10)]}) == ({"text": ["x" * (400 << 10)]}, [])
    server.sent.clear()
    output, texts = shown(server, {"text": ["x" * (600 << 10)]})
    assert output is None
    assert texts == ["Not sent by the endpoint: an output of 600 KiB, over the limit of 512 KiB"]
