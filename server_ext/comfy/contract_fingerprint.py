"""Fingerprint of a Remote Graph node: whether its cached result is still valid, by the contract that the endpoint serves now.

Each endpoint is queried once per prompt and graph. ComfyUI computes the fingerprints one after another in the thread that runs prompts, so
the query has a short timeout.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

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
"""Seconds that each endpoint without an answer may delay the start of a prompt."""


@dataclass
class _Answers:
    """The contracts received for a prompt that starts, by graph and endpoints, and the endpoints that did not answer."""

    prompt_id: str = ""
    contracts: dict[tuple[str, ...], RemoteContract | None] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)


_answers = _Answers()


async def fingerprint(graph: str, endpoint: str) -> str | float:
    """Return the hash of the graph that is served now if its results may be reused; else NaN, so that the node executes again.

    NaN is also returned if no endpoint answers in time.
    """
    try:
        registry = extension_context().registry
        placement = placement_of(registry, graph, endpoint)
    except YggdrasillError:
        return float("nan")
    answers = _answers_of_this_prompt()
    question = (graph, *placement.endpoints)
    if question not in answers.contracts:
        answers.contracts[question] = await _query(registry, placement, graph, answers.silent)
    contract = answers.contracts[question]
    return contract.hash if contract is not None and contract.reusable else float("nan")


def _answers_of_this_prompt() -> _Answers:
    global _answers  # noqa: PLW0603 - one prompt starts at a time
    node = compat.executing_node()
    prompt_id = node.prompt_id if node else ""
    if _answers.prompt_id != prompt_id or not prompt_id:
        _answers = _Answers(prompt_id)
    return _answers


async def _query(registry: EndpointRegistry, placement: Placement, graph: str, silent: set[str]) -> RemoteContract | None:
    clients = [registry.client(name) for name in placement.endpoints if name not in silent]
    try:
        return await asyncio.wait_for(_first_answer(clients, graph, silent), TIMEOUT)
    except (YggdrasillError, asyncio.TimeoutError):
        return None


async def _first_answer(clients: list[EndpointClient], graph: str, silent: set[str]) -> RemoteContract | None:
    for client in clients:
        silent.add(client.name)
        try:
            answer = await loop_thread().run_async(client.contract(graph))
        except EndpointUnreachable:
            continue
        except YggdrasillError:
            silent.discard(client.name)
            raise
        silent.discard(client.name)
        contract = RemoteContract.of(answer, client.name)
        local_fallbacks = extension_context().local_fallbacks
        if local_fallbacks is not None:
            await asyncio.to_thread(local_fallbacks.record_hash, client.name, graph, contract.hash)
        return contract
    return None
