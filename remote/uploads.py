"""Uploads of artifacts that an endpoint lacks: from the caller's memory, or relayed from the endpoint that stores them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from yggdrasill.errors import (
    EndpointUnreachable,
    StorageFailed,
    UnknownArtifact,
    UnknownName,
    UploadConflict,
    YggdrasillError,
)
from yggdrasill.protocol.version import PROTOCOL
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.channel import Chunk
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.downloads import RemoteHandle, stream_artifact
from yggdrasill.remote.local_peers import MIN_FOLDER_BYTES
from yggdrasill.remote.observers import TransferMeter
from yggdrasill.remote.retry import Retry
from yggdrasill.values.codec import encode
from yggdrasill.values.handles import ArtifactHandle, find_handles
from yggdrasill.values.stores.base import put_mutable

__all__ = ["PARALLEL", "Supply", "upload"]

PARALLEL = 4
#: Uploads of one artifact in one call: an artifact may be deleted between upload and check, but the number of attempts is bounded.
MAX_UPLOADS = 5
CHUNK_BYTES = 1 << 20
#: Artifacts up to SMALL_BYTES are sent together, about BATCH_BYTES and at most BATCH_ENTRIES per request.
SMALL_BYTES = 1 << 20
BATCH_BYTES = 16 << 20
BATCH_ENTRIES = 10_000
MAX_PIECE_BYTES = 64 << 20
MIN_PIECE_BYTES = 64 << 10
FIRST_PIECE_BYTES = 1 << 20
PIECE_SECONDS = 10.0
"""Seconds that one piece of a large artifact should take."""
SILENCE_SECONDS = 30.0
"""Seconds without an answer after the last byte of a piece, besides the time in proportion to its size."""
UNKNOWN_SECONDS = 30.0

_SESSIONS_SINCE = 2
_MAX_CONFLICTS = 20
_SLOWEST_BYTES_PER_SECOND = 100 << 10
_HEAD_BYTES = 40
_LARGE = "a tensor or byte string"


async def upload(client: EndpointClient, hashes: Iterable[str], value: Any, artifact_client: ArtifactClient, retry: Retry) -> int:
    """Upload artifacts of a packed ``value`` to an endpoint and return the number of bytes sent.

    A few transfers run in parallel; artifacts for a local peer are written to its folder, small artifacts share requests, and artifacts
    of remote handles are relayed from their endpoint without being stored here.

    Raises:
        UnknownArtifact: the bytes are no longer available.
        CorruptData, PayloadTooLarge, StorageFailed, EndpointUnreachable
    """
    handles = {handle.hash: handle for handle in find_handles(value)}
    gate = asyncio.Semaphore(PARALLEL)

    async def one(names: list[str]) -> int:
        async with gate:
            if len(names) > 1:
                return await _send_batch(client, {name: artifact_client.store.read(name) for name in names}, retry)
            return await _send(client, names[0], handles.get(names[0]), artifact_client, retry)

    return sum(await asyncio.gather(*(one(names) for names in await asyncio.to_thread(_grouped, list(hashes), artifact_client))))


def _grouped(names: list[str], artifact_client: ArtifactClient) -> list[list[str]]:
    """Return local small artifacts in groups, and every other one alone."""
    groups: list[list[str]] = []
    batch: list[str] = []
    batch_bytes = 0
    for name in names:
        nbytes = artifact_client.store.nbytes(name) if artifact_client.store.has(name) else None
        if nbytes is None or nbytes > SMALL_BYTES:
            groups.append([name])
            continue
        if batch and (batch_bytes + nbytes > BATCH_BYTES or len(batch) == BATCH_ENTRIES):
            groups.append(batch)
            batch, batch_bytes = [], 0
        batch.append(name)
        batch_bytes += nbytes
    return [*groups, batch] if batch else groups


#: Opens the stream of the bytes of an artifact from one position to another.
Source = Callable[[int, int], AsyncIterator[Chunk]]


async def _send(client: EndpointClient, name: str, handle: ArtifactHandle | None, artifact_client: ArtifactClient, retry: Retry) -> int:
    failures: list[YggdrasillError] = []
    if await asyncio.to_thread(artifact_client.store.has, name):
        view = await asyncio.to_thread(artifact_client.store.read, name)
        client.check_size("max_artifact_bytes", view.nbytes, _LARGE)
        if await _write_to_folder(client, name, view, retry):
            return 0
        source, length = _from_memory(view), view.nbytes
    elif isinstance(handle, RemoteHandle) and not handle.loaded:
        source, length = _from_endpoint(handle, failures), handle.nbytes
    elif handle is not None:
        (payload,) = encode(await asyncio.to_thread(handle.load)).payloads
        source, length = _from_memory(payload.data), payload.data.nbytes
    else:
        raise UnknownArtifact(
            f"endpoint {client.name!r} lacks artifact {name}, and it is no longer available here; call again with the value", hash=name
        )
    client.check_size("max_artifact_bytes", length, _LARGE)
    if length <= SMALL_BYTES or _speaks_no_sessions(client) or not await _PieceUpload(client, name, source, length).send(failures, retry):
        await _persist(lambda: _put_whole(client, name, lambda: source(0, length), length), failures, retry)
    return length


# -- upload sessions ----------------------------------------------------------------------------------------------


@dataclass
class _Link:
    """What is known about the way to an endpoint: bytes per second of one upload, and whether the endpoint has upload sessions."""

    rate: float | None = None
    has_sessions: bool = True


_links: WeakKeyDictionary[EndpointClient, _Link] = WeakKeyDictionary()


def _link_of(client: EndpointClient) -> _Link:
    return _links.setdefault(client, _Link())


def _speaks_no_sessions(client: EndpointClient) -> bool:
    return getattr(client, "protocol", PROTOCOL) < _SESSIONS_SINCE or not _link_of(client).has_sessions


def _piece_bytes(link: _Link) -> int:
    """Return the size of the next piece: about 10 seconds on this link, 1 MiB if it is unknown."""
    if link.rate is None:
        return FIRST_PIECE_BYTES
    return int(min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, link.rate * PIECE_SECONDS)))


class _PieceUpload:
    """The upload of one artifact in pieces of an upload session, resumed at the byte."""

    def __init__(self, client: EndpointClient, name: str, source: Source, length: int) -> None:
        self._client, self._source, self._length = client, source, length
        self._path = f"/artifacts/{name}/uploads/{uuid.uuid4().hex}"
        self._link = _link_of(client)
        self._offset = self._conflicts = 0

    async def send(self, failures: list[YggdrasillError], retry: Retry) -> bool:
        """Send all pieces. Return False if the endpoint has no upload sessions. Raise the first of ``failures``, if a piece fails by it."""
        try:
            while not await self._send_piece(failures, retry):
                pass
        except UnknownName as error:
            if isinstance(error, UnknownArtifact) or self._offset:
                raise
            self._link.has_sessions = False
            return False
        return True

    async def _send_piece(self, failures: list[YggdrasillError], retry: Retry) -> bool:
        """Send the next piece and return whether the artifact is stored."""
        start, stop = self._offset, min(self._offset + _piece_bytes(self._link), self._length)
        started = time.perf_counter()
        try:
            self._offset, stored = await self._put(start, stop)
        except UploadConflict as error:
            self._conflicts += 1
            if self._conflicts > _MAX_CONFLICTS:
                raise
            self._offset = int(error.details["offset"])
            return False
        except EndpointUnreachable as error:
            if failures:
                raise failures[0] from error
            # The next piece is smaller, in case that this one was too slow.
            self._link.rate = (stop - start) / 4 / PIECE_SECONDS
            await retry.pause(error)
            state = await retry.persist(lambda: self._client.get(self._path))
            self._offset = int(state["offset"])
            return bool(state["stored"])
        retry.answered()
        self._link.rate = (stop - start) / max(time.perf_counter() - started, 1e-6)
        return stored

    async def _put(self, start: int, stop: int) -> tuple[int, bool]:
        nbytes, rate = stop - start, self._link.rate
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"bytes {start}-{stop - 1}/{self._length}"}
        # The last bytes may wait in buffers of a proxy for as long as the whole piece takes.
        timeout = SILENCE_SECONDS + (UNKNOWN_SECONDS if rate is None else 3 * nbytes / rate)
        opened = self._client.open(
            "PUT", self._path, body=lambda: self._source(start, stop), length=nbytes, headers=headers, timeout=timeout
        )
        async with opened as response:
            answer = json.loads(b"".join([chunk async for chunk in response.chunks()]))
        return int(answer["offset"]), bool(answer["stored"])


async def _put_whole(client: EndpointClient, name: str, start: Callable[[], AsyncIterator[Chunk]], length: int) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    timeout = SILENCE_SECONDS + length / _SLOWEST_BYTES_PER_SECOND
    async with client.open("PUT", f"/artifacts/{name}", body=start, length=length, headers=headers, timeout=timeout) as response:
        async for _ in response.chunks():
            pass


async def _write_to_folder(client: EndpointClient, name: str, view: memoryview, retry: Retry) -> bool:
    """Write the bytes to the endpoint's folder if it is a local peer. Return False if they must be sent."""
    if view.nbytes <= MIN_FOLDER_BYTES:
        return False
    store = await retry.persist(client.local_peer.store)
    if store is None:
        return False
    try:
        await asyncio.to_thread(put_mutable, store, name, view)
    except StorageFailed:
        client.local_peer.disable()
        return False
    return True


async def _send_batch(client: EndpointClient, views: Mapping[str, memoryview], retry: Retry) -> int:
    for view in views.values():
        client.check_size("max_artifact_bytes", view.nbytes, _LARGE)
    nbytes = sum(view.nbytes for view in views.values())
    await _persist(lambda: client.put_batch(lambda: _batch(views), nbytes + _HEAD_BYTES * len(views)), [], retry)
    return nbytes


async def _persist(act: Callable[[], Awaitable[None]], failures: list[YggdrasillError], retry: Retry) -> None:
    """Retry while the target is unreachable. An error of the source endpoint, collected in ``failures``, has precedence."""
    while True:
        try:
            await act()
        except EndpointUnreachable as error:
            if failures:
                raise failures[0] from error
            await retry.pause(error)
        else:
            retry.answered()
            return


async def _batch(views: Mapping[str, memoryview]) -> AsyncIterator[Chunk]:
    """Yield the body of a batch in chunks; see `EndpointClient.put_batch`."""
    waiting: list[Chunk] = []
    size = 0
    for name, view in views.items():
        waiting += [bytes.fromhex(name), view.nbytes.to_bytes(8, "little"), view]
        size += _HEAD_BYTES + view.nbytes
        if size >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def _from_memory(view: memoryview) -> Source:
    async def chunks(start: int, stop: int) -> AsyncIterator[Chunk]:
        for place in range(start, stop, CHUNK_BYTES):
            yield view[place : min(place + CHUNK_BYTES, stop)]

    return chunks


def _from_endpoint(handle: RemoteHandle, failures: list[YggdrasillError]) -> Source:
    """Return the source endpoint's stream. Its errors are collected in ``failures``, apart from those of the target."""

    async def chunks(start: int, stop: int) -> AsyncIterator[Chunk]:
        try:
            async for chunk in stream_artifact(handle.client, handle.ref, Retry(), start, stop):
                yield chunk
        except YggdrasillError as error:
            failures.append(error)
            raise

    return chunks


class Supply:
    """Uploads of the artifacts of one packed ``value`` that an endpoint reports as missing, each at most `MAX_UPLOADS` times."""

    def __init__(self, client: EndpointClient, value: Any, artifact_client: ArtifactClient, retry: Retry, meter: TransferMeter) -> None:
        self._client, self._value, self._artifact_client, self._retry, self._meter = client, value, artifact_client, retry, meter
        self._sent: dict[str, int] = {}

    async def send(self, missing: Sequence[str]) -> None:
        """Upload ``missing``.

        Raises:
            UnknownArtifact: the bytes are no longer available, or the endpoint loses them each time.
            CorruptData, PayloadTooLarge, StorageFailed, EndpointUnreachable
        """
        lost = [name for name in missing if self._sent.get(name, 0) >= MAX_UPLOADS]
        if lost:
            raise UnknownArtifact(
                f"endpoint {self._client.name!r} lost artifact {lost[0]} after {MAX_UPLOADS} uploads; raise its artifact quota",
                missing=list(missing),
                endpoint=self._client.name,
            )
        if any(map(self._sent.get, missing)):
            # The artifact written to the folder did not reach the endpoint: the folder is another one by now, or its quota is too small.
            self._client.local_peer.disable()
        for name in missing:
            self._sent[name] = self._sent.get(name, 0) + 1
        with self._meter.sending():
            self._meter.bytes_sent += await upload(self._client, missing, self._value, self._artifact_client, self._retry)

    async def send_to_job(self, row: Mapping[str, Any], orphan_after: float = 30.0) -> dict[str, Any]:
        """Upload the artifacts that the job of ``row`` waits for, and return its new row. The job is polled meanwhile, to keep it alive."""
        job_id = str(row["job_id"])
        polling = asyncio.ensure_future(self._poll(job_id, max(orphan_after / 3, 1.0)))
        try:
            await self.send([str(name) for name in row.get("missing") or ()])
        finally:
            polling.cancel()
        return await self._retry.persist(lambda: self._client.check_inputs(job_id))

    async def _poll(self, job_id: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            with contextlib.suppress(YggdrasillError):
                await self._client.output(job_id, 0.0)
