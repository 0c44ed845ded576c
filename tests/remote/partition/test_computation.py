"""Random prompts, whole and partitioned, run by a small ComfyUI: equal results from equal nodes for every placement."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from samples.comfy_interpreter import Interpreter
from samples.comfy_prompts import SCHEMAS, RandomSource, random_parts, random_prompt, run_prompt
from samples.comfy_schemas import comfy_schemas
from yggdrasill.errors import PartitionError
from yggdrasill.remote.comfy_ports import INPUT_NODE, is_link, type_transferability
from yggdrasill.remote.partition import MOST_PORTS, NodeSchema, NodeSchemas, Part, Partition, partition_prompt, restore_prompt

Prompt = dict[str, Any]
DRAWN = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Case:
    """A prompt, the parts to place, and the requested outputs."""

    prompt: Prompt
    parts: list[Part]
    targets: set[str] | None

    @classmethod
    def draw(cls, dice: RandomSource, size: int) -> Case:
        prompt = random_prompt(dice, size)
        parts = random_parts(prompt, dice)
        sinks = sorted(node for node in prompt if SCHEMAS[prompt[node]["class_type"]].is_output_node)
        targets = {node for node in sinks if dice.random() < 0.6} if dice.random() < 0.25 else None
        return cls(prompt, parts, targets)

    def partition_prompt(self) -> Partition | None:
        """Return the partition, or None if no node of some part can run on an endpoint."""
        return partitioned_or_none(self.prompt, self.parts, SCHEMAS, self.targets)

    @property
    def needed(self) -> set[str]:
        """Return the nodes that the requested outputs need."""
        sinks = {node for node in self.prompt if SCHEMAS[self.prompt[node]["class_type"]].is_output_node}
        return needs(self.prompt, sinks if self.targets is None else sinks & self.targets)


def partitioned_or_none(prompt: Prompt, parts: list[Part], schemas: NodeSchemas, targets: set[str] | None = None) -> Partition | None:
    try:
        return partition_prompt(prompt, parts, schemas, targets)
    except PartitionError as error:
        if "can run on an endpoint" not in error.message:
            raise
        return None


def sources(node: Any) -> set[str]:
    return {value[0] for value in node["inputs"].values() if is_link(value)}


def needs(prompt: Prompt, nodes: Iterable[str]) -> set[str]:
    """Return ``nodes`` and all nodes before them."""
    found, stack = set(nodes), list(nodes)
    while stack:
        fresh = sources(prompt[stack.pop()]) - found
        found |= fresh
        stack += fresh
    return found


def computation(prompt: Prompt, node_id: str, known: dict[str, int]) -> int:
    """Return one number for a node's class, constants and links, transitively."""
    if node_id not in known:
        node = prompt[node_id]
        inputs = [
            (name, ("link", computation(prompt, value[0], known), value[1]) if is_link(value) else json.dumps(value, sort_keys=True))
            for name, value in sorted(node["inputs"].items())
        ]
        known[node_id] = hash((node["class_type"], tuple(inputs)))
    return known[node_id]


def check_same_run(case: Case, partition: Partition) -> tuple[Interpreter, Interpreter]:
    """Check that the partitioned prompt gives the results of the whole one, and that each node runs where it should and not more often."""
    whole, partitioned = run_prompt(case.prompt, case.targets), run_prompt(partition.prompt, case.targets)
    assert partitioned.results == whole.results
    eager = needs(case.prompt, partition.eager)
    stopped = {node for call in partition.calls if call.node_id in partitioned.blocked_calls for node in (*call.nodes, *call.copies)}
    copied = Counter(node for call in partition.calls for node in call.copies)
    for node in case.needed:
        if partitioned.calls[node] and not whole.calls[node]:
            assert node in eager, f"{node} ran without a request"
        if whole.calls[node] and not partitioned.calls[node]:
            assert node in stopped, f"{node} did not run"
        assert partitioned.calls[node] <= 1 + copied[node], f"{node} ran too often"
    return whole, partitioned


def check_plugged(case: Case, partition: Partition) -> None:
    """Check that restoring the parts gives the computation of every requested output."""
    plugged = restore_prompt(partition)
    known: dict[str, int] = {}
    again: dict[str, int] = {}
    for node in case.needed:
        assert plugged[node]["inputs"] == case.prompt[node]["inputs"]
        assert computation(plugged, node, again) == computation(case.prompt, node, known)


@DRAWN
@given(dice=st.randoms(use_true_random=False), size=st.integers(3, 24))
def test_a_partitioned_prompt_computes_what_the_whole_one_does(dice: random.Random, size: int) -> None:
    case = Case.draw(dice, size)
    before = copy.deepcopy(case.prompt)
    partition = case.partition_prompt()
    assert case.prompt == before
    if partition is not None:
        check_plugged(case, partition)
        check_same_run(case, partition)


def test_among_a_few_hundred_prompts_is_every_kind_of_difficulty() -> None:
    met: Counter[str] = Counter()
    for seed in range(400):
        dice = random.Random(seed)
        case = Case.draw(dice, 8 + seed % 24)
        partition = case.partition_prompt()
        if partition is None:
            met["nothing can run on an endpoint"] += 1
            continue
        check_plugged(case, partition)
        _, partitioned = check_same_run(case, partition)
        met.update(kinds_of(case, partition, partitioned))
    for kind in KINDS:
        assert met[kind] >= 5, f"{kind}: {met[kind]} of 400"


KINDS = (
    "nothing can run on an endpoint",
    "stages",
    "parts feed each other in turns",
    "handed over",
    "copies",
    "kept here as well",
    "around a saver",
    "a list crosses",
    "a blocker at a port",
    "a blocker comes out",
    "lazy inside",
    "lazy stays",
    "a loop inside",
    "a loop stays",
    "partial execution",
    "asks again",
)


def kinds_of(case: Case, partition: Partition, partitioned: Interpreter) -> set[str]:
    """Return those of ``KINDS`` that a partition has."""
    calls = partition.calls
    inner = {node["class_type"] for call in calls for node in call.prompt.values()}
    reasons = " ".join(partition.stays.values())
    handed = [(port.name, call.part) for call in calls for port in call.outputs if port.hand_over]
    values = [value for call in calls for value in partitioned.value_of(call.node_id)]
    order = [call.part for call in calls]
    found = {
        "stages": any(call.stage for call in calls),
        "parts feed each other in turns": len(set(order)) > 1 and any(call.stage for call in calls) and bool(handed),
        "handed over": bool(handed),
        "copies": any(call.copies for call in calls),
        "kept here as well": bool(partition.kept),
        "around a saver": bool(partition.relinks),
        "a list crosses": any(len(value) > 1 for value in values),
        "a blocker at a port": bool(partitioned.blocked_calls),
        "a blocker comes out": bool({"Gate", "Fork"} & inner),
        "lazy inside": bool({"Switch", "LazyImage"} & inner),
        "lazy stays": "requests inputs only" in reasons,
        "a loop inside": "LoopEnd" in inner,
        "a loop stays": "in a loop" in reasons,
        "partial execution": case.targets is not None,
        "asks again": any(call.asks_again for call in calls),
    }
    return {kind for kind, present in found.items() if present}


def test_a_partition_says_the_same_whatever_order_the_nodes_are_written_in() -> None:
    for seed in range(60):
        dice = random.Random(seed)
        case = Case.draw(dice, 20)
        partition = case.partition_prompt()
        items = list(case.prompt.items())
        dice.shuffle(items)
        again = Case(dict(items), case.parts, case.targets).partition_prompt()
        assert (partition is None) == (again is None)
        if partition is not None and again is not None:
            assert [call.plan for call in again.calls] == [call.plan for call in partition.calls]
            assert again.prompt == partition.prompt


#: Reasons for more than one call of a part that no path leaves and enters again.
SPLITS = ("Gate", "Fork", "Switch", "LazyImage", "LoopStart", "LoopEnd", "CallService", "StampAndSave", "SaveModel")


@DRAWN
@given(dice=st.randoms(use_true_random=False), size=st.integers(3, 24))
def test_what_no_path_leaves_and_enters_again_is_one_call(dice: random.Random, size: int) -> None:
    prompt = random_prompt(dice, size, SPLITS)
    last = dice.choice(sorted(prompt))
    first = needs(prompt, [last])
    # A saver whose name is linked too is not skipped, so a path through it leaves the part.
    assume(all(len(sources(prompt[each])) < 2 for each in first if SCHEMAS[prompt[each]["class_type"]].is_output_node))
    partition = partitioned_or_none(prompt, [Part("first", frozenset(first))], SCHEMAS)
    assert partition is None or len(partition.calls) <= 1


# -- the node classes of ComfyUI itself -----------------------------------------------------------------------------------


WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def draw_real(dice: random.Random, schemas: NodeSchemas, size: int) -> Prompt:
    """Draw a prompt over ComfyUI's classes, with links that its validation accepts."""
    prompt: Prompt = {}
    given_types: dict[str, list[tuple[str, int]]] = {}
    names = sorted(schemas)
    starts = [name for name in names if schemas[name].outputs and not needed_types(schemas[name])]
    users = [name for name in names if needed_types(schemas[name])]
    while len(prompt) < size:
        schema = schemas[dice.choice(starts if dice.random() < 0.25 else users)]
        inputs = link_real(dice, schema, given_types)
        if inputs is None:
            continue
        node_id = str(len(prompt) + 1)
        prompt[node_id] = {"class_type": schema.class_type, "inputs": inputs}
        for slot, kind in enumerate(schema.outputs):
            given_types.setdefault(kind, []).append((node_id, slot))
    linked = {source for node in prompt.values() for source in sources(node)}
    for node_id in sorted(set(prompt) - linked, key=int):
        if schemas[prompt[node_id]["class_type"]].outputs:
            prompt[str(len(prompt) + 1)] = {"class_type": "PreviewAny", "inputs": {"source": [node_id, 0]}}
    return prompt


def needed_types(schema: NodeSchema) -> list[str]:
    return [socket.type for socket in schema.inputs.values() if socket.need == "required" and not is_widget(socket.type)]


def is_widget(kind: str) -> bool:
    return kind in WIDGETS or kind.startswith("COMFY_DYNAMIC")


def link_real(dice: random.Random, schema: NodeSchema, given_types: dict[str, list[tuple[str, int]]]) -> dict[str, Any] | None:
    inputs: dict[str, Any] = {}
    sockets = [(name, socket) for name, socket in schema.inputs.items() if "." not in name]
    sockets += [(f"{prefix}{index}", socket) for prefix, socket in schema.grown.items() for index in range(1 + dice.randrange(2))]
    for name, socket in sockets:
        kinds = sorted(given_types) if socket.type in ("*", "COMFY_MATCHTYPE_V3") else socket.type.split(",")
        options = [source for kind in kinds for source in given_types.get(kind, ())]
        if is_widget(socket.type) and (dice.random() < 0.9 or not options):
            inputs[name] = "a" if socket.type != "INT" else 1
        elif options:
            inputs[name] = list(dice.choice(options[-8:]))
        elif socket.need == "required":
            return None
    return inputs


@pytest.mark.parametrize("seed", range(40))
def test_prompts_of_comfyui_s_own_classes_come_apart_and_together(seed: int) -> None:
    dice = random.Random(seed)
    schemas = comfy_schemas()
    prompt = draw_real(dice, schemas, 30)
    partitioned = 0
    for _ in range(12):
        partition = partitioned_or_none(prompt, random_parts(prompt, dice, most=2), schemas)
        if partition is None:
            continue
        partitioned += 1
        sinks = {node for node in prompt if schemas[prompt[node]["class_type"]].is_output_node}
        plugged = restore_prompt(partition)
        known: dict[str, int] = {}
        again: dict[str, int] = {}
        for node in needs(prompt, sinks):
            assert computation(plugged, node, again) == computation(prompt, node, known)
        check_whole(partition, schemas)
    assert partitioned >= 3


def check_whole(partition: Partition, schemas: NodeSchemas) -> None:
    """Check that every prompt of a partition is complete and that only transferable values cross."""
    prompts = [partition.prompt, *(call.prompt for call in partition.calls)]
    for prompt in prompts:
        for node in prompt.values():
            assert sources(node) <= prompt.keys()
    for call in partition.calls:
        placed = partition.prompt[call.node_id]["inputs"]
        assert sorted(placed) == sorted(["part", "plan", *(f"ports.p{index}" for index in range(len(call.inputs)))])
        assert len(call.inputs) <= MOST_PORTS
        assert call.outputs
        assert {node["inputs"]["name"] for node in call.prompt.values() if node["class_type"] == INPUT_NODE} == {
            p.name for p in call.inputs
        }
        for kind in [port.type for port in call.inputs] + [port.type for port in call.outputs]:
            assert type_transferability(kind).transferable
        for node in (*call.nodes, *call.copies):
            assert not schemas[call.prompt[node]["class_type"]].is_output_node
            assert not schemas[call.prompt[node]["class_type"]].uploads
