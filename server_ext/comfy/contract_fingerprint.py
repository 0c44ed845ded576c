"""Fingerprint of a Remote Graph node: whether its cached result is still valid, by the contract that the endpoint serves now.

Each endpoint is queried once per prompt and graph. ComfyUI computes the fingerprints one after another in the thread that runs prompts, so
the query has a short timeout. The call of the node uses the contract that its fingerprint was computed from, see `contracts_of`.

A prompt that is posted while ComfyUI is idle starts at once. Its queries are sent when it is posted, all at the same time, so that ComfyUI
prepares the prompt while they are answered. They are valid for `AHEAD_SECONDS`, and for this prompt only.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, YggdrasillError, format_options
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_ports import REMOTE_NODE
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import LoopThread, PendingResult, loop_thread
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import extension_context

__all__ = ["AUTO", "TIMEOUT", "contracts_of", "fingerprint", "placement_of", "query_ahead"]

AUTO = "auto"
"""The endpoint of a node whose graph runs where the registry places it."""

TIMEOUT = 2.0
"""Seconds that each endpoint without an answer may delay the start of a prompt."""


AHEAD_SECONDS = 0.2
"""Seconds after which a query is not used by a prompt that has not started: the graph may have been replaced since."""
_MAX_AHEAD = 32
_GRACE = 1.0


class _Answer(NamedTuple):
    client: EndpointClient
    contract: RemoteContract


_Question = tuple[str, ...]
_Query = PendingResult["_Answer | None"]


@dataclass
class _Answers:
    """The contracts received for a prompt that starts, by graph and endpoints, and the endpoints that did not answer.

    ``ahead`` are the queries that were sent when the prompt was posted, at the time ``sent``.
    """

    prompt_id: str = ""
    contracts: dict[_Question, _Answer | None] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    ahead: dict[_Question, _Query] = field(default_factory=dict)
    sent: float = field(default_factory=time.monotonic)


_answers = _Answers()
_posted: _Answers | None = None
"""The queries for the prompt that was posted last, if they were sent ahead of its start."""


def query_ahead(posted: dict[str, Any]) -> dict[str, Any]:
    """Send the queries of a prompt that is posted to an idle ComfyUI. Return its body with an id, or ``posted`` if nothing was sent.

    It is called on the main loop with the body of each POST /prompt. The queries end after `TIMEOUT` seconds whether the prompt starts or not.
    """
    global _posted  # noqa: PLW0603 - the prompt that was posted last
    with compat.shielded("the contracts of a prompt could not be requested ahead"):
        nodes = list(_constant_nodes(posted.get("prompt") if isinstance(posted, dict) else None))
        if nodes and compat.queue_depth() == (0, 0):
            answers = _Answers(posted.get("prompt_id") or str(uuid.uuid4()))
            registry = extension_context().registry
            for graph, endpoint in nodes[:_MAX_AHEAD]:
                _send_ahead(answers, registry, graph, endpoint)
            if answers.ahead:
                _posted = answers
                return {**posted, "prompt_id": answers.prompt_id}
    return posted


def _constant_nodes(prompt: Any) -> Iterator[tuple[str, str]]:
    """Yield graph and endpoint of each Remote Graph node in a posted prompt, unless one of them is linked."""
    for node in prompt.values() if isinstance(prompt, Mapping) else ():
        inputs = node.get("inputs") if isinstance(node, Mapping) and node.get("class_type") == REMOTE_NODE else None
        if isinstance(inputs, Mapping):
            graph, endpoint = inputs.get("graph"), inputs.get("endpoint")
            if isinstance(graph, str) and isinstance(endpoint, str):
                yield graph, endpoint


def _send_ahead(answers: _Answers, registry: EndpointRegistry, graph: str, endpoint: str) -> None:
    try:
        placement = placement_of(registry, graph, endpoint)
        clients = [registry.client(name) for name in placement.endpoints]
    except YggdrasillError:  # the fingerprint reports it
        return
    question = (graph, *placement.endpoints)
    if question not in answers.ahead:
        answers.ahead[question] = loop_thread().start(_query(clients, graph, answers.silent))


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
        answers.contracts[question] = await _answer(answers, registry, question)
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
        posted = _posted
        is_valid = posted is not None and posted.prompt_id == prompt_id and time.monotonic() - posted.sent <= AHEAD_SECONDS
        _answers = posted if posted is not None and is_valid else _Answers(prompt_id)
    return _answers


async def _answer(answers: _Answers, registry: EndpointRegistry, question: _Question) -> _Answer | None:
    """Return the contract from the query that was sent ahead, or from a new one to the endpoints that are not known to be silent."""
    graph, *names = question
    query = answers.ahead.pop(question, None)
    answer = None if query is None else await _wait_for(query)
    # the registry may have changed since the query was sent
    if answer is not None and answer.client.name in names and answer.client is registry.client(answer.client.name):
        return answer
    clients = [registry.client(name) for name in names if name not in answers.silent]
    return await _wait_for(loop_thread().start(_query(clients, graph, answers.silent))) if clients else None


async def _wait_for(query: _Query) -> _Answer | None:
    try:
        return query.future.result() if query.future.done() else await asyncio.wait_for(LoopThread.wait(query), TIMEOUT + _GRACE)
    except (CancelledError, asyncio.TimeoutError):  # the loop thread was closed
        return None


async def _query(clients: Sequence[EndpointClient], graph: str, silent: set[str]) -> _Answer | None:
    """Return the contract from the first endpoint that answers within `TIMEOUT`. Add those that do not answer to ``silent``."""
    try:
        return await asyncio.wait_for(_first_answer(clients, graph, silent), TIMEOUT)
    except (YggdrasillError, asyncio.TimeoutError):
        return None


async def _first_answer(clients: Sequence[EndpointClient], graph: str, silent: set[str]) -> _Answer | None:
    for client in clients:
        try:
            answer = await client.contract(graph)
        except (EndpointUnreachable, asyncio.CancelledError) as error:
            silent.add(client.name)
            if isinstance(error, EndpointUnreachable):
                continue
            raise
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
