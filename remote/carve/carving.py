"""The carve: a prompt, parts of it and schemas in; a prompt with placed nodes and their calls out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from yggdrasill.errors import CarveError
from yggdrasill.remote.carve.drafts import Layout
from yggdrasill.remote.carve.graph import PromptGraph, natural
from yggdrasill.remote.carve.homes import Homes, check_parts
from yggdrasill.remote.carve.parts import Carving, Part
from yggdrasill.remote.carve.plans import write_calls, write_rest
from yggdrasill.remote.carve.schemas import NodeSchema
from yggdrasill.remote.carve.stages import Needs, schedule
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
    layout = _lay_out(homes)
    _check_all_carved(homes, layout)
    written = write_calls(homes, layout)
    rest, dropped = write_rest(prompt, homes, layout, written)
    relinks = tuple(sorted(layout.relinks, key=lambda relink: (natural(relink.node), relink.input)))
    return Carving(rest, written.calls, dict(homes.reasons), tuple(layout.kept), (), dropped, relinks)


def _lay_out(homes: Homes) -> Layout:
    needs = Needs(homes)
    colours = {node: part for node, part in homes.of.items() if node not in needs.floats}
    batches = schedule(homes, needs, colours)
    return Layout(homes, batches, [homes.of[nodes[0]] for _, nodes in batches])


def _check_all_carved(homes: Homes, layout: Layout) -> None:
    """Raise `CarveError` for a part that is wanted and of which nothing runs elsewhere."""
    carved = {draft.part for draft in layout.drafts}
    for index, part in enumerate(homes.parts):
        wanted = sorted((node for node in part.nodes if node in homes.graph), key=natural)
        if index in carved or not wanted:
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
    kinds = sorted({homes.travel.type_of(link.source, link.slot) for link in homes.graph.users[node_id]})
    return f"what it makes ({', '.join(kinds)}) cannot travel and is needed here"
