"""Artifacts from an endpoint: as a stream that goes on where a connection broke, or into this process's memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

from yggdrasill.errors import CorruptData, EndpointUnreachable, UnknownArtifact
from yggdrasill.executor.context import current_run
from yggdrasill.remote.bridge import bridge
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.depot import Depot
from yggdrasill.remote.reports import LoadReport, Meter, report
from yggdrasill.remote.retry import Retry
from yggdrasill.values.artifact_refs import ArtifactHandle, ArtifactRef
from yggdrasill.values.memory_store import aligned_memory
from yggdrasill.values.payload import blake3_hex

__all__ = ["RemoteHandle", "fetch", "fetch_all", "load", "stream"]

PARALLEL = 4


class RemoteHandle(ArtifactHandle):
    """A tensor that lies at an endpoint until somebody loads it."""

    def __init__(self, ref: ArtifactRef, client: EndpointClient, depot: Depot) -> None:
        super().__init__(ref, lambda ref: load(client, ref, depot))
        self.client = client


def load(client: EndpointClient, ref: ArtifactRef, depot: Depot) -> memoryview:
    """The bytes of an artifact, from the depot if they are there, else fetched while this thread waits."""
    meter, started = Meter(), time.perf_counter()
    data = bridge().run(fetch(client, ref, depot, Retry(), meter))
    if meter.bytes_received:
        report(LoadReport(client.name, started, time.perf_counter(), meter.bytes_received, current_run().pass_index))
    return data


async def stream(client: EndpointClient, ref: ArtifactRef, retry: Retry) -> AsyncIterator[bytes]:
    """An artifact's bytes in order, each once, however often the connection breaks.

    Raises:
        UnknownArtifact, CorruptData (more or fewer bytes than described), EndpointUnreachable
    """
    offset = 0
    while True:
        try:
            async with client.get_artifact(ref.hash, offset) as response:
                skip = offset if offset and response.status != 206 else 0
                async for chunk in response.chunks():
                    retry.answered()
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    offset += len(fresh)
                    if offset > ref.nbytes:
                        raise _corrupt(client, ref, "more")
                    if fresh:
                        yield fresh
        except EndpointUnreachable as error:
            await retry.pause(error)
            continue
        if offset < ref.nbytes:
            raise _corrupt(client, ref, f"only {offset}")
        return


async def fetch(client: EndpointClient, ref: ArtifactRef, depot: Depot, retry: Retry, meter: Meter) -> memoryview:
    """The bytes of an artifact, compared with their hash; memory that a tensor may own, unless they are in the depot already."""
    with contextlib.suppress(UnknownArtifact):
        return depot.store.read(ref.hash)
    memory = aligned_memory(ref.nbytes)
    offset = 0
    async for chunk in stream(_holder(client, ref), ref, retry):
        memory[offset : offset + len(chunk)] = chunk
        offset += len(chunk)
    if await asyncio.to_thread(blake3_hex, memory) != ref.hash:
        raise _corrupt(client, ref, "other")
    meter.bytes_received += ref.nbytes
    return memory


async def fetch_all(client: EndpointClient, refs: Iterable[ArtifactRef], depot: Depot, retry: Retry, meter: Meter) -> dict[str, memoryview]:
    """The bytes of several artifacts by hash, a few at a time."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(ref: ArtifactRef) -> tuple[str, memoryview]:
        async with gate:
            return ref.hash, await fetch(client, ref, depot, retry, meter)

    return dict(await asyncio.gather(*(one(ref) for ref in refs)))


def _holder(client: EndpointClient, ref: ArtifactRef) -> EndpointClient:
    """Who is asked for the bytes: the known endpoint whose url stands in the reference, else the one that gave it."""
    if ref.url is None or client.is_own(ref.url):
        return client
    return client.peer(ref.url) or client


def _corrupt(client: EndpointClient, ref: ArtifactRef, what: str) -> CorruptData | UnknownArtifact:
    return CorruptData(
        f"endpoint {client.name!r} sent {what} bytes for artifact {ref.hash} ({ref.dtype} {list(ref.shape)}, {ref.nbytes} bytes); call again",
        hash=ref.hash,
        endpoint=client.name,
    )
