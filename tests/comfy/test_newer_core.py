"""What a ComfyUI newer than 0.33 adds to messages, shown files and nested prompts; an older one receives what it always received."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from samples.comfy_modules import Executor, FakeServer, install_comfy
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.compat import guard
from yggdrasill.server_ext.comfy.preview_files import store_files
from yggdrasill.server_ext.comfy.virtual_socket import VirtualSocket

PICTURE = b"\xff\xd8 a picture"
FILE = {"filename": "a.png", "subfolder": "", "type": "temp"}
CARRIED = [{**FILE, "data": base64.b64encode(b"bytes").decode("ascii")}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    guard._log.forget()
    return install_comfy(monkeypatch, tmp_path)


# -- previews ----------------------------------------------------------------------------------------------------


def sent_preview(server: FakeServer, image: bytes, *, understands: bool = True, **metadata: Any) -> tuple[int, bytes]:
    """Return the event and the payload of a preview for the client ``page``."""
    server.sockets_metadata["page"] = {"feature_flags": {"supports_preview_metadata": understands}}

    async def send() -> None:
        server.loop = asyncio.get_running_loop()
        compat.send_preview(metadata, image, "page")
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(send())
    ((event, payload, sid),) = server.sent
    assert sid == "page"
    return event, bytes(payload)


def read_preview(server: FakeServer, payload: bytes) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []
    socket = VirtualSocket("p", lambda kind, facts: seen.append({"kind": kind, **facts}), lambda prompt_id: "running")
    asyncio.run(socket.send_bytes((4).to_bytes(4, "big") + payload))
    return seen[0]


def test_a_preview_has_the_metadata_of_the_running_workflow(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "workflow_metadata", {"workflow_id": "w", "node_id": "other"}, raising=False)
    event, payload = sent_preview(server, PICTURE, prompt_id="p", node_id="5", image_type="image/jpeg")
    assert event == 4
    assert b'"workflow_id": "w"' in payload
    assert read_preview(server, payload) == {"kind": "preview", "node": "5", "type": "image/jpeg", "image": PICTURE}


@pytest.mark.parametrize("metadata", [{}, None])
def test_a_preview_without_metadata_of_the_workflow_is_unchanged(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, metadata: Any
) -> None:
    monkeypatch.setattr(server, "workflow_metadata", metadata, raising=False)
    _, payload = sent_preview(server, PICTURE, prompt_id="p", node_id="5")
    assert payload[4:].startswith(b'{"prompt_id": "p", "node_id": "5"}')


def test_a_preview_that_names_no_prompt_has_no_metadata_of_the_workflow(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "workflow_metadata", {"workflow_id": "w"}, raising=False)
    _, payload = sent_preview(server, PICTURE, node_id="5")
    assert b"workflow_id" not in payload


# -- shown files -------------------------------------------------------------------------------------------------


def install_enrichment(monkeypatch: pytest.MonkeyPatch, kind: str, **functions: Any) -> None:
    module = ModuleType(f"comfy_execution.{kind}_enrichment")
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def with_id(output: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: [{**entry, "id": name} for entry in entries] for key, entries in output.items()}


def stored(entry: Mapping[str, Any]) -> Any:
    return store_files({"images": [dict(entry)]}, CARRIED, lambda filename: f"here-{filename}", "p")


def test_the_asset_ids_of_an_endpoint_are_not_passed_on(server: FakeServer) -> None:
    output = stored({**FILE, "id": "there", "preview_id": "there", "metadata": {"kind": "image"}})
    assert output == {"images": [{"filename": "here-a.png", "subfolder": "", "type": "temp", "metadata": {"kind": "image"}}]}


def test_a_file_of_an_endpoint_is_registered_as_an_asset_of_this_server(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "asset_manager", SimpleNamespace(name="here"), raising=False)
    install_enrichment(monkeypatch, "asset", register_executed_outputs=lambda output, job, manager: with_id(output, manager.name))
    assert stored({**FILE, "id": "there"})["images"][0]["id"] == "here"


def test_a_comfyui_without_asset_manager_registers_by_its_own_function(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    install_enrichment(monkeypatch, "asset", enrich_output_with_assets=lambda output: with_id(output, "older"))
    assert stored(FILE)["images"][0]["id"] == "older"


def test_a_file_of_an_older_endpoint_is_shown_with_its_media_properties(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def enrich(output: Any) -> Any:
        return {key: [{"metadata": {"kind": "image"}, **entry} for entry in entries] for key, entries in output.items()}

    install_enrichment(monkeypatch, "media", enrich_output_with_media_metadata=enrich)
    assert stored(FILE)["images"][0]["metadata"] == {"kind": "image"}


def test_a_file_that_cannot_be_registered_is_shown_without_an_asset(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(output: Any) -> Any:
        raise OSError("the database is locked")

    install_enrichment(monkeypatch, "asset", enrich_output_with_assets=broken)
    assert stored({**FILE, "id": "there"})["images"] == [{"filename": "here-a.png", "subfolder": "", "type": "temp"}]
    assert "registered as assets" in caplog.text


# -- nested prompts ----------------------------------------------------------------------------------------------


def test_a_nested_prompt_registers_its_files_with_the_assets_of_the_server(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(Executor):
        def __init__(self, server: Any, cache_type: Any = False, cache_args: Any = None, asset_manager: Any = None) -> None:
            super().__init__(server, cache_type, cache_args)
            self.asset_manager = asset_manager

    monkeypatch.setattr(sys.modules["execution"], "PromptExecutor", Newer)
    manager = SimpleNamespace()
    monkeypatch.setattr(server, "asset_manager", manager, raising=False)
    assert compat.new_executor().asset_manager is manager
