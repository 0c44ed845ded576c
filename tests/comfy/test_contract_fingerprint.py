"""Fingerprints of Remote Graph nodes: an endpoint that does not answer, and the contract that the call of the same node uses."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.server_ext.comfy import contract_fingerprint
from yggdrasill.server_ext.comfy.contract_fingerprint import contracts_of, fingerprint

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
