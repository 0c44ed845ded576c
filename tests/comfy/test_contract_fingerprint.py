"""Fingerprints of Remote Graph nodes: queries ahead of the start, endpoints that do not answer, and the contract that the node's call uses."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from yggdrasill.errors import UnknownGraph
from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.server_ext.comfy import contract_fingerprint
from yggdrasill.server_ext.comfy.contract_fingerprint import contracts_of, fingerprint, query_ahead

PLACE = ("graph", "a", "b")


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.setblocking(False)
        yield listening


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch, silent: socket.socket) -> SimpleNamespace:
    """The prompt that starts; its nodes name the endpoint ``silent``."""
    starting = SimpleNamespace(prompt_id="first")
    registry = EndpointRegistry({"silent": f"http://127.0.0.1:{silent.getsockname()[1]}"})
    monkeypatch.setattr("yggdrasill.server_ext.comfy.compat.executing_node", lambda: starting)
    monkeypatch.setattr("yggdrasill.server_ext.comfy.compat.queue_depth", lambda: (0, 0))
    monkeypatch.setattr(contract_fingerprint, "extension_context", lambda: SimpleNamespace(registry=registry, local_fallbacks=None))
    monkeypatch.setattr(contract_fingerprint, "TIMEOUT", 0.5)
    return starting


async def connections_for(silent: socket.socket, *graphs: str) -> int:
    """Return how often the endpoint was asked for the fingerprints of the graphs."""
    for graph in graphs:
        assert math.isnan(float(await fingerprint(graph, "silent")))
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            silent.accept()[0].close()
            count += 1
    return count


async def test_a_silent_endpoint_delays_a_prompt_once(prompt: SimpleNamespace, silent: socket.socket) -> None:
    began = time.monotonic()
    assert await connections_for(silent, "one") == 1
    assert time.monotonic() - began > 0.4
    assert await connections_for(silent, "two", "three", "four", "five", "six") == 0
    prompt.prompt_id = "second"
    assert await connections_for(silent, "one") == 1


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> EndpointClient:
    """The client of an endpoint that was called before, and whose contract was read for the prompt ``p``."""
    monkeypatch.setattr(contract_fingerprint, "_answers", contract_fingerprint._Answers("p"))
    made = EndpointClient("http://127.0.0.1:9", name="a")
    made.facts = {"torch": None}
    record(made, conditional=True)
    return made


def record(client: EndpointClient, *, conditional: bool) -> RemoteContract:
    contract = RemoteContract("graph", "comfy", "h", conditional=conditional)
    contract_fingerprint._answers.contracts[PLACE] = contract_fingerprint._Answer(client, contract)
    return contract


def test_a_call_uses_the_contract_of_its_fingerprint(client: EndpointClient) -> None:
    ((found, contract),) = contracts_of("p", "graph", ("a", "b")).items()
    assert found is client
    assert contract.hash == "h"


def test_a_call_of_another_prompt_graph_or_endpoint_reads_the_contract(client: EndpointClient) -> None:
    assert contracts_of("other", "graph", ("a", "b")) == {}
    assert contracts_of("", "graph", ("a", "b")) == {}
    assert contracts_of("p", "other", ("a", "b")) == {}
    assert contracts_of("p", "graph", ("a",)) == {}
    contract_fingerprint._answers.contracts[PLACE] = None
    assert contracts_of("p", "graph", ("a", "b")) == {}


def test_a_contract_is_not_reused_at_an_endpoint_that_does_not_check_it(client: EndpointClient) -> None:
    record(client, conditional=False)
    assert contracts_of("p", "graph", ("a", "b")) == {}


def test_the_first_call_at_an_endpoint_reads_the_contract_and_compares_the_builds(client: EndpointClient) -> None:
    client.facts = None
    assert contracts_of("p", "graph", ("a", "b")) == {}


# -- queries ahead of the start ----------------------------------------------------------------------------------------


class Served:
    """An endpoint whose graphs have the hash ``hash``. It answers when as many graphs as ``together`` were requested."""

    name = "a"

    def __init__(self) -> None:
        self.hash = "first"
        self.requested: list[str] = []
        self.together = 1
        self.reusable = True
        self.registry = EndpointRegistry({"a": "http://127.0.0.1:9"})
        self.enough = threading.Event()

    async def contract(self, graph: str) -> dict[str, Any]:
        served = self.hash
        self.requested.append(graph)
        if len(self.requested) >= self.together:
            self.enough.set()
        await asyncio.to_thread(self.enough.wait, 20.0)
        if graph == "unknown":
            raise UnknownGraph("unknown")
        return {"graph_id": graph, "kind": "comfy", "hash": served, "inputs": [], "outputs": [], "reusable": self.reusable}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """The endpoint ``a`` of a ComfyUI that is idle."""
    made = Served()
    monkeypatch.setattr(made.registry, "client", lambda name: made)
    monkeypatch.setattr("yggdrasill.server_ext.comfy.compat.queue_depth", lambda: (0, 0))
    monkeypatch.setattr(contract_fingerprint, "extension_context", lambda: SimpleNamespace(registry=made.registry, local_fallbacks=None))
    monkeypatch.setattr(contract_fingerprint, "_posted", None)
    monkeypatch.setattr(contract_fingerprint, "_answers", contract_fingerprint._Answers())
    monkeypatch.setattr(contract_fingerprint, "AHEAD_SECONDS", 60.0)
    return made


def start(monkeypatch: pytest.MonkeyPatch, prompt_id: str) -> None:
    """Let ComfyUI start the prompt with this id."""
    starting = SimpleNamespace(prompt_id=prompt_id)
    monkeypatch.setattr("yggdrasill.server_ext.comfy.compat.executing_node", lambda: starting)


def posted(*graphs: Any, endpoint: Any = "a") -> dict[str, Any]:
    nodes = [{"class_type": "YggdrasillRemoteGraph", "inputs": {"graph": graph, "endpoint": endpoint}} for graph in graphs]
    return {"prompt": {str(number): node for number, node in enumerate(nodes)}, "client_id": "page"}


async def test_the_contract_is_requested_when_the_prompt_is_posted_and_not_again(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    body = query_ahead(posted("one", "one"))
    await asyncio.to_thread(served.enough.wait, 20.0)
    start(monkeypatch, body["prompt_id"])
    assert await fingerprint("one", "a") == "first"
    assert await fingerprint("one", "a") == "first"
    assert served.requested == ["one"]


async def test_the_contracts_of_a_posted_prompt_are_requested_at_the_same_time(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    served.together = 3
    start(monkeypatch, query_ahead(posted("one", "two", "three"))["prompt_id"])
    assert await fingerprint("one", "a") == "first"
    assert sorted(served.requested) == ["one", "three", "two"]


async def test_the_posted_body_is_the_same_except_for_an_id(served: Served) -> None:
    body = posted("one")
    changed = query_ahead(body)
    assert {**changed, "prompt_id": None} == {**body, "prompt_id": None}
    assert changed["prompt"] is body["prompt"]
    assert query_ahead({**body, "prompt_id": "chosen"})["prompt_id"] == "chosen"


async def test_a_graph_that_is_replaced_while_its_prompt_waits_is_noticed(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setattr(contract_fingerprint, "AHEAD_SECONDS", 0.0)
    body = query_ahead(posted("one"))
    await asyncio.to_thread(served.enough.wait, 20.0)
    served.hash = "second"
    start(monkeypatch, body["prompt_id"])
    assert await fingerprint("one", "a") == "second"


async def test_a_prompt_does_not_use_the_queries_of_another_one(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    query_ahead(posted("one"))
    await asyncio.to_thread(served.enough.wait, 20.0)
    served.hash = "second"
    start(monkeypatch, "another")
    assert await fingerprint("one", "a") == "second"


async def test_an_answer_of_an_endpoint_that_was_replaced_in_the_registry_is_not_used(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    start(monkeypatch, query_ahead(posted("one"))["prompt_id"])
    other = Served()
    other.hash = "second"
    monkeypatch.setattr(served.registry, "client", lambda name: other)
    assert await fingerprint("one", "a") == "second"


@pytest.mark.parametrize("depth", [(0, 1), (1, 0)])
def test_nothing_is_requested_for_a_prompt_that_has_to_wait(
    monkeypatch: pytest.MonkeyPatch, served: Served, depth: tuple[int, int]
) -> None:
    monkeypatch.setattr("yggdrasill.server_ext.comfy.compat.queue_depth", lambda: depth)
    body = posted("one")
    assert query_ahead(body) is body
    assert contract_fingerprint._posted is None


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": {"1": {"class_type": "Other", "inputs": {"graph": "one", "endpoint": "a"}}}},
        posted(["5", 0]),
        posted("one", endpoint=["5", 0]),
        posted("one", endpoint="unknown"),
        {"prompt": {"1": 5, "2": {"class_type": "YggdrasillRemoteGraph"}, "3": {"class_type": "YggdrasillRemoteGraph", "inputs": []}}},
        {"prompt": [1]},
        {},
        [],
    ],
)
def test_a_body_without_constant_remote_graphs_is_left_as_it_is(served: Served, body: Any) -> None:
    assert query_ahead(body) is body
    assert contract_fingerprint._posted is None


async def test_a_query_ahead_that_fails_is_repeated_at_the_start(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    start(monkeypatch, query_ahead(posted("unknown"))["prompt_id"])
    assert math.isnan(float(await fingerprint("unknown", "a")))
    assert served.requested == ["unknown", "unknown"]


async def test_a_silent_endpoint_delays_a_posted_prompt_once(
    monkeypatch: pytest.MonkeyPatch, prompt: SimpleNamespace, silent: socket.socket
) -> None:
    monkeypatch.setattr(contract_fingerprint, "AHEAD_SECONDS", 60.0)
    prompt.prompt_id = query_ahead(posted("one", "two", endpoint="silent"))["prompt_id"]
    began = time.monotonic()
    assert await connections_for(silent, "one", "two", "three") == 2
    assert time.monotonic() - began < 5.0


async def test_queries_ahead_end_although_no_prompt_starts(prompt: SimpleNamespace) -> None:
    query_ahead(posted("one", endpoint="silent"))
    ahead = contract_fingerprint._posted
    assert ahead is not None
    (query,) = ahead.ahead.values()
    assert await asyncio.to_thread(query.future.result, 20.0) is None
    assert ahead.silent == {"silent"}
