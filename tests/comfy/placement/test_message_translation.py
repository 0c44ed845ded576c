"""Translation of ComfyUI's messages about a partitioned prompt to the posted prompt."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy.placement.message_translation import pack_outputs, translate_history, translate_message
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import InnerFailure, PartitionedPrompt, PostedPrompt

USERS: dict[str, Any] = {node: {"class_type": f"Class{node[-1]}", "inputs": {}} for node in ("1", "7:2", "7:3", "4")}


@pytest.fixture
def partitioned() -> PartitionedPrompt:
    """Nodes 7:2 and 7:3 run remotely in place of 7."""
    inside = {**{node: USERS[node] for node in ("7:2", "7:3")}, "in-x": {"class_type": "YggdrasillGraphInput", "inputs": {}}}
    call = PartCall("soft", "7", 0, inside, (), (), ("7:2", "7:3"), (), False)
    prompt = {"1": USERS["1"], "7": {"class_type": "YggdrasillPlacedPart", "inputs": {}}, "4": USERS["4"]}
    return PartitionedPrompt(prompt, USERS, {"7": call}, {"7": Placement(("b",))})


def test_a_cached_call_reports_its_inner_nodes_as_cached(partitioned: PartitionedPrompt) -> None:
    assert translate_message(partitioned, "execution_cached", {"nodes": ["1", "7"], "prompt_id": "p"}) == [
        ("execution_cached", {"nodes": ["1", "7:2", "7:3"], "prompt_id": "p"})
    ]


def test_the_node_of_a_call_is_never_reported_as_executing(partitioned: PartitionedPrompt) -> None:
    assert translate_message(partitioned, "executing", {"node": "7", "display_node": "7"}) == []
    assert translate_message(partitioned, "executing", {"node": "1"}) == [("executing", {"node": "1"})]
    assert translate_message(partitioned, "executing", {"node": None}) == [("executing", {"node": None})]


def test_outputs_of_inner_nodes_are_reported_once(partitioned: PartitionedPrompt) -> None:
    packed = pack_outputs({"7:2": {"text": ["a"]}, "7:3": {"text": ["b"]}})
    partitioned.shown.add("7:2")
    told = translate_message(partitioned, "executed", {"node": "7", "display_node": "7", "output": packed, "prompt_id": "p"})
    assert told == [("executed", {"node": "7:3", "display_node": "7:3", "output": {"text": ["b"]}, "prompt_id": "p"})]
    assert translate_message(partitioned, "executed", {"node": "7", "output": None}) == []
    assert pack_outputs({}) is None


def test_an_error_is_reported_on_the_inner_node(partitioned: PartitionedPrompt) -> None:
    said = {"node_id": "7", "node_type": "YggdrasillPlacedPart", "exception_type": "x", "exception_message": "y", "traceback": ["z"]}
    partitioned.executed |= {"7:2", "7:3"}
    partitioned.running["7"] = "7:3"
    ((_, face),) = translate_message(partitioned, "execution_error", {**said, "executed": ["1"]})
    assert (face["node_id"], face["node_type"], face["executed"]) == ("7:3", "Class3", ["1", "7:2"])
    partitioned.failures["7"] = InnerFailure("7:2", "Class2", "ValueError", "too cold\n", ("  line\n",))
    ((_, facts),) = translate_message(partitioned, "execution_error", said)
    assert facts["node_id"] == "7:2"
    assert (facts["exception_type"], facts["exception_message"], facts["traceback"]) == ("ValueError", "too cold\n", ["  line\n"])
    ((_, stopped),) = translate_message(partitioned, "execution_interrupted", {"node_id": "7", "node_type": "x", "executed": []})
    assert (stopped["node_id"], stopped["node_type"]) == ("7:3", "Class3")


def test_an_error_of_a_local_node_is_unchanged(partitioned: PartitionedPrompt) -> None:
    said = {"node_id": "4", "node_type": "Class4", "executed": ["1", "7"]}
    assert translate_message(partitioned, "execution_error", said) == [("execution_error", {**said, "executed": ["1", "7:2", "7:3"]})]


def test_the_history_has_outputs_of_posted_nodes(partitioned: PartitionedPrompt) -> None:
    packed = pack_outputs({"7:2": {"text": ["a"]}})
    result = {"outputs": {"7": packed, "4": {"images": []}}, "meta": {"7": {"node_id": "7"}, "4": {"node_id": "4"}}}
    told = translate_history(partitioned, result)
    assert told["outputs"] == {"7:2": {"text": ["a"]}, "4": {"images": []}}
    assert told["meta"]["7:2"] == {"node_id": "7:2", "display_node": "7:2", "parent_node": None, "real_node_id": "7:2"}
    assert told["meta"].keys() == {"7:2", "4"}


def test_a_copy_of_a_posted_prompt_is_a_plain_dict(partitioned: PartitionedPrompt) -> None:
    posted = PostedPrompt(USERS)
    posted.partitioned = partitioned
    copied = copy.deepcopy(posted)
    assert type(copied) is dict
    assert copied == USERS
