"""Whether what a Remote Graph node gave before still holds: the endpoint is asked when a prompt starts, once per graph.

ComfyUI asks its nodes one after another in the thread that runs prompts, so the question has a short bound.
"""

from __future__ import annotations

import asyncio

from yggdrasill.errors import EndpointUnreachable, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.remote_call import placement_of

__all__ = ["TIMEOUT", "fingerprint"]

TIMEOUT = 2.0
"""Seconds that a prompt may be kept from starting by endpoints that do not answer, for each graph."""

_asked: tuple[str, dict[tuple[str, ...], RemoteContract | None]] = ("", {})
"""The prompt that starts now, and what was heard for it."""


async def fingerprint(graph: str, endpoint: str) -> str | float:
    """The hash of what is served now, if results of it may be reused; else a number that equals nothing, so that the node runs.

    A graph runs again too if its endpoint cannot be asked in time.
    """
    try:
        registry = extension_context().registry
        placement = placement_of(registry, graph, endpoint)
    except YggdrasillError:
        return float("nan")
    known = _heard_for_this_prompt()
    question = (graph, *placement.endpoints)
    if question not in known:
        known[question] = await _ask(registry, placement, graph)
    contract = known[question]
    return contract.hash if contract is not None and contract.reusable else float("nan")


def _heard_for_this_prompt() -> dict[tuple[str, ...], RemoteContract | None]:
    global _asked  # noqa: PLW0603 - one prompt starts at a time
    place = host_api.executing_node()
    prompt_id = place.prompt_id if place else ""
    if _asked[0] != prompt_id or not prompt_id:
        _asked = prompt_id, {}
    return _asked[1]


async def _ask(registry: EndpointRegistry, placement: Placement, graph: str) -> RemoteContract | None:
    try:
        return await asyncio.wait_for(_first_answer([registry.client(name) for name in placement.endpoints], graph), TIMEOUT)
    except (YggdrasillError, asyncio.TimeoutError):
        return None


async def _first_answer(clients: list[EndpointClient], graph: str) -> RemoteContract | None:
    for client in clients:
        try:
            contract = RemoteContract.of(await loop_thread().run_async(client.contract(graph)), client.name)
        except EndpointUnreachable:
            continue
        local_fallbacks = extension_context().local_fallbacks
        if local_fallbacks is not None:
            await asyncio.to_thread(local_fallbacks.record_hash, client.name, graph, contract.hash)
        return contract
    return None
