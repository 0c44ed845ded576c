"""Answers that are streams: artifacts out and in, and events as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, YggdrasillError
from yggdrasill.remote.downloads import write_stream
from yggdrasill.server_ext.bodies import check_length
from yggdrasill.server_ext.in_flight import InFlightArtifacts
from yggdrasill.server_ext.job import Event
from yggdrasill.values.stores.base import CHUNK_BYTES, ArtifactStore, check_hash

__all__ = ["receive_artifact", "receive_batch", "send_artifact", "send_events"]

_BATCH_ENTRY = 4 << 20
_BATCH_BYTES = 256 << 20
_SILENCE = 5.0
_HEAD = struct.Struct("<32sQ")


async def receive_artifact(request: web.Request, store: ArtifactStore, name: str, limit: int) -> bool:
    """Store a body under its hash; False if it was there already.

    Raises:
        PayloadTooLarge, CorruptData, StorageFailed: nothing was stored.
    """
    check_hash(name)
    length = check_length(request, limit)
    if store.has(name):
        await _skip(request)
        return False
    with store.writer(name, length) as writer:
        await write_stream(request.content.iter_any(), writer)
        await asyncio.to_thread(writer.commit)
    return True


async def _skip(request: web.Request) -> None:
    async for _ in request.content.iter_any():
        pass


async def receive_batch(request: web.Request, store: ArtifactStore) -> int:
    """Store many small artifacts from one body: hash (32 bytes), length (8, little-endian), bytes, and so on.

    Raises:
        CorruptData: cut short, or bytes that are not those of their hash; what came before is stored. LimitExceeded, PayloadTooLarge
    """
    check_length(request, _BATCH_BYTES)
    waiting: list[tuple[str, bytes]] = []
    stored = size = 0
    try:
        async for name, data in _entries(request):
            waiting.append((name, data))
            size += len(data)
            if size >= _BATCH_ENTRY:
                taken, waiting, size = waiting, [], 0
                stored += await asyncio.to_thread(_put_all, store, taken)
    except YggdrasillError:
        await asyncio.to_thread(_put_all, store, waiting)
        raise
    return stored + await asyncio.to_thread(_put_all, store, waiting)


async def _entries(request: web.Request) -> AsyncIterator[tuple[str, bytes]]:
    taken = 0
    while head := await _exactly(request, _HEAD.size):
        name, length = _HEAD.unpack(head)
        taken += length
        if length > _BATCH_ENTRY or taken > _BATCH_BYTES:
            raise LimitExceeded(
                f"a batch holds artifacts of at most {_BATCH_ENTRY} bytes, {_BATCH_BYTES} together; put larger ones by themselves"
            )
        data = await _exactly(request, length)
        if len(data) != length:
            raise CorruptData("the batch ends in the middle of an artifact: it was cut short; send it again")
        yield name.hex(), data


def _put_all(store: ArtifactStore, entries: list[tuple[str, bytes]]) -> int:
    for name, data in entries:
        store.put(data, hash=name)
    return len(entries)


async def _exactly(request: web.Request, count: int) -> bytes:
    """``count`` bytes, none at the very end of the body.

    Raises:
        CorruptData: it ends within them.
    """
    try:
        return await request.content.readexactly(count)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise CorruptData("the batch ends in the middle of an artifact: it was cut short; send it again") from None
        return b""


async def send_artifact(request: web.Request, store: ArtifactStore, in_flight: InFlightArtifacts, name: str) -> web.StreamResponse:
    """The bytes of an artifact, or the range asked for; it stays in the store meanwhile. One on its way to the store comes from memory.

    Raises:
        UnknownArtifact, InvalidArgument (a range that is none)
    """
    headers = {"Content-Type": "application/octet-stream", "X-Yggdrasill-Protocol": "1"}
    offered = in_flight.get(check_hash(name))
    if offered is not None:
        return await _send_chunks(request, lambda start, stop: _pieces(offered[start:stop]), offered.nbytes, headers)
    nbytes, path = await asyncio.to_thread(lambda: (store.nbytes(name), store.path(name)))
    if path is not None:
        return _ArtifactFile(path, store, name, headers)
    return await _send_chunks(request, lambda start, stop: store.chunks(name, start, stop), nbytes, headers)


def _pieces(view: memoryview) -> Iterator[memoryview]:
    return (view[place : place + CHUNK_BYTES] for place in range(0, view.nbytes, CHUNK_BYTES))


class _ArtifactFile(web.FileResponse):
    """A file of the store, sent by the kernel where it can, and kept from eviction meanwhile."""

    def __init__(self, path: Path, store: ArtifactStore, name: str, headers: dict[str, str]) -> None:
        super().__init__(path, headers=headers)
        self._store, self._name = store, name

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        owner = f"sending:{uuid.uuid4().hex}"
        self._store.pin(owner, [self._name])
        try:
            return await super().prepare(request)
        finally:
            self._store.unpin(owner)


async def _send_chunks(
    request: web.Request, chunks: Callable[[int, int], Iterator[memoryview]], nbytes: int, headers: dict[str, str]
) -> web.StreamResponse:
    try:
        start, stop, _ = request.http_range.indices(nbytes)
    except ValueError as error:
        raise InvalidArgument(f"the Range header is none: {error}") from None
    partial = (start, stop) != (0, nbytes)
    if partial:
        headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{nbytes}"}
    response = web.StreamResponse(status=206 if partial else 200, headers={**headers, "Accept-Ranges": "bytes"})
    response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        for chunk in chunks(start, stop):
            await response.write(chunk)
    await response.write_eof()
    return response


async def send_events(request: web.Request, events: AsyncGenerator[Event | None, None]) -> web.StreamResponse:
    """Server-sent events, a comment where nothing happened for a while, until they end or the listener is gone.

    ``events`` gives None now and then, so that a listener who has gone is noticed.
    """
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Yggdrasill-Protocol": "1"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    clock = asyncio.get_running_loop().time
    spoken = clock()
    with contextlib.suppress(ConnectionResetError):
        await response.write(b": listening\n\n")
        async with aclosing(events) as stream:
            async for event in stream:
                if request.transport is None or request.transport.is_closing():
                    return response
                if event is not None:
                    data = json.dumps(event.data, separators=(",", ":"), ensure_ascii=False)
                    await response.write(f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode())
                elif clock() - spoken >= _SILENCE:
                    await response.write(b": nothing new\n\n")
                else:
                    continue
                spoken = clock()
        await response.write_eof()
    return response
