"""Artifacts to an endpoint that lacks them: from the caller's memory, or passed on from the endpoint that holds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from yggdrasill.errors import EndpointUnreachable, UnknownArtifact, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.depot import Depot
from yggdrasill.remote.downloads import RemoteHandle, stream
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.transports.transport import Chunk
from yggdrasill.values.artifact_refs import ArtifactHandle
from yggdrasill.values.codec import encode

__all__ = ["find_handles", "upload"]

PARALLEL = 4
CHUNK_BYTES = 1 << 20


async def upload(client: EndpointClient, hashes: Iterable[str], value: Any, depot: Depot, retry: Retry) -> int:
    """Bring the artifacts of a packed ``value`` to an endpoint, a few at a time, each streamed; gives the bytes sent.

    What the caller only has a handle of is passed on from where it lies without being held here.

    Raises:
        UnknownArtifact: nobody has the bytes any more. CorruptData, PayloadTooLarge, StorageFailed, EndpointUnreachable
    """
    handles = {handle.hash: handle for handle in find_handles(value)}
    gate = asyncio.Semaphore(PARALLEL)

    async def one(name: str) -> int:
        async with gate:
            return await _send(client, name, handles.get(name), depot, retry)

    return sum(await asyncio.gather(*(one(name) for name in hashes)))


def find_handles(value: Any) -> list[ArtifactHandle]:
    """Every handle in ``value``, at any depth of lists, tuples and dicts."""
    found: list[ArtifactHandle] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ArtifactHandle):
            found.append(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
    return found


async def _send(client: EndpointClient, name: str, handle: ArtifactHandle | None, depot: Depot, retry: Retry) -> int:
    failures: list[YggdrasillError] = []
    if depot.store.has(name):
        view = depot.store.read(name)
        start, length = _from_memory(view), view.nbytes
    elif isinstance(handle, RemoteHandle) and not handle.loaded:
        start, length = _from_endpoint(handle, failures), handle.nbytes
    elif handle is not None:
        (payload,) = encode(await asyncio.to_thread(handle.load)).payloads
        start, length = _from_memory(payload.data), payload.data.nbytes
    else:
        raise UnknownArtifact(
            f"endpoint {client.name!r} lacks artifact {name}, and nobody here has it; call again with the value", hash=name
        )
    client.check_size("max_artifact_bytes", length, "a tensor or byte string")
    while True:
        try:
            await client.put_artifact(name, start, length)
        except EndpointUnreachable as error:
            if failures:
                raise failures[0] from error
            await retry.pause(error)
        else:
            retry.answered()
            return length


def _from_memory(view: memoryview) -> Callable[[], AsyncIterator[Chunk]]:
    async def chunks() -> AsyncIterator[Chunk]:
        for place in range(0, view.nbytes, CHUNK_BYTES):
            yield view[place : place + CHUNK_BYTES]

    return chunks


def _from_endpoint(handle: RemoteHandle, failures: list[YggdrasillError]) -> Callable[[], AsyncIterator[Chunk]]:
    """The holder's stream; what goes wrong there is kept apart from what goes wrong at the target."""

    async def chunks() -> AsyncIterator[Chunk]:
        try:
            async for chunk in stream(handle.client, handle.ref, Retry()):
                yield chunk
        except YggdrasillError as error:
            failures.append(error)
            raise

    return chunks
