"""Fingerprint of a Remote Graph node: whether its cached result is still valid, by the contract that the endpoint serves now.

Each endpoint is queried once per prompt and graph. ComfyUI computes the fingerprints one after another in the thread that runs prompts, so
the query has a short timeout. The call of the node uses the contract that its fingerprint was computed from, see `contracts_of`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, YggdrasillError, format_options
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import extension_context

__all__ = ["AUTO", "TIMEOUT", "contracts_of", "fingerprint", "placement_of"]

AUTO = "auto"
"""The endpoint of a node whose graph runs where the registry places it."""

TIMEOUT = 2.0
"""Seconds that each endpoint without an answer may delay the start of a prompt."""


class _Answer(NamedTuple):
    client: EndpointClient
    contract: RemoteContract


@dataclass
class _Answers:
    """The contracts received for a prompt that starts, by graph and endpoints, and the endpoints that did not answer."""

    prompt_id: str = ""
    contracts: dict[tuple[str, ...], _Answer | None] = field(default_factory=dict)
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
    answer = answers.contracts[question]
    return answer.contract.hash if answer is not None and answer.contract.reusable else float("nan")


def contracts_of(prompt_id: str, graph: str, endpoints: Sequence[str]) -> dict[EndpointClient, RemoteContract]:
    """Return the contract that the fingerprint of a call in the running prompt was computed from, by the client of its endpoint.

    It is left out if the endpoint does not check conditional calls, or if no call went there before.
    """
    answers = _answers
    answer = answers.contracts.get((graph, *endpoints)) if prompt_id and answers.prompt_id == prompt_id else None
    is_usable = answer is not None and answer.contract.conditional and answer.client.facts is not None
    return {answer.client: answer.contract} if answer is not None and is_usable else {}


def _answers_of_this_prompt() -> _Answers:
    global _answers  # noqa: PLW0603 - one prompt starts at a time
    node = compat.executing_node()
    prompt_id = node.prompt_id if node else ""
    if _answers.prompt_id != prompt_id or not prompt_id:
        _answers = _Answers(prompt_id)
    return _answers


async def _query(registry: EndpointRegistry, placement: Placement, graph: str, silent: set[str]) -> _Answer | None:
    clients = [registry.client(name) for name in placement.endpoints if name not in silent]
    try:
        return await asyncio.wait_for(_first_answer(clients, graph, silent), TIMEOUT)
    except (YggdrasillError, asyncio.TimeoutError):
        return None


async def _first_answer(clients: list[EndpointClient], graph: str, silent: set[str]) -> _Answer | None:
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
        if local_fallbacks is not None and not local_fallbacks.is_recorded(client.name, graph, contract.hash):
            await asyncio.to_thread(local_fallbacks.record_hash, client.name, graph, contract.hash)
        return _Answer(client, contract)
    return None


def placement_of(registry: EndpointRegistry, graph: str, endpoint: str) -> Placement:
    """Return the placement of a call.

    Raises:
        UnknownEndpoint. InvalidArgument: neither the node nor the registry places the graph.
    """
    if endpoint.strip() not in ("", AUTO):
        registry.endpoint(endpoint)
        return Placement.of(endpoint, registry.endpoints, "the node's endpoint")
    placement = registry.placements.get(graph, registry.default)
    if placement.is_local:
        raise InvalidArgument(
            f"The registry places graph {graph!r} on no endpoint. Available endpoints: {format_options(registry.endpoints)}. Choose one on the node, "
            f"or add 'graphs: {{{graph}: ENDPOINT}}' to endpoints.yaml."
        )
    return placement
