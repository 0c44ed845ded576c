"""Downloads of artifacts from endpoints, resumed after a broken connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from yggdrasill.errors import CorruptData, EndpointUnreachable, StorageFailed, UnknownArtifact
from yggdrasill.executor.context import current_run
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.local_peers import MIN_FOLDER_BYTES
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.observers import LoadReport, TransferMeter, report
from yggdrasill.remote.retry import Retry, RetryPolicy
from yggdrasill.values.handles import ArtifactHandle
from yggdrasill.values.payload import ArtifactRef
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.stores.threaded import write_stream

__all__ = ["MAX_RANGE_BYTES", "Downloads", "RangeResponse", "RemoteHandle", "fetch", "load", "stream_artifact", "stream_ranges"]

PARALLEL = 4
MAX_RANGE_BYTES = 64 << 20
"""Bytes that are requested at once."""


class RemoteHandle(ArtifactHandle):
    """A handle of a tensor that is stored at an endpoint."""

    def __init__(self, ref: ArtifactRef, client: EndpointClient, artifact_client: ArtifactClient) -> None:
        super().__init__(ref, lambda ref: load(client, ref, artifact_client))
        self.client = client


def load(client: EndpointClient, ref: ArtifactRef, artifact_client: ArtifactClient) -> memoryview:
    """Return the bytes of an artifact, from the artifact client or by a download that blocks this thread."""
    meter, started = TransferMeter(), time.perf_counter()
    data = loop_thread().run(fetch(client, ref, artifact_client, Retry(), meter))
    if meter.bytes_received:
        report(LoadReport(client.name, started, time.perf_counter(), meter.bytes_received, current_run().pass_index))
    return data


class RangeResponse(Protocol):
    """A response with bytes of an artifact: with status 206 those of the requested range, else all."""

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes. Raises `EndpointUnreachable` if the connection broke."""
        ...


async def stream_ranges(
    open_range: Callable[[int, int], AbstractAsyncContextManager[RangeResponse]],
    span: tuple[int, int],
    retry: Retry,
    mismatch: Callable[[str], Exception],
    most: int | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of ``span`` (first, end) in order, each once, resumed after broken connections.

    A request is for at most ``most`` bytes, or `MAX_RANGE_BYTES`.
    ``open_range(start, stop)`` opens a response; ``mismatch(what)`` is the error to raise if there are more or fewer bytes.

    Raises:
        EndpointUnreachable: the connection stays lost. Otherwise as ``open_range``.
    """
    offset, end = span
    while True:
        stop = min(offset + (most or MAX_RANGE_BYTES), end)
        try:
            async with open_range(offset, stop) as response:
                is_range = response.status == 206
                skip = 0 if is_range else offset
                async for chunk in response.chunks():
                    retry.answered()
                    unread, skip = chunk[skip:], max(0, skip - len(chunk))
                    offset += len(unread)
                    if offset > (stop if is_range else end):
                        raise mismatch("more")
                    if unread:
                        yield unread
        except EndpointUnreachable as error:
            if offset < end or not offset:  # else the connection broke after the last byte
                await retry.pause(error)
                continue
        else:
            if offset < stop:
                raise mismatch(f"only {offset}")
        if offset >= end:
            return


async def stream_artifact(
    client: EndpointClient, ref: ArtifactRef, retry: Retry, start: int = 0, stop: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield an artifact's bytes from ``start`` to ``stop``, see `stream_ranges`.

    Raises:
        UnknownArtifact, CorruptData (more or fewer bytes than described), EndpointUnreachable
    """

    def open_range(first: int, end: int) -> AbstractAsyncContextManager[RangeResponse]:
        return client.get_artifact(ref.hash, first, None if end == ref.nbytes else end)

    span = start, ref.nbytes if stop is None else stop
    async with contextlib.aclosing(stream_ranges(open_range, span, retry, lambda what: _corrupt(client, ref, what))) as chunks:
        async for chunk in chunks:
            yield chunk


async def fetch(
    client: EndpointClient, ref: ArtifactRef, artifact_client: ArtifactClient, retry: Retry, meter: TransferMeter
) -> memoryview:
    """Return the verified bytes of an artifact, in memory that a tensor may own unless they are in the artifact client's store."""
    with contextlib.suppress(UnknownArtifact):
        return await asyncio.to_thread(artifact_client.store.read, ref.hash)
    mapped = await _local_peer(_client_for(client, ref), ref, retry)
    if mapped is not None:
        return mapped
    if ref.hash in artifact_client.downloads:
        cached = await asyncio.to_thread(artifact_client.downloads.take, ref.hash)
        if cached is not None:
            return cached
    memory = await _receive(_client_for(client, ref), ref, retry)
    meter.bytes_received += ref.nbytes
    return artifact_client.downloads.keep(ref.hash, memory)


async def _local_peer(client: EndpointClient, ref: ArtifactRef, retry: Retry) -> memoryview | None:
    """Return the bytes as a private map of their file if the endpoint is a local peer with them on disk, else None."""
    store = await retry.persist(client.local_peer.store) if ref.nbytes > MIN_FOLDER_BYTES else None
    if store is None:
        return None
    try:
        return await asyncio.to_thread(store.read, ref.hash)
    except (UnknownArtifact, StorageFailed):
        return None


async def _receive(client: EndpointClient, ref: ArtifactRef, retry: Retry) -> memoryview:
    """Return the bytes in new memory, hashed during the transfer."""
    arriving = MemoryStore()
    with arriving.writer(ref.hash, ref.nbytes) as writer:
        async with contextlib.aclosing(stream_artifact(client, ref, retry)) as chunks:
            await write_stream(chunks, writer.write)
        try:
            writer.commit()
        except CorruptData:
            raise _corrupt(client, ref, "other") from None
    return arriving.pop(ref.hash)


class Downloads:
    """Downloads of one call's artifacts, a few in parallel; those known before the end of the call may begin earlier."""

    def __init__(self, artifact_client: ArtifactClient, retry_policy: RetryPolicy, meter: TransferMeter) -> None:
        self._artifact_client, self._retry_policy, self._meter = artifact_client, retry_policy, meter
        self._gate = asyncio.Semaphore(PARALLEL)
        self._tasks: dict[str, tuple[EndpointClient, asyncio.Task[memoryview]]] = {}

    def begin(self, client: EndpointClient, refs: Iterable[ArtifactRef]) -> None:
        """Start downloads, each once, without waiting. Must run on the loop thread's loop."""
        for ref in refs:
            running = self._tasks.get(ref.hash)
            if running is not None and running[0] is client and not _has_failed(running[1]):
                continue
            if running is not None:
                running[1].cancel()
            self._tasks[ref.hash] = client, asyncio.ensure_future(self._fetch(client, ref))

    def arrived(self, client: EndpointClient, refs: Iterable[ArtifactRef]) -> None:
        """Start downloads of artifacts available before the end of the call. A local peer's folder is read after the call instead."""
        if client.local_peer.opened is None:
            self.begin(client, refs)

    async def all(self, client: EndpointClient, refs: Iterable[ArtifactRef]) -> dict[str, memoryview]:
        """Return the bytes by hash. Raise as `fetch`."""
        wanted = {ref.hash: ref for ref in refs}
        self.begin(client, wanted.values())
        return dict(zip(wanted, await asyncio.gather(*(self._tasks[name][1] for name in wanted)), strict=True))

    async def close(self) -> None:
        """Cancel unfinished downloads."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, client: EndpointClient, ref: ArtifactRef) -> memoryview:
        async with self._gate:
            return await fetch(client, ref, self._artifact_client, Retry(self._retry_policy), self._meter)


def _has_failed(task: asyncio.Task[memoryview]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _client_for(client: EndpointClient, ref: ArtifactRef) -> EndpointClient:
    """Return the client to download from: the known endpoint of the reference's URL, or the one that sent the reference."""
    if ref.url is None or client.is_own(ref.url):
        return client
    return client.peer(ref.url) or client


def _corrupt(client: EndpointClient, ref: ArtifactRef, what: str) -> CorruptData | UnknownArtifact:
    return CorruptData(
        f"endpoint {client.name!r} sent {what} bytes for artifact {ref.hash} ({ref.dtype} {list(ref.shape)}, {ref.nbytes} bytes); call again",
        hash=ref.hash,
        endpoint=client.name,
    )
