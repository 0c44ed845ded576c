"""Messages of other packs: those of a job's node reach the caller of the job alone, all others go where ComfyUI sends them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samples.comfy_modules import FakeServer, install_comfy
from yggdrasill.server_ext.comfy.custom_messages import CUSTOM_MESSAGE, MAX_MESSAGE, is_custom, route_custom_messages
from yggdrasill.server_ext.comfy.placement.inner_messages import InnerMessages
from yggdrasill.server_ext.comfy.virtual_socket import VirtualSocket


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    """A server on which prompt ``job`` belongs to a job."""
    found = install_comfy(monkeypatch, tmp_path)
    route_custom_messages(lambda prompt_id: prompt_id == "job")
    return found


def execute(prompt_id: str | None) -> None:
    executing: Any = sys.modules["comfy_execution.utils"]
    executing.context.set(None if prompt_id is None else SimpleNamespace(prompt_id=prompt_id, node_id="5"))


@pytest.mark.parametrize("sid", [None, "job"])
def test_a_message_of_a_jobs_node_goes_to_the_socket_of_the_job_alone(server: FakeServer, sid: str | None) -> None:
    execute("job")
    server.send_sync("impact-node-feedback", {"node_id": "5", "value": "x"}, sid)
    facts = {"prompt_id": "job", "event": "impact-node-feedback", "data": {"node_id": "5", "value": "x"}}
    assert server.sent == [(CUSTOM_MESSAGE, facts, "job")]


@pytest.mark.parametrize("event", ["progress", "executed", 3])
def test_a_message_of_comfyui_that_a_jobs_node_sends_to_all_goes_to_the_job(server: FakeServer, event: Any) -> None:
    execute("job")
    server.send_sync(event, {"node": "5"})
    assert server.sent == [(event, {"node": "5"}, "job")]


@pytest.mark.parametrize("prompt_id", [None, "owner"])
def test_the_messages_of_the_owners_prompts_are_not_touched(server: FakeServer, prompt_id: str | None) -> None:
    execute(prompt_id)
    sent = [("pack-event", {"x": 1}, None), ("pack-event", {"x": 1}, "page"), ("progress", {}, None), (3, b"", None), ("status", {}, None)]
    for message in sent:
        server.send_sync(*message)
    assert server.sent == sent


def test_the_status_of_the_queue_goes_to_all_pages(server: FakeServer) -> None:
    execute("job")
    server.send_sync("status", {"status": {}})
    assert server.sent == [("status", {"status": {}}, None)]


@pytest.mark.parametrize("event, value", [("pack-object", object()), ("pack-large", "y" * MAX_MESSAGE)])
def test_a_message_that_cannot_be_sent_is_left_out_and_logged(
    server: FakeServer, event: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    execute("job")
    server.send_sync(event, {"x": value})
    assert server.sent == []
    assert f"message {event!r} of a node is left out" in caplog.text


@pytest.mark.parametrize("event", ["status", "executing", "progress_state", "yggdrasill.jobs", "", "x" * 200, 3, None])
def test_names_of_comfyui_and_of_the_extension_are_not_custom(event: Any) -> None:
    assert not is_custom(event)


async def test_the_socket_of_a_run_forwards_a_custom_message() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    listener = VirtualSocket("job", lambda kind, facts: told.append((kind, facts)), lambda prompt_id: "running")
    for prompt_id in ("job", "other"):
        await listener.send_json({"type": CUSTOM_MESSAGE, "data": {"prompt_id": prompt_id, "event": "pack", "data": [1]}})
    await listener.send_json({"type": "pack", "data": [2]})
    assert told == [("custom", {"event": "pack", "data": [1]})]


def test_the_caller_sends_a_custom_message_to_the_page_of_the_prompt(server: FakeServer) -> None:
    server.client_id = "page"
    messages = InnerMessages("1", "prompt", None)
    for event in ("pack", "executing", "yggdrasill.jobs"):
        messages.watch("comfy", {"what": "custom", "event": event, "data": {"prompt_id": "there", "node": "5"}})
    assert server.sent == [("pack", {"prompt_id": "prompt", "node": "5"}, "page")]
