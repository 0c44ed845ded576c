"""Deploying over the service: slow builds, equal requests at the same time, and the pins of a state's artifacts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from samples.blocks import Double
from samples.graphs import sample_registry
from samples.http_client import one_node
from yggdrasill.errors import StorageFailed, UnknownArtifact, UnknownGraph, YggdrasillError
from yggdrasill.server_ext.auth import Access, Signer
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.jobs.staging import Fetcher
from yggdrasill.server_ext.jobs.store import JobStore
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.server_ext.principals import Principals
from yggdrasill.server_ext.service import Service
from yggdrasill.values.payload import ArtifactRef, blake3_hex
from yggdrasill.values.stores.base import LocalStore
from yggdrasill.values.stores.memory import MemoryStore

SECONDS = 10.0


class SlowBuild(Double):
    """A block that takes as long to construct as the test decides, and fails then if it has to."""

    block_type = "sample/slow-build"
    may_finish = threading.Event()
    builds = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        type(self).builds += 1
        self.may_finish.wait(SECONDS)
        if self.config.get("fails"):
            raise RuntimeError("these weights are damaged")


@pytest.fixture(autouse=True)
def _slow_build() -> Iterator[None]:
    SlowBuild.may_finish, SlowBuild.builds = threading.Event(), 0
    yield
    SlowBuild.may_finish.set()


@asynccontextmanager
async def service(
    folder: Path, quota: int | None = None, store: MemoryStore | None = None, fetcher: Fetcher | None = None
) -> AsyncIterator[Service]:
    registry = sample_registry()
    registry.register(SlowBuild.block_type, SlowBuild)
    store = store or MemoryStore(quota_bytes=quota)
    opened = Service(
        access=Access(Principals("token-of-a-test"), folder, store),
        host=HeadlessHost(),
        deployments=Deployments(folder / "graphs", HostRules([folder], folder / "worlds", lambda url: False), registry=registry),
        jobs=JobStore(folder / "jobs.sqlite"),
        store=store,
        signer=Signer("key", None),
        fetcher=fetcher or PeerFetcher(store, lambda url: False, 1 << 30),
    )
    await opened.start()
    try:
        yield opened
    finally:
        SlowBuild.may_finish.set()
        await opened.close(0.1)


async def room_for(store: LocalStore, nbytes: int) -> None:
    """Wait until a store has room for so many bytes: pins may be released by another thread, shortly after their request."""
    for _ in range(int(SECONDS / 0.05)):
        with contextlib.suppress(StorageFailed):
            store.put(bytes(nbytes))
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no room for {nbytes} bytes")


def run(act: Coroutine[Any, Any, None]) -> None:
    asyncio.run(act)


def test_many_callers_of_one_slow_graph_share_a_build_and_leave_other_work_its_threads(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            config = one_node("slow-build")
            callers = [asyncio.create_task(endpoint.deploy("slow", "graph", config, None)) for _ in range(40)]
            await asyncio.sleep(0.2)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), SECONDS / 4) == "free"
            assert (await asyncio.wait_for(endpoint.deploy("other", "graph", one_node("double"), None), SECONDS / 4))[1]
            SlowBuild.may_finish.set()
            results = await asyncio.gather(*callers)
            assert SlowBuild.builds == 1
            assert sum(created for _, created in results) == 1
            assert len({id(deployment) for deployment, _ in results}) == 1

    run(act())


def test_removing_a_graph_that_is_being_built_leaves_other_work_its_threads(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            building = asyncio.create_task(endpoint.deploy("slow", "graph", one_node("slow-build"), None))
            await asyncio.sleep(0.1)
            removals = [asyncio.create_task(endpoint.remove("slow")) for _ in range(40)]
            await asyncio.sleep(0.1)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), SECONDS / 4) == "free"
            SlowBuild.may_finish.set()
            await asyncio.gather(building, *removals)
            with pytest.raises(UnknownGraph):
                await endpoint.remove("slow")

    run(act())


def test_requests_for_one_id_are_built_one_after_the_other(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            slow = asyncio.create_task(endpoint.deploy("g", "graph", one_node("slow-build"), None))
            await asyncio.sleep(0.1)
            fast = asyncio.create_task(endpoint.deploy("g", "graph", one_node("double"), None))
            wanted = asyncio.create_task(endpoint.deployment("g"))
            await asyncio.sleep(0.1)
            assert not fast.done()
            assert not wanted.done()
            SlowBuild.may_finish.set()
            assert [created for _, created in await asyncio.gather(slow, fast)] == [True, True]
            assert (await wanted).graph_id == "g"
            assert (await endpoint.deployment("g")).hash == fast.result()[0].hash

    run(act())


def test_a_failed_build_fails_for_all_its_callers_and_leaves_nothing(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            SlowBuild.may_finish.set()
            callers = [endpoint.deploy("bad", "graph", one_node("slow-build", fails=True), None) for _ in range(3)]
            for error in await asyncio.gather(*callers, return_exceptions=True):
                assert isinstance(error, YggdrasillError | RuntimeError)
                assert "damaged" in str(error)
            assert (await endpoint.deploy("bad", "graph", one_node("double"), None))[1]

    run(act())


def test_the_artifacts_of_a_deployment_that_lacks_some_can_be_evicted(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, quota=3_000_000) as endpoint:
            for number in range(2):
                present = endpoint.store.put(bytes([number]) * 1_400_000)
                payloads = [
                    {"dtype": "uint8", "shape": [1_400_000], "nbytes": 1_400_000, "artifact": present},
                    {"dtype": "uint8", "shape": [1], "nbytes": 1, "artifact": "f" * 64},
                ]
                state = {"skeleton": {"node": {"a": {"$tensor": 0}, "b": {"$tensor": 1}}}, "payloads": payloads}
                with pytest.raises(UnknownArtifact):
                    await endpoint.deploy(f"never-{number}", "graph", one_node("linear"), state)
            await room_for(endpoint.store, 2_000_000)

    run(act())


class WaitingFetcher:
    """A peer that sends its only artifact when the test allows it."""

    def __init__(self, store: MemoryStore, content: bytes) -> None:
        self.store, self.content, self.may_send = store, content, asyncio.Event()

    def allows(self, url: str, artifact: str) -> bool:
        return True

    async def fetch(self, ref: ArtifactRef) -> bool:
        await self.may_send.wait()
        self.store.put(self.content, hash=ref.hash)
        return True

    async def close(self) -> None:
        self.may_send.set()


def test_two_deployments_of_one_id_at_a_time_keep_each_others_artifacts_pinned(tmp_path: Path) -> None:
    async def act() -> None:
        content = bytes(range(256)) * 400
        store = MemoryStore(quota_bytes=3_000_000)
        fetcher = WaitingFetcher(store, content)
        async with service(tmp_path, store=store, fetcher=fetcher) as endpoint:
            present = {"dtype": "uint8", "shape": [1_400_000], "nbytes": 1_400_000, "artifact": store.put(b"p" * 1_400_000)}
            name = blake3_hex(memoryview(content))
            fetched = {"dtype": "uint8", "shape": [len(content)], "nbytes": len(content), "artifact": name, "url": "http://peer/a"}
            both = {"skeleton": {"node": {"a": {"$tensor": 0}, "b": {"$tensor": 1}}}, "payloads": [present, fetched]}
            first = asyncio.create_task(endpoint.deploy("g", "graph", one_node("double"), both))
            await asyncio.sleep(0.1)
            with pytest.raises(YggdrasillError, match="Unknown kind"):
                await endpoint.deploy("g", "nothing", one_node("double"), {"skeleton": {"a": {"$tensor": 0}}, "payloads": [present]})
            with pytest.raises(StorageFailed, match="pinned"):
                store.put(b"x" * 2_000_000)
            fetcher.may_send.set()
            await asyncio.gather(first, return_exceptions=True)
            await room_for(store, 2_000_000)

    run(act())
