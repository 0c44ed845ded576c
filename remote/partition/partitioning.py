"""Partition of a prompt: from a prompt, parts and schemas to a prompt with placed nodes and their calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from yggdrasill.errors import PartitionError
from yggdrasill.remote.partition.assignment import Assignment, Transferability, check_parts
from yggdrasill.remote.partition.constraints import Blocking, Colocation, CoreLoops, LazyInputs
from yggdrasill.remote.partition.graph import PromptGraph, natural
from yggdrasill.remote.partition.layout import Dependencies, Layout, schedule
from yggdrasill.remote.partition.parts import Part, Partition
from yggdrasill.remote.partition.plans import write_calls, write_rest
from yggdrasill.remote.partition.schemas import NodeSchema
from yggdrasill.remote.partition.traits import HostFacts

__all__ = ["partition_prompt"]

_NO_FACTS = HostFacts()


def partition_prompt(
    prompt: Mapping[str, Any],
    parts: Sequence[Part],
    schemas: Mapping[str, NodeSchema],
    targets: Collection[str] | None = None,
    host: HostFacts = _NO_FACTS,
) -> Partition:
    """Replace ``parts`` of an API prompt by placed nodes, so that a run computes the same results as before.

    ``targets`` are the output nodes of a partial execution; nodes that they do not need are not partitioned. ``prompt`` is not modified.
    ``host`` has the facts about node classes and files of the user's server.

    Raises:
        PartitionError: overlapping parts, a class without schema, a part without any node that can run on an endpoint, too many ports;
            ``details`` has ``part`` and ``nodes``.
        UnknownName: a part names a node that does not exist.
        InvalidConfig: ComfyUI refuses the prompt.
    """
    if not parts:
        return Partition({node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()})
    graph = PromptGraph.of(prompt, schemas, targets)
    check_parts(graph, parts)
    assignment = Assignment(graph, Transferability(graph, host), parts, host)
    lazy_inputs = LazyInputs(graph)
    layout = _find_layout(assignment, lazy_inputs)
    _check_no_empty_part(assignment, layout)
    written = write_calls(assignment, layout)
    rest, dropped = write_rest(prompt, assignment, layout, written)
    return Partition(
        prompt=rest,
        calls=written.calls,
        stays=dict(sorted(assignment.reasons.items(), key=lambda item: natural(item[0]))),
        kept=tuple(layout.kept),
        eager=tuple(sorted(lazy_inputs.eager(layout), key=natural)),
        dropped=dropped,
        relinks=tuple(sorted(layout.relinks, key=lambda relink: (natural(relink.node), relink.input))),
    )


def _find_layout(assignment: Assignment, lazy_inputs: LazyInputs) -> Layout:
    """Return a layout that satisfies all constraints: violations separate calls or make nodes local, until none is left."""
    colocation, core_loops, blocking = Colocation(assignment), CoreLoops(assignment), Blocking(assignment.graph)
    while True:
        while colocation.enforce_assignment() or core_loops.enforce_assignment():
            pass
        dependencies = Dependencies(assignment)
        conditions, blocked = lazy_inputs.groups(assignment), blocking.groups(assignment)
        before, inside = colocation.groups(), core_loops.groups()
        group_keys = {
            node: (part, conditions[node], blocked[node], before[node], inside[node])
            for node, part in assignment.of.items()
            if node not in dependencies.replicated
        }
        scheduled = schedule(assignment, dependencies, group_keys)
        layout = Layout(assignment, scheduled, [assignment.of[nodes[0]] for _, nodes in scheduled])
        constraints = (
            colocation.enforce,
            core_loops.enforce,
            partial(lazy_inputs.enforce, assignment),
            partial(blocking.enforce, assignment),
        )
        if not any(enforce(layout) for enforce in constraints):
            return layout


def _check_no_empty_part(assignment: Assignment, layout: Layout) -> None:
    """Raise `PartitionError` for a part that is needed and of which no node runs on an endpoint, not even as a copy in another part's
    call.
    """
    partitioned = {draft.part for draft in layout.drafts}
    in_calls = {node for draft in layout.drafts for node in draft.members}
    for index, part in enumerate(assignment.parts):
        needed = sorted((node for node in part.nodes if node in assignment.graph), key=natural)
        if index in partitioned or not needed or not in_calls.isdisjoint(needed):
            continue
        why = [
            f"{assignment.graph.label(node)}: {assignment.reasons.get(node, _untransferable_reason(assignment, node))}" for node in needed
        ]
        more = f" and {len(why) - 6} more" if len(why) > 6 else ""
        hint = " Also place the nodes that use its outputs." if any(node not in assignment.reasons for node in needed) else ""
        raise PartitionError(
            f"No node of part {part.name!r} can run on an endpoint: {'; '.join(why[:6])}{more}.{hint}",
            part=part.name,
            nodes=needed,
            reasons=dict(zip(needed, why, strict=True)),
        )


def _untransferable_reason(assignment: Assignment, node_id: str) -> str:
    stuck = [link for link in assignment.graph.users[node_id] if not assignment.transferability.is_transferable(link)]
    kinds = sorted({assignment.transferability.type_of(link.source, link.slot) for link in stuck or assignment.graph.users[node_id]})
    return f"its output ({', '.join(kinds)}) cannot be transferred and is needed locally"
