"""The virtual socket: it forwards ComfyUI's messages about one prompt, and never raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.server_ext.comfy.virtual_socket import VirtualSocket

Told = list[tuple[str, dict[str, Any]]]


def socket(told: Told, state: str | None = "running") -> VirtualSocket:
    return VirtualSocket("p", lambda kind, facts: told.append((kind, facts)), lambda prompt_id: state)


def message(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"prompt_id": "p", **data}}


async def test_messages_about_the_prompt_are_forwarded() -> None:
    told: Told = []
    listener = socket(told)
    for sent in (
        message("execution_start"),
        message("execution_cached", nodes=["1"]),
        message("executing", node="2"),
        message("executed", node="2", output={"text": ["x"]}),
        message("execution_success"),
        message("executing", node=None),
    ):
        await listener.send_json(sent)
    assert told == [
        ("started", {}),
        ("cached", {"nodes": ["1"]}),
        ("executing", {"node": "2"}),
        ("executed", {"node": "2", "output": {"text": ["x"]}}),
        ("success", {}),
        ("ended", {}),
    ]


async def test_messages_about_other_prompts_are_ignored() -> None:
    told: Told = []
    listener = socket(told)
    await listener.send_json({"type": "executing", "data": {"prompt_id": "other", "node": "2"}})
    await listener.send_json({"type": "status", "data": {"status": {}}})
    assert told == []


async def test_a_prompt_in_no_queue_is_lost() -> None:
    told: Told = []
    await socket(told, None).send_json({"type": "status", "data": {}})
    assert told == [("lost", {})]


async def test_progress_is_forwarded_once_per_change_and_only_with_steps() -> None:
    told: Told = []
    listener = socket(told)
    for value, state in ((0.0, "running"), (1.0, "running"), (1.0, "running"), (3.0, "finished")):
        nodes = {
            "4": {"value": value, "max": 3.0, "state": state},
            "5": {"value": 0.0, "max": 1.0, "state": "running"},
            "6": {"value": 1.0, "max": 1.0, "state": "finished"},
        }
        await listener.send_json(message("progress_state", nodes=nodes))
    assert told == [("progress", {"node": "4", "value": value, "max": 3.0}) for value in (0.0, 1.0, 3.0)]


async def test_an_error_has_node_type_and_traceback() -> None:
    told: Told = []
    await socket(told).send_json(
        message(
            "execution_error",
            node_id="7",
            node_type="KSampler",
            exception_type="builtins.ValueError",
            exception_message="no\n",
            traceback=["line"],
        )
    )
    assert told == [
        ("error", {"node": "7", "node_type": "KSampler", "exception_type": "builtins.ValueError", "message": "no", "traceback": ["line"]})
    ]


async def test_a_preview_has_its_node() -> None:
    told: Told = []
    metadata = json.dumps({"node_id": "7", "prompt_id": "p", "image_type": "image/jpeg"}).encode()
    await socket(told).send_bytes(bytearray((4).to_bytes(4, "big") + len(metadata).to_bytes(4, "big") + metadata + b"\xff\xd8picture"))
    assert told == [("preview", {"node": "7", "type": "image/jpeg", "image": b"\xff\xd8picture"})]


def text_message(node: str, text: str) -> bytes:
    """A message as ComfyUI's ``send_progress_text`` sends it."""
    encoded = node.encode()
    return (3).to_bytes(4, "big") + len(encoded).to_bytes(4, "big") + encoded + text.encode()


async def test_a_text_on_a_node_of_the_prompt_is_forwarded() -> None:
    told: Told = []
    listener = socket(told)
    await listener.send_bytes(text_message("7", "too early"))
    await listener.send_json(message("executing", node="7"))
    await listener.send_bytes(text_message("7", "width: 8, height: 8"))
    await listener.send_bytes(text_message("8", "of another prompt"))
    await listener.send_json(message("executing", node=None))
    await listener.send_bytes(text_message("7", "too late"))
    assert [facts for kind, facts in told if kind == "text"] == [{"node": "7", "text": "width: 8, height: 8"}]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["status", "progress_state", "executing", "executed", "execution_error", "execution_cached", "execution_start", ""])


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {"type": KINDS, "data": JSON | st.fixed_dictionaries({"prompt_id": st.just("p"), "nodes": JSON, "node": JSON, "traceback": JSON})}
    )
    | JSON
)
async def test_no_message_raises(sent: Any) -> None:
    await socket([]).send_json(sent)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=40)
    | st.binary(max_size=40).map(lambda rest: b"\0\0\0\4\0\0\0\2" + rest)
    | st.binary(max_size=20).map(lambda rest: b"\0\0\0\3\0\0\0\1" + rest)
    | st.none()
)
async def test_no_bytes_raise(sent: Any) -> None:
    await socket([]).send_bytes(sent)


async def test_a_listener_that_raises_does_not_reach_comfyui(caplog: pytest.LogCaptureFixture) -> None:
    def broken(kind: str, facts: dict[str, Any]) -> None:
        raise RuntimeError("broken")

    await VirtualSocket("p", broken, lambda prompt_id: "running").send_json(message("execution_start"))
    assert "RuntimeError: broken" in caplog.text


async def test_a_node_that_another_node_created_has_its_creator_once_its_progress_is_known() -> None:
    told: Told = []
    listener = socket(told)
    state = {"state": "running", "value": 0.0, "max": 1.0, "display_node_id": "5", "parent_node_id": "4", "real_node_id": "4"}
    await listener.send_json(message("executing", node="4.0.0.5", display_node="5"))
    await listener.send_json(message("progress_state", nodes={"4.0.0.5": state}))
    await listener.send_json(message("executed", node="4.0.0.5", display_node="5", output={"text": ["x"]}))
    await listener.send_json(message("executed", node="5", display_node="5", output=None))
    assert told == [
        ("executing", {"node": "4.0.0.5", "display": "5"}),
        ("executed", {"node": "4.0.0.5", "display": "5", "output": {"text": ["x"]}, "parent": "4", "real": "4"}),
        ("executed", {"node": "5", "output": None}),
    ]
