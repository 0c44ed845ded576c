"""Fingerprints of Remote Graph nodes: an endpoint that does not answer delays a prompt once, however many of its nodes name it."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from yggdrasill.remote import EndpointRegistry
from yggdrasill.server_ext.comfy import contract_fingerprint
from yggdrasill.server_ext.comfy.contract_fingerprint import fingerprint


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch, silent: str) -> SimpleNamespace:
    """The prompt that starts; its nodes name the endpoint ``silent``."""
    starting = SimpleNamespace(prompt_id="first")
    registry = EndpointRegistry({"silent": silent})
    monkeypatch.setattr("yggdrasill.server_ext.comfy.compat.executing_node", lambda: starting)
    monkeypatch.setattr(contract_fingerprint, "extension_context", lambda: SimpleNamespace(registry=registry, local_fallbacks=None))
    monkeypatch.setattr(contract_fingerprint, "TIMEOUT", 0.5)
    return starting


async def seconds_for(*graphs: str) -> float:
    began = time.monotonic()
    for graph in graphs:
        assert math.isnan(float(await fingerprint(graph, "silent")))
    return time.monotonic() - began


async def test_a_silent_endpoint_delays_a_prompt_once(prompt: SimpleNamespace) -> None:
    assert 0.4 < await seconds_for("one") < 5
    assert await seconds_for("two", "three", "four", "five", "six") < 0.4
    prompt.prompt_id = "second"
    assert await seconds_for("one") > 0.4
