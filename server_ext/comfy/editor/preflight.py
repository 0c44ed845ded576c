"""Preflight of the open workflow: which nodes would run on which endpoint, and what is missing there. Nothing is executed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.model_names import has_model
from yggdrasill.remote.partition.parts import PartCall, Partition
from yggdrasill.remote.partition.placement_keys import PlacedPart, parts_of, uses_their_models, workflow_id
from yggdrasill.remote.partition.schemas import NodeSchemas
from yggdrasill.remote.preflight import DifferentFile, MissingItem, missing_at, models_of
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.model_files import model_files
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointState
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.validator import partition_leniently
from yggdrasill.server_ext.comfy.placement.workflow_placements import current_user

__all__ = ["Preflight", "PreflightModel", "sources_of"]

_FRESH = 5.0
_TIMEOUT = 6.0
_MAX_AGE = 60.0
_FACTS_TIMEOUT = 20.0


class PreflightModel(BaseModel):
    """The open workflow, in ComfyUI's API format and in the editor's format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: dict[str, dict[str, Any]]
    workflow: dict[str, Any]


class Preflight:
    """The handler."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard
        self._schema_cache = SchemaCache()

    async def preflight(self, request: web.Request) -> web.Response:
        """Answer POST /preflight: ``{"problem", "warnings", "parts", "stays", "their_models"}``.

        ``problem`` says why the workflow cannot be partitioned, ``their_models`` whether the workflow uses the endpoints' model files
        although this server has other files of the same names.
        """
        body = await self._guard.body(request, PreflightModel)
        found: dict[str, Any] = {
            "problem": None,
            "warnings": [],
            "parts": [],
            "stays": [],
            "their_models": uses_their_models(body.workflow),
        }
        try:
            await self._examine(body, found)
        except YggdrasillError as error:
            found["problem"] = error.message
        return json_answer(found)

    async def _examine(self, body: PreflightModel, found: dict[str, Any]) -> None:
        registry = extension_context().registry
        extra = {"extra_pnginfo": {"workflow": body.workflow}}
        stored = extension_context().workflow_placements.of_workflow(current_user.get(), workflow_id(extra))
        naming = await asyncio.to_thread(parts_of, body.prompt, extra, registry.placements, registry.endpoints, stored)
        found["warnings"] = list(naming.warnings)
        if not naming.parts:
            return
        names = sorted({name for placed in naming.parts for name in placed.placement.endpoints})
        states = await extension_context().placement.monitor.refresh(names, max_age=_FRESH, timeout=_TIMEOUT, facts_timeout=_FACTS_TIMEOUT)
        schemas = await self._schemas(body.prompt, names)
        facts = extension_context().placement.local_facts.facts()
        partition = await asyncio.to_thread(partition_leniently, body.prompt, naming.parts, schemas, None, facts)
        states |= await self._requery_lacking(naming.parts, partition, states)
        checks = await self._checks(naming.parts, partition, states)
        label = _Labels(body.prompt)
        known = await asyncio.to_thread(sources_of, body.workflow)
        found["parts"] = [_part(placed, partition, states, label, known, checks) for placed in naming.parts if _calls(placed, partition)]
        found["stays"] = [{"node": label(node), "why": why} for node, why in sorted(partition.stays.items())]

    async def _requery_lacking(
        self, parts: Iterable[PlacedPart], partition: Partition, states: Mapping[str, EndpointState]
    ) -> dict[str, EndpointState]:
        """Query endpoints again that lacked something, because it may have been installed since, and return their states."""
        pairs = [(name, call) for placed in parts for name in placed.placement.endpoints for call in _calls(placed, partition)]
        lacking = sorted({name for name, call in pairs if states[name].up and missing_at(call.prompt, states[name].facts) != []})
        found = await asyncio.gather(*(extension_context().placement.monitor.requery(name) for name in lacking))
        return dict(zip(lacking, found, strict=True))

    async def _checks(
        self, parts: Iterable[PlacedPart], partition: Partition, states: Mapping[str, EndpointState]
    ) -> dict[tuple[str, str], _Check]:
        """Return what endpoints lack and what differs there, by endpoint and node id of the call."""
        pairs = [(name, call) for placed in parts for name in placed.placement.endpoints for call in _calls(placed, partition)]
        monitor = extension_context().placement.monitor
        up = [(name, call) for name, call in pairs if states[name].up]
        missing = await asyncio.gather(*(monitor.missing(name, call.prompt, timeout=_TIMEOUT) for name, call in up))
        if any(missing):
            # one of the others may have the file, perhaps since a moment ago
            others = sorted(set(monitor.states()) - {name for name, _ in up})
            await monitor.refresh(others, max_age=_MAX_AGE, timeout=_TIMEOUT, facts_timeout=_FACTS_TIMEOUT, new_facts=True)
        different = await asyncio.gather(*(monitor.different_models(name, call.prompt, timeout=_TIMEOUT) for name, call in up))
        found = zip(up, missing, different, strict=True)
        return {(name, call.node_id): _Check(lacking, others) for (name, call), lacking, others in found}

    async def _schemas(self, prompt: Mapping[str, Any], names: Iterable[str]) -> NodeSchemas:
        classes = sorted({str(node.get("class_type")) for node in prompt.values()})
        local = await self._schema_cache.schemas(classes)
        lacking = self._schema_cache.missing(classes)
        return await extension_context().placement.monitor.schemas(names, lacking, timeout=_TIMEOUT) | local if lacking else local


class _Check(NamedTuple):
    """What an endpoint lacks for a call, None if it is not a ComfyUI, and the model files that differ there."""

    missing: Sequence[MissingItem] | None = ()
    different: Sequence[DifferentFile] = ()


class _Labels:
    """Labels of nodes: the title with the id that the editor shows."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._prompt = prompt

    def __call__(self, node_id: str) -> str:
        node = self._prompt.get(node_id, {})
        title = (node.get("_meta") or {}).get("title") or node.get("class_type")
        return f"{title} ({node_id})" if title else node_id


def _calls(placed: PlacedPart, partition: Partition) -> list[PartCall]:
    return [call for call in partition.calls if call.part == placed.part.name]


def _part(
    placed: PlacedPart,
    partition: Partition,
    states: Mapping[str, EndpointState],
    label: _Labels,
    known: Mapping[str, Mapping[str, Any]],
    checks: Mapping[tuple[str, str], _Check],
) -> dict[str, Any]:
    calls = _calls(placed, partition)
    return {
        "name": placed.part.name,
        "stages": len(calls),
        "nodes": [label(node) for call in calls for node in call.nodes],
        "copies": sorted({label(node) for call in calls for node in call.copies}),
        "inputs": sorted({f"{port.type} of {label(port.node)}" for call in calls for port in call.inputs}),
        "outputs": sorted({f"{port.type} of {label(port.node)}" for call in calls for port in call.outputs}),
        "places": [
            _place(states[name], [checks.get((name, call.node_id), _Check()) for call in calls], known)
            for name in placed.placement.endpoints
        ],
        "models": placed.placement.models,
    }


def _place(state: EndpointState, checks: Iterable[_Check], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    checks = list(checks)
    missing = {(thing["kind"], thing["name"]): thing for check in checks for thing in _missing(state.name, check, known)}
    different = {each.name: {"name": each.name, "folder": each.folder} for check in checks for each in check.different}
    return {
        "name": state.name,
        "up": bool(state.up),
        "reason": state.reason,
        "missing": list(missing.values()),
        "different": list(different.values()),
        "sources": list(state.facts.get("model_sources") or ()),
    }


def _missing(endpoint: str, check: _Check, known: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    if check.missing is None:
        yield {"kind": "node class", "name": "all: the endpoint is not a ComfyUI"}
        return
    for item in check.missing:
        thing: dict[str, Any] = {"kind": item.kind, "name": item.name}
        if item.kind == "model file":
            folder = {"folder": item.folder} if item.folder else {}
            thing |= {**folder, **known.get(item.name, {}), "at": _holders(item, endpoint)}
        yield thing


def _holders(item: MissingItem, endpoint: str) -> list[str]:
    """Return the other endpoints that have a missing model file."""
    states = extension_context().placement.monitor.states()
    return [name for name, state in states.items() if name != endpoint and has_model(models_of(state.facts), item.name, item.folder)]


def sources_of(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a workflow and this machine define about model files, by name: ``folder``, ``url``, ``sha256``, each if known.

    Workflows define the sources of models in ``properties.models`` of the nodes that load them.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder, files in model_files().items():
        for file in files:
            found.setdefault(file, {"folder": folder})
    definitions = workflow.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    graphs = [workflow, *(subgraphs if isinstance(subgraphs, list) else [])]
    for graph in graphs:
        for node in graph.get("nodes") or () if isinstance(graph, Mapping) else ():
            properties = node.get("properties") if isinstance(node, Mapping) else None
            models = properties.get("models") if isinstance(properties, Mapping) else None
            for model in models if isinstance(models, list) else ():
                if isinstance(model, Mapping) and isinstance(model.get("name"), str):
                    found[model["name"]] = _source(model)
    return found


def _source(model: Mapping[str, Any]) -> dict[str, Any]:
    hashed = model.get("hash") if str(model.get("hash_type", "")).upper() == "SHA256" else None
    facts = {"folder": model.get("directory"), "url": model.get("url"), "sha256": hashed}
    return {name: value for name, value in facts.items() if isinstance(value, str) and value}
