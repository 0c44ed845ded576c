"""Request and response bodies: checked JSON, artifacts as streams, and server-sent events.

Bodies are bounded before memory is allocated and are never decompressed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from pydantic import BaseModel, ValidationError

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, PayloadTooLarge, YggdrasillError
from yggdrasill.protocol.streams import read_chunk
from yggdrasill.protocol.version import PROTOCOL, PROTOCOL_HEADER
from yggdrasill.server_ext.upload_sessions import MAX_PIECE_BYTES, UploadSessions
from yggdrasill.values.stores.base import CHUNK_BYTES, ArtifactStore, LocalStore, StagingStore, Writer, check_hash
from yggdrasill.values.stores.threaded import InFlightArtifacts, ThreadedStore, write_stream

__all__ = [
    "EVENT_STREAM",
    "SILENCE_SECONDS",
    "Message",
    "check_length",
    "content_range",
    "event_response",
    "read_json",
    "read_model_body",
    "receive_artifact",
    "receive_batch",
    "receive_piece",
    "send_artifact",
    "send_events",
]

Model = TypeVar("Model", bound=BaseModel)

_PARSE_IN_THREAD_BYTES = 256 << 10
_MAX_ITEMS = 4_000_000
#: More than a value of 240 levels, the most that can be encoded, has in JSON; less than what exhausts the stack when the body is encoded again.
_MAX_DEPTH = 750
_MAX_MISTAKES = 8
_MAX_ENTRY_BYTES = 4 << 20
_MAX_BATCH_BYTES = 256 << 20
EVENT_STREAM = "text/event-stream"
_EVENT_HEADERS = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no", PROTOCOL_HEADER: str(PROTOCOL)}
_KEEPALIVE_SECONDS = 5.0
#: How long the receiver of an event stream may accept or acknowledge nothing before the connection is closed.
_WRITE_SECONDS = 20.0
SILENCE_SECONDS = 60.0
"""Seconds without a byte after which a body is given up."""

_MIN_BYTES_PER_SECOND = 1024
_ENTRY_HEADER = struct.Struct("<32sQ")
#: An entry costs this many bytes of memory besides its content, so that empty entries count too.
_ENTRY_BYTES = 256
_MAX_BATCH_ENTRIES = 65_536
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class Message(Protocol):
    """An event of a stream."""

    @property
    def message(self) -> bytes:
        """The event as a server-sent event."""
        ...


def check_length(request: web.Request, limit: int) -> int | None:
    """Return the Content-Length of a request, or None if it has none.

    Raises:
        PayloadTooLarge: it exceeds ``limit``; nothing was read. InvalidArgument: the body is compressed.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InvalidArgument("Compressed bodies are not accepted, because their real size is unknown. Send the body uncompressed.")
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(length, limit)
    return length


async def read_json(request: web.Request, limit: int) -> Any:
    """Read and parse a JSON body of at most ``limit`` bytes.

    Raises:
        PayloadTooLarge, InvalidArgument: as `check_length`. CorruptData: invalid JSON. LimitExceeded: too many items or too deeply nested.
    """
    check_length(request, limit)
    parts: list[bytes] = []
    size = 0
    async for chunk in _BodyReader(request).chunks():
        size += len(chunk)
        if size > limit:
            raise _too_large(size, limit)
        parts.append(chunk)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return await asyncio.to_thread(_parse, data) if size > _PARSE_IN_THREAD_BYTES else _parse(data)


async def read_model_body(request: web.Request, model: type[Model], limit: int) -> Model:
    """Read a JSON body and validate it with ``model``.

    Raises:
        InvalidArgument: validation failed; the message names the path of each mistake. Otherwise as `read_json`.
    """
    document = await read_json(request, limit)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors(include_url=False)[:_MAX_MISTAKES]
        ]
        raise InvalidArgument("Invalid request body: " + "; ".join(mistakes)) from None


def _parse(data: bytes) -> Any:
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_ITEMS:
        raise LimitExceeded(f"The body has more than {_MAX_ITEMS} items. Send tensors as artifacts, not as lists.", bound=_MAX_ITEMS)
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
        _check_depth(document)
    except RecursionError:
        raise _too_deep() from None
    except LimitExceeded:
        raise
    except ValueError as error:
        raise CorruptData(f"The body is not valid JSON ({error}): it was truncated or changed. Send it again.") from None
    return document


def _check_depth(document: Any) -> None:
    """Raise `LimitExceeded` if a JSON value is nested more than 750 levels deep."""
    containers, depth = [document], 0
    while containers:
        depth += 1
        if depth > _MAX_DEPTH + 1:
            raise _too_deep()
        containers = [
            item
            for container in containers
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]


def _too_deep() -> LimitExceeded:
    return LimitExceeded(f"The body is nested more than {_MAX_DEPTH} levels deep. Nest the value less deeply.", limit="max_depth")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _too_large(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body has {size} bytes; this endpoint accepts at most {limit}. Send tensors as artifacts.", bound=limit, found=size
    )


async def receive_artifact(request: web.Request, store: ArtifactStore, name: str, limit: int, writer: Writer) -> bool:
    """Store a request body as the artifact ``name``. Return False if the store already had it.

    Raises:
        PayloadTooLarge, CorruptData, StorageFailed: nothing was stored.
    """
    check_hash(name)
    length = check_length(request, limit)
    if not await store.missing([name]):
        await _discard(request)
        return False
    await store.put_stream(_BodyReader(request).chunks(), hash=name, nbytes=length, writer=writer)
    return True


async def receive_piece(
    request: web.Request, store: ThreadedStore[StagingStore], sessions: UploadSessions, name: str, upload_id: str, writer: Writer
) -> tuple[int, bool, bool]:
    """Store a request body as one piece of an upload session.

    Return the offset of the session, whether the artifact is stored, and whether this piece completed it.

    Raises:
        UploadConflict: the session continues at another byte. CorruptData: the artifact is complete and does not match its hash.
        InvalidArgument: an invalid Content-Range. PayloadTooLarge, StorageFailed
    """
    start, stop, total = content_range(request)
    length = check_length(request, MAX_PIECE_BYTES)
    if stop - start > MAX_PIECE_BYTES:
        raise _too_large(stop - start, MAX_PIECE_BYTES)
    if length is not None and length != stop - start:
        raise InvalidArgument(f"The body has {length} bytes, but its Content-Range {stop - start}.")
    piece = await store.run(lambda: sessions.begin(writer.principal, name, upload_id, start, stop, total))
    if piece is None:
        await _discard(request)
        return total, True, False
    try:
        await write_stream(_BodyReader(request).chunks(), piece.write)
        offset, stored = await store.run(lambda: piece.end(writer))
    finally:
        await store.run(piece.close)
    return offset, stored, stored


def content_range(request: web.Request) -> tuple[int, int, int]:
    """Return the first byte, the end and the total of ``Content-Range: bytes A-B/TOTAL``. Raise `InvalidArgument` if it is invalid."""
    given = request.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(given)
    first, last, total = map(int, found.groups()) if found is not None else (1, 0, 0)
    if not first <= last < total:
        raise InvalidArgument(f"Invalid Content-Range {given[:80]!r}. Expected 'bytes FIRST-LAST/TOTAL'.")
    return first, last + 1, total


async def _discard(request: web.Request) -> None:
    async for _ in _BodyReader(request).chunks():
        pass


class _BodyReader:
    """Reads a body whose sender is neither silent for `SILENCE_SECONDS` nor slower than 1 KiB per second after these.

    Raises:
        CorruptData: the sender is too slow. The connection is closed after the response.
    """

    def __init__(self, request: web.Request) -> None:
        self._content = request.content
        self._received = 0
        self._waited = 0.0

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks as they arrive."""
        while chunk := await self._wait(partial(read_chunk, self._content), 0):
            yield chunk

    async def exactly(self, count: int) -> bytes:
        """Return ``count`` bytes. Raises asyncio.IncompleteReadError if the body ends before."""
        return await self._wait(partial(self._content.readexactly, count), count)

    async def _wait(self, read: Callable[[], Awaitable[bytes]], count: int) -> bytes:
        loop = asyncio.get_running_loop()
        started = loop.time()
        allowed = SILENCE_SECONDS + (self._received + count) / _MIN_BYTES_PER_SECOND - self._waited
        limit = min(SILENCE_SECONDS + count / _MIN_BYTES_PER_SECOND, allowed)
        # A timer that fails the stream costs less for each chunk than a task with a timeout.
        timer = loop.call_later(limit, self._content.set_exception, asyncio.TimeoutError())
        try:
            data = await read()
        except asyncio.TimeoutError:
            raise CorruptData(
                f"The body stopped after {self._received} bytes: its sender was silent for {SILENCE_SECONDS:g} seconds or too slow. Send it again."
            ) from None
        finally:
            timer.cancel()
        self._received += len(data)
        self._waited += loop.time() - started
        return data


async def receive_batch(
    request: web.Request,
    store: ThreadedStore[StagingStore],
    writer: Writer,
    written: Callable[[str, int], None] = lambda name, nbytes: None,
) -> int:
    """Store many small artifacts from one body and return their number. ``written`` receives the hash and size of each.

    The body repeats: hash (32 bytes), length (8 bytes, little-endian), content.

    Raises:
        CorruptData: the body is truncated or a content does not match its hash; earlier entries are stored.
        LimitExceeded: an entry is too large, or the batch has too many. PayloadTooLarge: the body is too large.
    """
    check_length(request, _MAX_BATCH_BYTES)
    waiting: list[tuple[str, bytes]] = []
    stored = size = 0
    try:
        async for name, data in _entries(request):
            waiting.append((name, data))
            size += len(data) + _ENTRY_BYTES
            if size >= _MAX_ENTRY_BYTES:
                taken, waiting, size = waiting, [], 0
                stored += await store.run(partial(_put_all, store.local, taken, writer, written))
    except YggdrasillError:
        await store.run(lambda: _put_all(store.local, waiting, writer, written))
        raise
    return stored + await store.run(lambda: _put_all(store.local, waiting, writer, written))


async def _entries(request: web.Request) -> AsyncIterator[tuple[str, bytes]]:
    taken = count = 0
    reader = _BodyReader(request)
    while head := await _read_exactly(reader, _ENTRY_HEADER.size):
        name, length = _ENTRY_HEADER.unpack(head)
        taken += length
        count += 1
        if count > _MAX_BATCH_ENTRIES:
            raise LimitExceeded(f"A batch accepts at most {_MAX_BATCH_ENTRIES} artifacts. Send several batches.", bound=_MAX_BATCH_ENTRIES)
        if length > _MAX_ENTRY_BYTES or taken > _MAX_BATCH_BYTES:
            raise LimitExceeded(
                f"A batch accepts artifacts of at most {_MAX_ENTRY_BYTES} bytes, {_MAX_BATCH_BYTES} in total. Upload larger ones individually."
            )
        data = await _read_exactly(reader, length)
        if len(data) != length:
            raise CorruptData("The batch ends in the middle of an artifact: it was truncated. Send it again.")
        yield name.hex(), data


def _put_all(store: LocalStore, entries: list[tuple[str, bytes]], writer: Writer, written: Callable[[str, int], None]) -> int:
    for name, data in entries:
        store.put(data, hash=name, writer=writer)
        written(name, len(data))
    return len(entries)


async def _read_exactly(reader: _BodyReader, count: int) -> bytes:
    """Read ``count`` bytes; return ``b""`` at the end of the body.

    Raises:
        CorruptData: the body ends before ``count`` bytes.
    """
    try:
        return await reader.exactly(count)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise CorruptData("The batch ends in the middle of an artifact: it was truncated. Send it again.") from None
        return b""


async def send_artifact(
    request: web.Request, store: ThreadedStore[StagingStore], in_flight: InFlightArtifacts, name: str
) -> web.StreamResponse:
    """Send an artifact or the requested range of it. An artifact that is being written is sent from memory; others are leased while sent.

    Raises:
        UnknownArtifact: the store lacks it. InvalidArgument: an invalid Range header. A range after the last byte is answered with 416.
    """
    headers = {"Content-Type": "application/octet-stream", PROTOCOL_HEADER: str(PROTOCOL)}
    span = _range_of(request)
    in_flight_view = in_flight.get(check_hash(name))
    if in_flight_view is not None:
        return await _send_chunks(request, span, lambda start, stop: _split(in_flight_view[start:stop]), in_flight_view.nbytes, headers)
    nbytes, path = await store.run(lambda: (store.local.nbytes(name), store.local.path(name)))
    if path is not None and not _is_after_end(span, nbytes):
        return _ArtifactFile(path, store, name, headers)
    return await _send_chunks(request, span, lambda start, stop: store.open_range(name, start, stop), nbytes, headers)


def _range_of(request: web.Request) -> slice:
    try:
        return request.http_range
    except ValueError as error:
        raise InvalidArgument(f"Invalid Range header: {error}") from None


def _is_after_end(span: slice, nbytes: int) -> bool:
    return span.start is not None and span.start > 0 and span.start >= nbytes


async def _split(view: memoryview) -> AsyncIterator[memoryview]:
    for offset in range(0, view.nbytes, CHUNK_BYTES):
        yield view[offset : offset + CHUNK_BYTES]


class _ArtifactFile(web.FileResponse):
    """A response that sends a file of the store, with sendfile where available, and leases the artifact while sending."""

    def __init__(self, path: Path, store: ArtifactStore, name: str, headers: dict[str, str]) -> None:
        super().__init__(path, headers=headers)
        self._store, self._name = store, name

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        owner = f"sending:{uuid.uuid4().hex}"
        await self._store.lease(owner, [self._name])
        try:
            return await super().prepare(request)
        finally:
            await self._store.release(owner)


async def _send_chunks(
    request: web.Request, span: slice, chunks: Callable[[int, int], AsyncIterator[memoryview]], nbytes: int, headers: dict[str, str]
) -> web.StreamResponse:
    if _is_after_end(span, nbytes):
        error = InvalidArgument(f"The range begins at byte {span.start}, but the artifact has {nbytes} bytes.")
        headers = {PROTOCOL_HEADER: str(PROTOCOL), "Content-Range": f"bytes */{nbytes}"}
        return web.json_response({"error": error.to_dict()}, status=416, headers=headers)
    start, stop, _ = span.indices(nbytes)
    partial = (start, stop) != (0, nbytes)
    if partial:
        headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{nbytes}"}
    response = web.StreamResponse(status=206 if partial else 200, headers={**headers, "Accept-Ranges": "bytes"})
    response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        async for chunk in chunks(start, stop):
            await response.write(chunk)
    await response.write_eof()
    return response


async def _nothing() -> bytes:
    return b""


async def send_events(
    request: web.Request,
    events: AsyncGenerator[Message | None, None],
    status: int = 200,
    first: bytes = b": listening\n\n",
    last: Callable[[], Awaitable[bytes]] = _nothing,
) -> web.StreamResponse:
    """Send the message ``first``, and server-sent events until ``events`` ends, then the message ``last()``, or until the client disconnects.

    ``events`` yields None periodically, so that a disconnected client is noticed. A comment is sent after 5 silent seconds. A client that
    accepts no data, or whose machine acknowledges none, for 20 seconds counts as disconnected.
    """
    response = web.StreamResponse(status=status, headers=_EVENT_HEADERS)
    await response.prepare(request)
    clock = asyncio.get_running_loop().time
    last_write = clock()
    with contextlib.suppress(ConnectionResetError), _unacknowledged_limit(request):
        await _write(request, response, first)
        async with aclosing(events) as stream:
            async for event in stream:
                if request.transport is None or request.transport.is_closing():
                    return response
                if event is not None:
                    await _write(request, response, event.message)
                elif clock() - last_write >= _KEEPALIVE_SECONDS:
                    await _write(request, response, b": nothing new\n\n")
                else:
                    continue
                last_write = clock()
        message = await last()
        if message:
            await _write(request, response, message)
        await response.write_eof()
    return response


def event_response(messages: bytes) -> web.Response:
    """Return a response with all messages of an event stream that has ended."""
    return web.Response(body=messages, headers=_EVENT_HEADERS)


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Write to the connection, and close it if it accepts no data for 20 seconds."""
    if request.transport is None:
        raise ConnectionResetError("The connection is closed.")
    closing = asyncio.get_running_loop().call_later(_WRITE_SECONDS, request.transport.abort)
    try:
        await response.write(data)
    finally:
        closing.cancel()


@contextlib.contextmanager
def _unacknowledged_limit(request: web.Request) -> Iterator[None]:
    """Inside the block, let the kernel close the connection if its peer acknowledges no data for 20 seconds, where the system supports it.

    Otherwise a machine that vanished is noticed after about 15 minutes.
    """
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if connection is None or option is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        yield
        return
    connection.setsockopt(socket.IPPROTO_TCP, option, round(_WRITE_SECONDS * 1000))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, option, 0)
