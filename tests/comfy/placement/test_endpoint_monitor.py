"""The endpoint monitor: queries in the background, only of endpoints in use, and soon after a change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from samples.endpoints import Cutter, EndpointProcess, cutter
from yggdrasill.remote import EndpointClient, EndpointRegistry
from yggdrasill.remote.partition.parts import Part
from yggdrasill.remote.partition.placement_keys import PlacedPart
from yggdrasill.server_ext.comfy.editor.endpoint_summary import endpoint_summary
from yggdrasill.server_ext.comfy.local_facts import LocalFacts
from yggdrasill.server_ext.comfy.placement import validator
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointMonitor, EndpointState
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.validator import PromptValidator


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[EndpointProcess]:
    """An endpoint."""
    process = EndpointProcess("forge", tmp_path / "forge").start()
    yield process
    process.stop()


@pytest.fixture
def seen(forge: EndpointProcess) -> Iterator[Cutter]:
    """A proxy in front of it that counts bytes."""
    with cutter(forge) as proxy:
        yield proxy


def registry(forge: EndpointProcess, url: str, **graphs: str) -> EndpointRegistry:
    known = EndpointRegistry({"forge": forge.endpoint(url)})
    for name, endpoint in graphs.items():
        known.place_key(name, endpoint)
    return known


@asynccontextmanager
async def watching(known: Callable[[], EndpointRegistry]) -> AsyncIterator[EndpointMonitor]:
    states = EndpointMonitor(known)
    states.start()
    try:
        yield states
    finally:
        await states.stop()


async def until(states: EndpointMonitor, what: Callable[[EndpointState], bool]) -> EndpointState:
    for _ in range(500):
        if what(states.state("forge")):
            return states.state("forge")
        await asyncio.sleep(0.02)
    raise TimeoutError(states.state("forge").to_dict())


async def test_a_prompt_waits_for_the_first_capabilities_of_an_endpoint_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first capabilities read every node class and model folder, which takes long on a slow disk; the health does not."""

    async def health(client: EndpointClient) -> dict[str, Any]:
        return {"status": "ok"}

    async def capabilities(client: EndpointClient) -> dict[str, Any]:
        await asyncio.sleep(0.6)
        return {"host": "comfy"}

    monkeypatch.setattr(EndpointClient, "health", health)
    monkeypatch.setattr(EndpointClient, "capabilities", capabilities)
    monkeypatch.setattr(validator, "_TIMEOUT", 0.1)
    known = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {"part": "forge"})
    monitor = EndpointMonitor(lambda: known)
    placed = PlacedPart(Part("part", frozenset({"1"})), known.placements["part"])
    states = await PromptValidator(monitor, SchemaCache(), LocalFacts())._states_of([placed])
    assert states["forge"].up
    assert states["forge"].facts == {"host": "comfy"}
    await monitor.stop()


async def test_an_endpoint_whose_capabilities_are_pending_counts_as_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    known_yet = threading.Event()

    async def health(client: EndpointClient) -> dict[str, Any]:
        return {"status": "ok"}

    async def capabilities(client: EndpointClient) -> dict[str, Any]:
        await asyncio.to_thread(known_yet.wait, 30)
        return {"host": "comfy"}

    monkeypatch.setattr(EndpointClient, "health", health)
    monkeypatch.setattr(EndpointClient, "capabilities", capabilities)
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"})
    monitor = EndpointMonitor(lambda: registry)
    state = (await monitor.refresh(["forge"], max_age=0.0, timeout=0.3))["forge"]
    assert not state.up
    assert endpoint_summary(state, "http://127.0.0.1:9")["state"] == "starting"
    assert state.reason == "it has started, and its node classes are not known yet"
    known_yet.set()
    state = (await monitor.refresh(["forge"], max_age=0.0, timeout=0.0, facts_timeout=20.0))["forge"]
    assert state.up
    assert endpoint_summary(state, "http://127.0.0.1:9")["state"] == "up"
    await monitor.stop()


async def test_new_capabilities_are_read_at_any_age_and_after_a_query_that_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["old.safetensors"]
    slow = False

    async def health(client: EndpointClient) -> dict[str, Any]:
        if slow:
            await asyncio.sleep(0.3)
        return {"status": "ok"}

    async def capabilities(client: EndpointClient) -> dict[str, Any]:
        return {"host": "comfy", "models": {"loras": list(files)}}

    monkeypatch.setattr(EndpointClient, "health", health)
    monkeypatch.setattr(EndpointClient, "capabilities", capabilities)
    known = EndpointRegistry({"forge": "http://127.0.0.1:9"})
    monitor = EndpointMonitor(lambda: known)
    await monitor.refresh(["forge"], max_age=60.0, timeout=5.0)
    files.append("new.safetensors")
    state = (await monitor.refresh(["forge"], max_age=60.0, timeout=5.0))["forge"]
    assert state.facts["models"] == {"loras": ["old.safetensors"]}
    state = (await monitor.refresh(["forge"], max_age=60.0, timeout=5.0, new_facts=True))["forge"]
    assert state.facts["models"] == {"loras": files}
    slow = True
    await monitor.refresh(["forge"], max_age=0.0, timeout=0.1)
    files.append("newest.safetensors")
    state = (await monitor.refresh(["forge"], max_age=60.0, timeout=5.0, new_facts=True))["forge"]
    assert state.facts["models"] == {"loras": files}
    await monitor.stop()


async def test_an_endpoint_without_placements_is_not_queried(forge: EndpointProcess, seen: Cutter) -> None:
    known = registry(forge, seen.url)
    async with watching(lambda: known) as states:
        await asyncio.sleep(0.3)
        assert seen.to_server == 0
        assert states.states() == {"forge": EndpointState("forge")}
        states.watch(["forge"])
        state = await until(states, lambda state: bool(state.up))
        assert (state.queue["queued"], state.load, state.reason) == (0, 0.0, None)
        assert state.facts["torch"]["version"]
        assert seen.url not in repr(state.to_dict())
        assert forge.url not in repr(state.to_dict())


async def test_an_endpoint_with_a_placement_is_queried_in_advance(forge: EndpointProcess, seen: Cutter) -> None:
    known = registry(forge, seen.url, soft="forge")
    async with watching(lambda: known) as states:
        await until(states, lambda state: bool(state.up))
        asked = seen.to_server
        assert (await states.refresh(["forge"], max_age=60.0, timeout=5.0))["forge"].up
        assert seen.to_server == asked


async def test_an_endpoint_that_went_down_has_a_reason(forge: EndpointProcess, seen: Cutter) -> None:
    known = registry(forge, seen.url)
    async with watching(lambda: known) as states:
        assert (await states.refresh(["forge"], max_age=0.0, timeout=10.0))["forge"].up
        forge.kill()
        down = (await states.refresh(["forge"], max_age=0.0, timeout=10.0))["forge"]
        assert down.up is False
        assert down.load == float("inf")
        assert down.facts
        assert str(down.reason).startswith("endpoint 'forge': ")
        assert "http" not in repr(down.to_dict())
        forge.start()
        again = (await states.refresh(["forge"], max_age=0.0, timeout=10.0))["forge"]
        assert again.up
        assert again.since > down.since


async def test_a_new_token_in_the_registry_is_used_at_once(forge: EndpointProcess, seen: Cutter) -> None:
    wrong = EndpointRegistry({"forge": seen.url}, {"soft": "forge"})
    right = registry(forge, seen.url, soft="forge")
    current = [wrong]
    async with watching(lambda: current[0]) as states:
        refused = await until(states, lambda state: state.up is False)
        assert refused.reason
        current[0] = right
        states.watch(["forge"])
        await until(states, lambda state: bool(state.up))
