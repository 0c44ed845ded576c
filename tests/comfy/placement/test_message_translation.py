"""Translation of ComfyUI's messages about a partitioned prompt to the posted prompt."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest

from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy.placement.message_translation import pack_outputs, translate_history, translate_message
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import InnerFailure, NodeIds, PartitionedPrompt, PostedPrompt

USERS: dict[str, Any] = {node: {"class_type": f"Class{node[-1]}", "inputs": {}} for node in ("1", "7:2", "7:3", "4")}


@pytest.fixture
def partitioned() -> PartitionedPrompt:
    """Nodes 7:2 and 7:3 run remotely in place of 7."""
    inside = {**{node: USERS[node] for node in ("7:2", "7:3")}, "in-x": {"class_type": "YggdrasillGraphInput", "inputs": {}}}
    call = PartCall("soft", "7", 0, inside, (), (), ("7:2", "7:3"), (), False)
    prompt = {"1": USERS["1"], "7": {"class_type": "YggdrasillPlacedPart", "inputs": {}}, "4": USERS["4"]}
    return PartitionedPrompt(prompt, USERS, {"7": call}, {"7": Placement(("b",))})


def packed_outputs(**outputs: Any) -> Any:
    return pack_outputs((NodeIds.of(node), output) for node, output in outputs.items())


class DynamicPrompt:
    """ComfyUI's prompt with copies of node 7, which node 4 created, and of a node 9 that is not placed."""

    nodes: ClassVar[dict[str, str]] = {"4.0.0.1_7": "7", "4.0.0.3": "4", "4.0.0.1_9": "9"}

    def __init__(self, plan: str) -> None:
        placed = {"class_type": "YggdrasillPlacedPart", "inputs": {"plan": plan}}
        self._nodes = {"4.0.0.1_7": placed, "4.0.0.3": placed, "4.0.0.1_9": {"class_type": "Class9", "inputs": {}}}

    def has_node(self, node_id: str) -> bool:
        return node_id in self._nodes

    def get_node(self, node_id: str) -> Any:
        return self._nodes[node_id]

    def get_display_node_id(self, node_id: str) -> str:
        return self.nodes.get(node_id, node_id)

    def get_parent_node_id(self, node_id: str) -> str | None:
        return "4" if node_id in self.nodes else None

    def get_real_node_id(self, node_id: str) -> str:
        return "4" if node_id in self.nodes else node_id


@pytest.fixture
def looped(partitioned: PartitionedPrompt) -> PartitionedPrompt:
    """The same prompt while a loop that node 4 ends runs copies of the call 7."""
    partitioned.dynprompt = DynamicPrompt(partitioned.calls["7"].plan)
    return partitioned


def test_a_copy_of_a_call_is_reported_as_copies_of_its_inner_nodes(looped: PartitionedPrompt) -> None:
    assert [looped.call_of(node) for node in ("7", "4.0.0.1_7", "4.0.0.3", "4.0.0.1_9", "1")] == ["7", "7", "7", None, None]
    assert looped.ids_in("4.0.0.1_7", NodeIds.of("7:2")) == NodeIds("4.0.0.1_7:2", "7:2", "4", "4")
    assert looped.ids_in("4.0.0.3", NodeIds.of("7:2")) == NodeIds("4.0.0.3.7:2", "4", "4", "4")
    assert looped.ids_in("4.0.0.1_7", NodeIds.of("7:2.0.0.5", "7:2", "7:2", "7:2")) == NodeIds(
        "4.0.0.1_7:2.0.0.5", "7:2", "4.0.0.1_7:2", "4"
    )
    assert looped.ids_in("7", NodeIds.of("7:2")) == NodeIds("7:2", "7:2", None, "7:2")
    assert translate_message(looped, "executing", {"node": "4.0.0.1_7", "display_node": "7"}) == []
    other = {"node": "4.0.0.1_9", "display_node": "9"}
    assert translate_message(looped, "executing", other) == [("executing", other)]


def test_outputs_of_a_copy_are_reported_under_its_ids(looped: PartitionedPrompt) -> None:
    packed = packed_outputs(**{"7:2": {"text": ["a"]}})
    looped.started.add("4.0.0.1_7")
    told = translate_message(looped, "executed", {"node": "4.0.0.1_7", "display_node": "7", "output": packed})
    assert told == [("executed", {"node": "4.0.0.1_7:2", "display_node": "7:2", "output": {"text": ["a"]}})]
    history = translate_history(looped, {"outputs": {"4.0.0.1_7": packed}, "meta": {"4.0.0.1_7": {}}})
    assert history["outputs"] == {"4.0.0.1_7:2": {"text": ["a"]}}
    assert history["meta"]["4.0.0.1_7:2"] == {
        "node_id": "4.0.0.1_7:2",
        "display_node": "7:2",
        "parent_node": "4",
        "real_node_id": "4",
    }


def test_progress_has_inner_nodes_alone(looped: PartitionedPrompt) -> None:
    looped.copied["4.0.0.1_7:2"] = NodeIds("4.0.0.1_7:2", "7:2", "4", "4")
    state = {"value": 1, "display_node_id": "x", "parent_node_id": None, "real_node_id": "x"}
    nodes = dict.fromkeys(["1", "7", "7:2", "4.0.0.1_7", "4.0.0.1_7:2"], state)
    ((_, facts),) = translate_message(looped, "progress_state", {"prompt_id": "p", "nodes": nodes})
    assert facts["nodes"].keys() == {"1", "7:2", "4.0.0.1_7:2"}
    assert facts["nodes"]["7:2"] == state
    assert facts["nodes"]["4.0.0.1_7:2"] == {"value": 1, "display_node_id": "7:2", "parent_node_id": "4", "real_node_id": "4"}


def test_an_error_in_a_copy_stays_where_comfyui_reports_it(looped: PartitionedPrompt) -> None:
    said = {"node_id": "4", "node_type": "Class4", "exception_type": "x", "exception_message": "b: too cold\n", "traceback": ["z"]}
    looped.failures["4.0.0.1_7"] = InnerFailure("7:2", "Class2", "ValueError", "too cold\n", ("  line\n",), True, "b: too cold")
    ((_, facts),) = translate_message(looped, "execution_error", {**said, "executed": ["4.0.0.1_7"]})
    assert (facts["node_id"], facts["node_type"], facts["exception_type"]) == ("4", "Class4", "ValueError")
    assert (facts["exception_message"], facts["traceback"]) == ("too cold\n", ["  line\n"])
    assert facts["executed"] == ["4.0.0.1_7:2", "4.0.0.1_7:3"]
    other = {**said, "exception_message": "another error"}
    assert translate_message(looped, "execution_error", other) == [("execution_error", other)]


def test_an_error_of_the_call_of_a_copy_is_reported_on_a_node_of_the_part(looped: PartitionedPrompt) -> None:
    said = {"node_id": "4", "node_type": "Class4", "exception_type": "x", "exception_message": "no answer\n", "traceback": []}
    looped.failures["4.0.0.1_7"] = InnerFailure("7:2", "Class2", "EndpointUnreachable", "no answer\n", raised="no answer")
    ((_, facts),) = translate_message(looped, "execution_error", said)
    assert (facts["node_id"], facts["node_type"], facts["exception_type"]) == ("7:2", "Class2", "EndpointUnreachable")


def test_of_a_cached_call_the_outputs_are_shown_that_comfyui_shows_again(partitioned: PartitionedPrompt) -> None:
    packed = packed_outputs(**{"7:2": {"text": ["a"]}, "7:3": {"text": ["b"]}})
    partitioned.repeated = frozenset({"Class3"})
    told = translate_message(partitioned, "executed", {"node": "7", "display_node": "7", "output": packed})
    assert told == [("executed", {"node": "7:3", "display_node": "7:3", "output": {"text": ["b"]}})]
    assert translate_history(partitioned, {"outputs": {"7": packed}, "meta": {"7": {}}})["outputs"] == {"7:3": {"text": ["b"]}}


def test_a_cached_call_reports_its_inner_nodes_as_cached(partitioned: PartitionedPrompt) -> None:
    assert translate_message(partitioned, "execution_cached", {"nodes": ["1", "7"], "prompt_id": "p"}) == [
        ("execution_cached", {"nodes": ["1", "7:2", "7:3"], "prompt_id": "p"})
    ]


def test_the_node_of_a_call_is_never_reported_as_executing(partitioned: PartitionedPrompt) -> None:
    assert translate_message(partitioned, "executing", {"node": "7", "display_node": "7"}) == []
    assert translate_message(partitioned, "executing", {"node": "1"}) == [("executing", {"node": "1"})]
    assert translate_message(partitioned, "executing", {"node": None}) == [("executing", {"node": None})]


def test_outputs_of_inner_nodes_are_reported_once(partitioned: PartitionedPrompt) -> None:
    packed = packed_outputs(**{"7:2": {"text": ["a"]}, "7:3": {"text": ["b"]}})
    partitioned.started.add("7")
    partitioned.shown.add("7:2")
    told = translate_message(partitioned, "executed", {"node": "7", "display_node": "7", "output": packed, "prompt_id": "p"})
    assert told == [("executed", {"node": "7:3", "display_node": "7:3", "output": {"text": ["b"]}, "prompt_id": "p"})]
    assert translate_message(partitioned, "executed", {"node": "7", "output": None}) == []
    assert pack_outputs([]) is None


def test_an_error_is_reported_on_the_inner_node(partitioned: PartitionedPrompt) -> None:
    said = {"node_id": "7", "node_type": "YggdrasillPlacedPart", "exception_type": "x", "exception_message": "y", "traceback": ["z"]}
    partitioned.executed |= {"7:2", "7:3"}
    partitioned.running["7"] = NodeIds.of("7:3")
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
    packed = packed_outputs(**{"7:2": {"text": ["a"]}})
    partitioned.started.add("7")
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
