"""The signs of the open workflow: on which endpoints its nodes run, and where each of its named parts is placed."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.partition.named_parts import NamedPart, NodeLocations, PartItem, drawn_nodes, named_parts
from yggdrasill.remote.partition.placement_keys import PlacedPart, StoredPlacement, WorkflowParts, parts_of, workflow_id, workflow_parts
from yggdrasill.remote.partition.schemas import NodeSchemas
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.validator import partition_leniently
from yggdrasill.server_ext.comfy.placement.workflow_placements import current_user, endpoints_of

__all__ = ["Signs", "SignsModel", "named_parts_of", "signs_of"]

_TIMEOUT = 2.0
_Stored = Mapping[PartItem, StoredPlacement]


class SignsModel(BaseModel):
    """The open workflow in the editor's format, and in ComfyUI's API format; without the latter, links and values are not considered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workflow: dict[str, Any]
    prompt: dict[str, dict[str, Any]] | None = None


class Signs:
    """The handler. It asks no endpoint for its state, so that the editor can call it while a workflow is edited."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard
        self._schema_cache = SchemaCache()

    async def signs(self, request: web.Request) -> web.Response:
        """Answer POST /signs: ``{"endpoints", "problem", "warnings", "parts", "signs"}``; see `named_parts_of` and `signs_of`.

        ``problem`` says why a prompt of this workflow would be refused. Without one, a node with a sign runs on the endpoint of the sign.
        """
        body = await self._guard.body(request, SignsModel)
        registry = extension_context().registry
        stored = extension_context().workflow_placements.of_workflow(
            current_user.get(), workflow_id({"extra_pnginfo": {"workflow": body.workflow}})
        )
        prompt = drawn_nodes(body.workflow) if body.prompt is None else body.prompt
        found: dict[str, Any] = {"endpoints": sorted(registry.endpoints), "problem": None, "warnings": [], "signs": {}}
        found["parts"] = await asyncio.to_thread(named_parts_of, prompt, body.workflow, registry, stored)
        try:
            extra = {"extra_pnginfo": {"workflow": body.workflow}}
            naming = await asyncio.to_thread(parts_of, prompt, extra, registry.placements, registry.endpoints, stored)
        except YggdrasillError as error:
            found["problem"] = error.message
            return json_answer(found)
        found["warnings"] = list(naming.warnings)
        runs = {node: placed.placement.endpoints for placed in naming.parts for node in placed.part.nodes}
        stays: Iterable[str] = ()
        if naming.parts and body.prompt is not None:
            try:
                runs, stays = await self._partitioned(body.prompt, naming.parts)
            except YggdrasillError as error:
                found["problem"] = error.message
        found["signs"] = await asyncio.to_thread(signs_of, body.workflow, prompt, runs, stays)
        return json_answer(found)

    async def _partitioned(
        self, prompt: Mapping[str, Any], parts: tuple[PlacedPart, ...]
    ) -> tuple[dict[str, tuple[str, ...]], Iterable[str]]:
        """Return the endpoints of the nodes that would run on one, and the nodes of parts that must run locally."""
        schemas = await self._schemas(prompt, {name for placed in parts for name in placed.placement.endpoints})
        facts = extension_context().placement.local_facts.facts()
        partition = await asyncio.to_thread(partition_leniently, prompt, parts, schemas, None, facts)
        endpoints = {placed.part.name: placed.placement.endpoints for placed in parts}
        return {node: endpoints[call.part] for call in partition.calls for node in call.nodes}, partition.stays

    async def _schemas(self, prompt: Mapping[str, Any], names: Iterable[str]) -> NodeSchemas:
        classes = sorted({str(node.get("class_type")) for node in prompt.values()})
        local = await self._schema_cache.schemas(classes)
        lacking = self._schema_cache.missing(classes)
        return await extension_context().placement.monitor.schemas(sorted(names), lacking, timeout=_TIMEOUT) | local if lacking else local


def named_parts_of(
    prompt: Mapping[str, Any], workflow: Mapping[str, Any], registry: EndpointRegistry, stored: _Stored
) -> list[dict[str, Any]]:
    """Return the subgraph nodes and groups of a workflow, outer ones first.

    Each is ``{graph, kind, id, title, name, places, stored, otherwise}``: ``name`` is the title, or the path if several have this title;
    ``places`` are the endpoints, empty for this server; ``stored`` says whether the placement belongs to the workflow; ``otherwise`` are
    the endpoints without that placement.
    """
    known = {item: each for item, each in stored.items() if _is_valid(each, registry)}
    everything = _all_parts(prompt, workflow, registry, known)
    by_item: dict[PartItem, NamedPart] = {}
    for part in everything.named:
        if part.item is not None and part.path[-1].strip() and (part.item not in by_item or not by_item[part.item].nodes):
            by_item[part.item] = part
    titles = Counter(part.path[-1] for part in by_item.values())
    found = []
    for item, part in by_item.items():
        places = otherwise = _endpoints(everything.placement_of(part))
        if item in stored:
            places = endpoints_of(stored[item].config)
            without = _all_parts(prompt, workflow, registry, {other: each for other, each in known.items() if other != item})
            otherwise = _endpoints(without.placement_of(part))
        title = part.path[-1]
        name = title if titles[title] == 1 else part.unique_name
        entry = {"title": title, "name": name, "places": places, "stored": item in stored, "otherwise": otherwise}
        found.append({"graph": item.graph, "kind": item.kind, "id": item.id, **entry})
    return found


def signs_of(
    workflow: Mapping[str, Any], prompt: Mapping[str, Any], runs: Mapping[str, tuple[str, ...]], stays: Iterable[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the signs of the nodes that a workflow shows, by graph and id: ``{"places": [endpoint], "partly": bool}``.

    ``runs`` are the endpoints of the nodes of the prompt that run on one. A node in a definition is shown once for all instances, and a
    subgraph node for all nodes inside: ``partly`` says that some of them run on other endpoints or locally. Those in ``stays`` are not counted
    inside a subgraph node, because they run locally wherever it is placed.
    """
    locations, local = NodeLocations(workflow), set(stays)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    totals = Counter[tuple[str, str]]()
    for node_id in prompt:
        path = locations.path(node_id)
        for location in path[-1:] if node_id in local else path:
            totals[location] += 1
            if node_id in runs:
                counts[location][" | ".join(runs[node_id])] += 1
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (graph, node), places in counts.items():
        partly = len(places) > 1 or places.total() < totals[graph, node]
        found[graph][node] = {"places": sorted(places), "partly": partly}
    return dict(found)


def _all_parts(prompt: Mapping[str, Any], workflow: Mapping[str, Any], registry: EndpointRegistry, stored: _Stored) -> WorkflowParts:
    """Return all parts, without placements where the workflow has one for which its prompt is refused."""
    try:
        return workflow_parts(prompt, workflow, registry.placements, registry.endpoints, stored)
    except YggdrasillError:
        return WorkflowParts(tuple(named_parts(workflow, prompt)), {})


def _is_valid(stored: StoredPlacement, registry: EndpointRegistry) -> bool:
    try:
        Placement.of(stored.config, registry.endpoints, stored.title)
    except YggdrasillError:
        return False
    return True


def _endpoints(placement: Placement | None) -> list[str]:
    return [] if placement is None else list(placement.endpoints)
