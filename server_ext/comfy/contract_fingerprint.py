"""Fingerprint of a Remote Graph node: whether its cached result is still valid, by the contract that the endpoint serves now.

Each endpoint is queried once per prompt and graph. ComfyUI computes the fingerprints one after another in the thread that runs prompts, so
the query has a short timeout.
"""

from __future__ import annotations

import asyncio

from yggdrasill.errors import EndpointUnreachable, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.remote_call import placement_of

__all__ = ["TIMEOUT", "fingerprint"]

TIMEOUT = 2.0
"""Seconds that endpoints without an answer may delay the start of a prompt, for each graph."""

_answers: tuple[str, dict[tuple[str, ...], RemoteContract | None]] = ("", {})
"""The prompt that is starting, and the contracts received for it by graph and endpoints."""


async def fingerprint(graph: str, endpoint: str) -> str | float:
    """Return the hash of the graph that is served now if its results may be reused; else NaN, so that the node executes again.

    NaN is also returned if no endpoint answers in time.
    """
    try:
        registry = extension_context().registry
        placement = placement_of(registry, graph, endpoint)
    except YggdrasillError:
        return float("nan")
    known = _contracts_of_this_prompt()
    question = (graph, *placement.endpoints)
    if question not in known:
        known[question] = await _query(registry, placement, graph)
    contract = known[question]
    return contract.hash if contract is not None and contract.reusable else float("nan")


def _contracts_of_this_prompt() -> dict[tuple[str, ...], RemoteContract | None]:
    global _answers  # noqa: PLW0603 - one prompt starts at a time
    node = compat.executing_node()
    prompt_id = node.prompt_id if node else ""
    if _answers[0] != prompt_id or not prompt_id:
        _answers = prompt_id, {}
    return _answers[1]


async def _query(registry: EndpointRegistry, placement: Placement, graph: str) -> RemoteContract | None:
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
