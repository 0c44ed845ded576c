"""Messages about nodes inside a placed part: files, assets and previews are those of this server and of the page that receives them."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from samples.comfy_modules import FakeServer, Registry, install_comfy
from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import ExtensionContext, set_extension_context
from yggdrasill.server_ext.comfy.placement.inner_messages import InnerMessages
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt
from yggdrasill.server_ext.comfy.runner import QueueRunner

_FILE = {"filename": "a.png", "subfolder": "", "type": "temp"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    set_extension_context(ExtensionContext(QueueRunner()))
    server = install_comfy(monkeypatch, tmp_path)
    server.client_id = "page"
    (tmp_path / "temp").mkdir()
    yield server
    set_extension_context(None)


def messages() -> InnerMessages:
    """Return the messages of a call 7 with node 5."""
    posted = {"5": {"class_type": "Class5", "inputs": {}}}
    call = PartCall("soft", "7", 0, dict(posted), (), (), ("5",), (), False)
    prompt = {"7": {"class_type": "YggdrasillPlacedPart", "inputs": {}}}
    sys.modules["comfy_execution.progress"].global_progress_registry = Registry("p", None)  # type: ignore[attr-defined]
    return InnerMessages("7", "p", PartitionedPrompt(prompt, posted, {"7": call}, {"7": Placement(("b",))}))


def shown_file(server: FakeServer) -> dict[str, Any]:
    """Return the file of an ``executed`` message of an endpoint with assets, as the page receives it."""
    inner = messages()
    files = [{**_FILE, "data": base64.b64encode(b"picture").decode()}]
    output = {"images": [{**_FILE, "id": "theirs", "preview_id": "theirs too", "metadata": {"width": 4}}]}
    inner.watch("comfy", {"what": "executed", "node": "5", "output": output, "files": files})
    ((event, data, _),) = server.sent
    assert event == "executed"
    assert [(ids.node, kept) for ids, kept in inner.outputs] == [("5", data["output"])]
    return dict(data["output"]["images"][0])


def test_asset_ids_of_the_endpoint_are_removed(server: FakeServer) -> None:
    assert shown_file(server) == {"filename": "p-5-a.png", "subfolder": "", "type": "temp", "metadata": {"width": 4}}


def test_files_are_registered_as_assets_of_this_server(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = []

    def register(output: dict[str, Any], job_id: str, manager: Any) -> dict[str, Any]:
        registered.append((job_id, manager.name))
        return {name: [{**entry, "id": "ours"} for entry in entries] for name, entries in output.items()}

    module: Any = ModuleType("comfy_execution.asset_enrichment")
    module.register_executed_outputs = register
    monkeypatch.setitem(sys.modules, module.__name__, module)
    server.asset_manager = SimpleNamespace(name="manager")  # type: ignore[attr-defined]
    assert shown_file(server)["id"] == "ours"
    assert registered == [("p", "manager")]


def test_files_are_registered_by_a_comfyui_without_an_asset_manager(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("comfy_execution.asset_enrichment")
    module.enrich_output_with_assets = lambda output: {"images": [{**output["images"][0], "id": "ours"}]}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert shown_file(server)["id"] == "ours"


def test_a_file_that_cannot_be_registered_is_shown(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("comfy_execution.asset_enrichment")
    module.enrich_output_with_assets = lambda output: output["missing"]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert shown_file(server)["filename"] == "p-5-a.png"


@pytest.mark.parametrize("image_type, number", [("JPEG", 1), ("image/png", 2)])
async def test_a_page_that_does_not_know_metadata_receives_the_picture_alone(server: FakeServer, image_type: str, number: int) -> None:
    server.loop = asyncio.get_running_loop()
    compat.send_preview({"node_id": "5", "image_type": image_type}, b"picture", "page")
    await asyncio.sleep(0.05)
    assert server.sent == [(1, number.to_bytes(4, "big") + b"picture", "page")]


def test_a_preview_keeps_its_place_among_the_messages(server: FakeServer) -> None:
    server.sockets_metadata["page"] = {"feature_flags": {"supports_preview_metadata": True}}
    compat.send_json("progress", {"node": "5"}, "page")
    compat.send_preview({"node_id": "5", "prompt_id": "p"}, b"picture", "page")
    compat.send_json("executing", {"node": None}, "page")
    assert [event for event, *_ in server.sent] == ["progress", 4, "executing"]


async def test_a_preview_has_the_facts_of_the_workflow(server: FakeServer) -> None:
    server.loop = asyncio.get_running_loop()
    server.sockets_metadata["page"] = {"feature_flags": {"supports_preview_metadata": True}}
    server.workflow_metadata = {"workflow_id": "w", "node_id": "other"}  # type: ignore[attr-defined]
    compat.send_preview({"node_id": "5", "prompt_id": "p"}, b"picture", "page")
    await asyncio.sleep(0.05)
    ((event, payload, sid),) = server.sent
    length = int.from_bytes(payload[:4], "big")
    assert (event, sid, payload[4 + length :]) == (4, "page", b"picture")
    assert json.loads(payload[4 : 4 + length]) == {"workflow_id": "w", "node_id": "5", "prompt_id": "p"}
