"""Route with the files that the endpoints of placed nodes offer in their lists, such as checkpoints and LoRAs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.partition.placement_keys import parts_of, workflow_id
from yggdrasill.remote.preflight import file_lists
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.object_info import read_object_info
from yggdrasill.server_ext.comfy.placement.workflow_placements import current_user

__all__ = ["OptionLists", "OptionListsModel"]

_FRESH = 10.0
_TIMEOUT = 4.0

Lists = dict[str, dict[str, list[str]]]
"""The options of lists by node class and input."""


class OptionListsModel(BaseModel):
    """The open workflow in the editor's format, and the class of each node that has a list, by execution id.

    ``fresh``: the endpoints are queried although their lists are known.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    nodes: dict[str, str]
    workflow: dict[str, Any]
    fresh: bool = False


class OptionLists:
    """The handler."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard

    async def lists(self, request: web.Request) -> web.Response:
        """Answer POST /lists: ``{"nodes": {node id: place}, "lists": {place: {class: {input: [option]}}}}``.

        ``nodes`` has the nodes that run on endpoints. ``lists`` has the lists of model files that differ from those of this server; with
        several endpoints, a list has the files of all. The lists of a place are None if no endpoint of it ever answered.
        """
        body = await self._guard.body(request, OptionListsModel)
        places = await self._places(body)
        classes = {place: {body.nodes[node] for node, other in places.items() if other == place} for place in set(places.values())}
        local = (await read_object_info(set().union(*classes.values())))["nodes"] if classes else {}
        monitor = extension_context().placement.monitor
        names = sorted({name for place in classes for name in place})
        await monitor.refresh(names, max_age=_FRESH, timeout=_TIMEOUT)
        found: dict[str, Lists | None] = {}
        for place, used in classes.items():
            queries = (monitor.entries(name, used, timeout=_TIMEOUT, fresh=body.fresh) for name in place)
            answers = [entries for entries in await asyncio.gather(*queries) if entries is not None]
            found["|".join(place)] = _merged([_lists(local, entries) for entries in answers], local) if answers else None
        return json_answer({"nodes": {node: "|".join(place) for node, place in places.items()}, "lists": found})

    async def _places(self, body: OptionListsModel) -> dict[str, tuple[str, ...]]:
        """Return the endpoints of each placed node, empty if the placement is not valid."""
        registry = extension_context().registry
        prompt = {node: {"class_type": name, "inputs": {}} for node, name in body.nodes.items()}
        extra = {"extra_pnginfo": {"workflow": body.workflow}}
        stored = extension_context().workflow_placements.of_workflow(current_user.get(), workflow_id(extra))
        try:
            naming = await asyncio.to_thread(parts_of, prompt, extra, registry.placements, registry.endpoints, stored)
        except YggdrasillError:  # Preflight and the run report it
            return {}
        return {node: tuple(placed.placement.endpoints) for placed in naming.parts for node in sorted(placed.part.nodes)}


def _lists(local: Mapping[str, Any], remote: Mapping[str, Any]) -> Lists:
    found = {name: file_lists(local.get(name), entry) for name, entry in remote.items() if entry is not None}
    return {name: lists for name, lists in found.items() if lists}


def _merged(answers: list[Lists], local: Mapping[str, Any]) -> Lists:
    """Return the lists with the options of all answers; an answer without a list has this server's."""
    found: Lists = {}
    for name in dict.fromkeys(name for answer in answers for name in answer):
        for key in dict.fromkeys(key for answer in answers for key in answer.get(name, ())):
            same = file_lists(None, local.get(name)).get(key, [])
            options = (option for answer in answers for option in answer.get(name, {}).get(key, same))
            found.setdefault(name, {})[key] = list(dict.fromkeys(options))
    return found
