"""Stores across threads: a local store for event loops, an asynchronous store for threads, leases in the background, and artifacts in memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from yggdrasill.errors import StorageFailed, UnknownArtifact
from yggdrasill.values.stores.base import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactStat,
    ArtifactStore,
    ArtifactWriter,
    Data,
    LocalStore,
    Writer,
    check_hash,
    check_size,
    checked_digest,
    current_writer,
    span_of,
    unknown_artifact,
)
from yggdrasill.values.stores.memory import aligned_memory

__all__ = ["BlockingStore", "InFlightArtifacts", "PinThread", "ThreadedStore", "write_stream"]

_LOG = logging.getLogger("yggdrasill.values")

#: Threads for calls of local stores, which read and write files.
_THREADS = 4
_BATCH_BYTES = 1 << 20
_READ_BYTES = 4 << 20
_QUEUED_CHUNKS = 4
Result = TypeVar("Result")
Store = TypeVar("Store", bound=LocalStore)


@functools.lru_cache(maxsize=1)
def _store_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "yggdrasill-store")


class ThreadedStore(ArtifactStore, Generic[Store]):
    """The asynchronous protocol for any local store, on threads of its own. ``local`` is that store.

    A call that is cancelled waits for its thread, because a thread cannot be interrupted.
    """

    def __init__(self, local: Store) -> None:
        self.local = local

    @property
    def store_id(self) -> str:
        return self.local.store_id

    async def run(self, act: Callable[[], Result]) -> Result:
        """Return ``act()``, called in a thread for store calls."""
        future = asyncio.get_running_loop().run_in_executor(_store_threads(), act)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # retrieved, so that it is not logged
            raise

    async def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002 - the protocol's word
        return await self.run(lambda: self.local.stat(hash))

    async def missing(self, hashes: Iterable[str]) -> list[str]:
        wanted = list(hashes)
        return await self.run(lambda: self.local.missing(wanted))

    async def put(self, data: Data, *, hash: str | None = None, writer: Writer | None = None) -> str:  # noqa: A002
        known = writer or current_writer()
        return await self.run(lambda: self.local.put(data, hash=hash, writer=known))

    async def put_stream(
        self,
        chunks: AsyncIterable[Data],
        *,
        hash: str | None = None,  # noqa: A002
        nbytes: int | None = None,
        writer: Writer | None = None,
    ) -> str:
        known = writer or current_writer()
        opened: list[ArtifactWriter] = []
        try:
            await self.run(lambda: opened.append(self.local.writer(hash, nbytes, known)))
            await write_stream(chunks, opened[0].write)
            return await self.run(opened[0].commit)
        finally:
            for unfinished in opened:
                await self.run(unfinished.abort)

    async def open_range(self, hash: str, start: int = 0, stop: int | None = None) -> AsyncIterator[memoryview]:  # noqa: A002
        parts = await self.run(lambda: self.local.chunks(hash, start, stop, _READ_BYTES))
        while (chunk := await self.run(lambda: next(parts, None))) is not None:
            yield chunk

    async def delete(self, hash: str) -> bool:  # noqa: A002
        return await self.run(lambda: self.local.delete(hash))

    async def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        wanted = list(hashes)
        await self.run(lambda: self.local.lease(owner, wanted, seconds))

    async def release(self, owner: str) -> None:
        await self.run(lambda: self.local.release(owner))


async def write_stream(chunks: AsyncIterable[Data], write: Callable[[Data], object]) -> None:
    """Write every chunk in order with ``write``, in a thread; the next batch is received while the last one is written.

    Raises what ``write`` raises, and what ``chunks`` raises after all that it yielded was written. No write is in progress at the end.
    """
    loop = asyncio.get_running_loop()
    batch: list[Data] = []
    size = 0
    writing: asyncio.Future[None] | None = None
    try:
        try:
            async for chunk in chunks:
                batch.append(chunk)
                size += len(chunk)
                if size >= _BATCH_BYTES:
                    taken, batch, size = batch, [], 0
                    if writing is not None:
                        await writing
                    writing = loop.run_in_executor(_stream_threads(), _write_all, write, taken)
        finally:
            if writing is not None:
                await _ended(writing)
            if batch:
                writing = loop.run_in_executor(_stream_threads(), _write_all, write, batch)
                await _ended(writing)
    finally:
        if writing is not None and not writing.done():
            # A thread cannot be interrupted: the caller may use the writer again only after it ended.
            await asyncio.wait([writing])


@functools.lru_cache(maxsize=1)
def _stream_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 * _THREADS, "yggdrasill-stream")


async def _ended(writing: asyncio.Future[None]) -> None:
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def _write_all(write: Callable[[Data], object], batch: list[Data]) -> None:
    for chunk in batch:
        write(chunk)


class BlockingStore(LocalStore):
    """The local protocol for an asynchronous store whose event loop ``loop`` runs in another thread."""

    def __init__(self, store: ArtifactStore, loop: asyncio.AbstractEventLoop, *, max_artifact_bytes: int = MAX_ARTIFACT_BYTES) -> None:
        self._store, self._loop = store, loop
        self.max_artifact_bytes = max_artifact_bytes
        self.store_id = store.store_id

    def _run(self, act: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result()

    def has(self, hash: str) -> bool:  # noqa: A002
        return self.stat(hash) is not None

    def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002
        return self._run(self._store.stat(check_hash(hash)))

    def missing(self, hashes: Iterable[str]) -> list[str]:
        return self._run(self._store.missing(hashes))

    def nbytes(self, hash: str) -> int:  # noqa: A002
        found = self.stat(hash)
        if found is None:
            raise unknown_artifact(hash)
        return found.nbytes

    def put(self, data: Data, *, hash: str | None = None, verify: bool = True, writer: Writer | None = None) -> str:  # noqa: A002
        view = memoryview(data).cast("B")
        check_size(view.nbytes, self.max_artifact_bytes)
        digest = checked_digest(view, hash, verify=verify)
        return self._run(self._store.put(view, hash=digest, writer=writer or current_writer()))

    def writer(self, expected: str | None = None, nbytes: int | None = None, writer: Writer | None = None) -> ArtifactWriter:
        return _StreamWriter(self, writer or current_writer(), expected=expected, nbytes=nbytes)

    def read(self, hash: str) -> memoryview:  # noqa: A002
        memory = aligned_memory(self.nbytes(hash))
        self._run(self._read_into(hash, memory))
        return memory

    async def _read_into(self, hash: str, memory: memoryview) -> None:  # noqa: A002
        at = 0
        async for chunk in self._store.open_range(hash):
            memory[at : at + chunk.nbytes] = chunk
            at += chunk.nbytes

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        first, end = span_of(self.nbytes(hash), start, stop, size)
        return self._chunks(hash, first, end, size)

    def _chunks(self, hash: str, start: int, stop: int, size: int) -> Iterator[memoryview]:  # noqa: A002
        if start >= stop:
            return
        parts = self._store.open_range(hash, start, stop)
        try:
            while (part := self._run(_next(parts))) is not None:
                for at in range(0, part.nbytes, size):
                    yield part[at : at + size]
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                self._run(close())

    def path(self, hash: str) -> Path | None:  # noqa: A002
        self.nbytes(hash)
        return None

    def delete(self, hash: str) -> bool:  # noqa: A002
        return self._run(self._store.delete(hash))

    def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        self._run(self._store.lease(owner, hashes, seconds))

    def release(self, owner: str) -> None:
        self._run(self._store.release(owner))


async def _next(parts: AsyncIterator[memoryview]) -> memoryview | None:
    try:
        return await parts.__anext__()
    except StopAsyncIteration:
        return None


class _StreamWriter(ArtifactWriter):
    """A writer that sends its chunks to ``put_stream`` of the asynchronous store while they are written."""

    def __init__(self, blocking: BlockingStore, writer: Writer, *, expected: str | None, nbytes: int | None) -> None:
        super().__init__(expected=expected, nbytes=nbytes, limit=blocking.max_artifact_bytes)
        self._blocking, self._writer = blocking, writer
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_CHUNKS)
        self._storing: asyncio.Task[str] | None = None

    def _append(self, chunk: memoryview) -> None:
        self._blocking._run(self._feed(bytes(chunk)))

    def _keep(self, digest: str) -> None:
        self._blocking._run(self._finish(digest))

    def _discard(self) -> None:
        if self._storing is not None:
            self._blocking._run(self._cancel(self._storing))

    async def _feed(self, chunk: bytes | None) -> None:
        if self._storing is None:
            self._storing = asyncio.ensure_future(
                self._blocking._store.put_stream(self._queued(), hash=self._expected, nbytes=self._expected_bytes, writer=self._writer)
            )
        putting = asyncio.ensure_future(self._queue.put(chunk))
        await asyncio.wait([putting, self._storing], return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            # The store refused the bytes.
            putting.cancel()
            await self._storing

    async def _queued(self) -> AsyncIterator[bytes]:
        while (chunk := await self._queue.get()) is not None:
            yield chunk

    async def _finish(self, digest: str) -> None:
        await self._feed(None)
        if self._storing is not None:
            await self._storing
            self._storing = None

    @staticmethod
    async def _cancel(storing: asyncio.Task[str]) -> None:
        storing.cancel()
        with contextlib.suppress(BaseException):
            await storing


class PinThread:
    """Leases of artifacts, made and ended in order on one thread, so that an event loop never waits for a disk."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "yggdrasill-leases")

    async def pin(self, owner: str, hashes: Iterable[str]) -> None:
        """Lease ``hashes`` for ``owner`` until `unpin`. Raises as `LocalStore.lease`; a cancelled caller waits for the end."""
        future = asyncio.wrap_future(self._thread.submit(self._store.lease, owner, list(hashes)))
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # retrieved, so that it is not logged
            raise

    def unpin(self, owner: str) -> None:
        """Release in the background all leases that ``owner`` received before."""
        self._submit(lambda: self._store.release(owner))

    def keep(self, owner: str, hashes: Iterable[str], measured: Callable[[int], None]) -> None:
        """Lease ``hashes`` in the background, and call ``measured`` from the thread with their bytes."""
        self._submit(lambda: self._keep(owner, list(hashes), measured))

    async def drain(self) -> None:
        """Return when all that was submitted before is done."""
        await asyncio.wrap_future(self._thread.submit(_do_nothing))

    async def release_others(self, prefix: str, owners: Collection[str]) -> None:
        """Release the leases of owners whose names begin with ``prefix`` and that are not among ``owners``."""

        def release() -> None:
            for owner in self._store.lease_owners():
                if owner.startswith(prefix) and owner not in owners:
                    self._store.release(owner)

        await asyncio.wrap_future(self._thread.submit(release))

    def close(self) -> None:
        """Finish what was submitted."""
        self._thread.shutdown(wait=True)

    def _keep(self, owner: str, hashes: list[str], measured: Callable[[int], None]) -> None:
        self._store.lease(owner, hashes)
        measured(sum(map(self._nbytes, hashes)))

    def _nbytes(self, name: str) -> int:
        try:
            return self._store.nbytes(name)
        except UnknownArtifact:
            return 0

    def _submit(self, act: Callable[[], None]) -> None:
        # After `close` the leases end with the process.
        with contextlib.suppress(RuntimeError):
            self._thread.submit(act).add_done_callback(_log_failure)


def _do_nothing() -> None:
    """Do nothing."""


def _log_failure(future: Future[None]) -> None:
    error = future.exception()
    if isinstance(error, StorageFailed):
        _LOG.warning("Artifacts could not be leased: %s", error)
    elif error is not None:
        _LOG.error("Artifacts could not be leased", exc_info=error)


class InFlightArtifacts:
    """Buffers of artifacts that are being written to disk, so that they can be sent from memory. Thread-safe.

    A buffer may still change after it was sent, so the receiver must verify the hash.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, tuple[memoryview, int]] = {}

    @contextlib.contextmanager
    def register(self, digest: str, view: memoryview) -> Iterator[None]:
        """Serve ``view`` as the artifact ``digest`` inside the ``with`` block. Registrations may overlap."""
        with self._lock:
            known, users = self._views.get(digest, (view, 0))
            self._views[digest] = known, users + 1
        try:
            yield
        finally:
            with self._lock:
                known, users = self._views.pop(digest)
                if users > 1:
                    self._views[digest] = known, users - 1

    def get(self, digest: str) -> memoryview | None:
        """Return the bytes of an artifact that is being written, or None."""
        found = self._views.get(digest)
        return None if found is None else found[0]
