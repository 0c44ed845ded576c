"""The carve: a prompt, parts of it and schemas in; a prompt with placed nodes and their calls out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from yggdrasill.errors import CarveError
from yggdrasill.remote.carve.blocking import Blocking
from yggdrasill.remote.carve.demands import Demands
from yggdrasill.remote.carve.drafts import Layout
from yggdrasill.remote.carve.graph import PromptGraph, natural
from yggdrasill.remote.carve.homes import Homes, check_parts
from yggdrasill.remote.carve.parts import Carving, Part
from yggdrasill.remote.carve.plans import write_calls, write_rest
from yggdrasill.remote.carve.schemas import NodeSchema
from yggdrasill.remote.carve.stages import Needs, schedule
from yggdrasill.remote.carve.ties import Ties
from yggdrasill.remote.carve.travelling import Travel

__all__ = ["carve"]


def carve(
    prompt: Mapping[str, Any], parts: Sequence[Part], schemas: Mapping[str, NodeSchema], targets: Collection[str] | None = None
) -> Carving:
    """Replace ``parts`` of an API prompt by placed nodes, so that what runs computes what it computed before.

    ``targets`` are the output nodes of a partial execution; what they do not need is not carved. The prompt given is not changed.

    Raises:
        CarveError: parts that overlap, a class without schema, a part of which nothing can run elsewhere, too many ports; ``details``
            name ``part`` and ``nodes``. UnknownName: a part names a node that is not there. InvalidConfig: ComfyUI refuses the prompt.
    """
    if not parts:
        return Carving({node_id: {**node, "inputs": dict(node.get("inputs", {}))} for node_id, node in prompt.items()})
    graph = PromptGraph.of(prompt, schemas, targets)
    check_parts(graph, parts)
    homes = Homes(graph, Travel(graph), parts)
    demands = Demands(graph)
    layout = _lay_out(homes, demands)
    _check_all_carved(homes, layout)
    written = write_calls(homes, layout)
    rest, dropped = write_rest(prompt, homes, layout, written)
    return Carving(
        prompt=rest,
        calls=written.calls,
        stays=dict(sorted(homes.reasons.items(), key=lambda item: natural(item[0]))),
        kept=tuple(layout.kept),
        eager=tuple(sorted(demands.eager(layout), key=natural)),
        dropped=dropped,
        relinks=tuple(sorted(layout.relinks, key=lambda relink: (natural(relink.node), relink.input))),
    )


def _lay_out(homes: Homes, demands: Demands) -> Layout:
    """Who runs what. What would come out another way than here goes into calls of its own, or stays, until nothing does."""
    ties, blocking = Ties(homes), Blocking(homes.graph)
    while True:
        while ties.settle_homes():
            pass
        needs = Needs(homes)
        asked, blocked, tied = demands.groups(homes), blocking.groups(homes), ties.groups()
        colours = {node: (part, asked[node], blocked[node], tied[node]) for node, part in homes.of.items() if node not in needs.floats}
        batches = schedule(homes, needs, colours)
        layout = Layout(homes, batches, [homes.of[nodes[0]] for _, nodes in batches])
        if not (ties.settle(layout) or demands.settle(homes, layout) or blocking.settle(homes, layout)):
            return layout


def _check_all_carved(homes: Homes, layout: Layout) -> None:
    """Raise `CarveError` for a part that is wanted and of which nothing runs elsewhere, not even as a copy in another part's call."""
    carved = {draft.part for draft in layout.drafts}
    elsewhere = {node for draft in layout.drafts for node in draft.members}
    for index, part in enumerate(homes.parts):
        wanted = sorted((node for node in part.nodes if node in homes.graph), key=natural)
        if index in carved or not wanted or not elsewhere.isdisjoint(wanted):
            continue
        why = [f"{homes.graph.label(node)}: {homes.reasons.get(node, _no_way_out(homes, node))}" for node in wanted]
        more = f" and {len(why) - 6} more" if len(why) > 6 else ""
        raise CarveError(
            f"nothing of part {part.name!r} can run elsewhere: {'; '.join(why[:6])}{more}; place the nodes too that use what it makes",
            part=part.name,
            nodes=wanted,
            reasons=dict(zip(wanted, why, strict=True)),
        )


def _no_way_out(homes: Homes, node_id: str) -> str:
    stuck = [link for link in homes.graph.users[node_id] if not homes.travel.travels(link)]
    kinds = sorted({homes.travel.type_of(link.source, link.slot) for link in stuck or homes.graph.users[node_id]})
    return f"what it makes ({', '.join(kinds)}) cannot travel and is needed here"
