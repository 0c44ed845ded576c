"""Downloads of model files into the cache: several in parallel, hashed while they arrive, continued after a broken connection or a kill."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yggdrasill.errors import CorruptData, InvalidArgument, StorageFailed, YggdrasillError
from yggdrasill.remote.downloads import RangeResponse, stream_ranges
from yggdrasill.remote.retry import Retry, RetryPolicy
from yggdrasill.values.files import failing
from yggdrasill.values.stores.base import Data
from yggdrasill.values.stores.threaded import write_stream
from yggdrasill.version_specs.cache import ModelCache, Part
from yggdrasill.version_specs.sources import Source, SourcePool, shown_url

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DOWNLOAD_RETRIES", "PARALLEL", "Download", "Fetched", "Fetcher"]

PARALLEL = 4
"""Files that are fetched at the same time."""
DOWNLOAD_RETRIES = RetryPolicy(first=5.0, later=60.0)
_POLL_S = 0.2
_STALLED_S = 90.0
_BATCH_BYTES = 1 << 20
_READ_BYTES = 4 << 20
_SYNC_BYTES = 32 << 20
"""After how many bytes a file is flushed to the disk while the next ones arrive."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Download:
    """A file to fetch: its name in messages, the urls in the order in which they are tried, and its sha256 and size if they are known."""

    name: str
    urls: Sequence[str]
    sha256: str | None
    nbytes: int | None = None


@dataclass
class Fetched:
    """The results of several downloads by name: the sha256 of each file, or why it could not be fetched."""

    hashes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, YggdrasillError] = field(default_factory=dict)


class Fetcher:
    """Downloads into one cache. A context manager.

    ``stalled`` is how many seconds another process that fetches the same file may make no progress before this one fetches it too.
    """

    def __init__(
        self,
        cache: ModelCache,
        pool: SourcePool,
        *,
        parallel: int = PARALLEL,
        retry_policy: RetryPolicy = DOWNLOAD_RETRIES,
        stalled: float = _STALLED_S,
    ) -> None:
        if parallel < 1:
            raise InvalidArgument(f"'parallel' is {parallel}; at least 1 file is fetched at a time.")
        self._cache, self._pool, self._retry_policy, self._stalled = cache, pool, retry_policy, stalled
        self._gate = asyncio.Semaphore(parallel)
        self._hashing = ThreadPoolExecutor(2 * parallel, "yggdrasill-sha256")
        self._sizes: dict[str, int] = {}
        self._storage_error: StorageFailed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.shutdown(wait=False)

    @property
    def done(self) -> int:
        """Return the bytes of all files that were received, by this process or an earlier one."""
        return sum(self._sizes.values())

    async def fetch_all(self, downloads: Iterable[Download]) -> Fetched:
        """Fetch every file and return the results; one that fails does not stop the others, unless the disk is full."""
        found = Fetched()
        tasks = {download.name: asyncio.ensure_future(self.fetch(download)) for download in downloads}
        try:
            for name, task in tasks.items():
                try:
                    found.hashes[name] = await task
                except YggdrasillError as error:
                    found.errors[name] = error
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return found

    async def fetch(self, download: Download) -> str:
        """Fetch one file into the cache and return its sha256. Another process that fetches it at the same time is waited for.

        Raises:
            StorageFailed: the disk is full, or cannot be written. CorruptData: no source has the file with this hash.
            Otherwise the error of the last source, whose message has the reasons of all.
        """
        async with self._gate:
            part = await self._open_part(download)
            if part is None:
                return download.sha256 or ""
            try:
                digest = await self._try_sources(part, download)
                await asyncio.to_thread(part.commit, self._cache, digest)
                await asyncio.to_thread(self._cache.hashes.save)
            except BaseException as error:
                # what arrived is kept for a later attempt, unless it is wrong or the disk is full
                useless = isinstance(error, (CorruptData, StorageFailed)) or download.sha256 is None
                (part.discard if useless else part.close)()
                raise
            return digest

    async def _open_part(self, download: Download) -> Part | None:
        """Return the unfinished file to continue, or None once another process has finished the file."""
        name = download.sha256 or "url-" + hashlib.sha256(download.urls[0].encode("utf-8", "surrogatepass")).hexdigest()[:32]
        size, since = -1, time.monotonic()
        while True:
            self._check_storage()
            part = await asyncio.to_thread(self._cache.open_part, name)
            if download.sha256 and self._cache.path(download.sha256).exists():
                if part is not None:
                    part.discard()
                self._cache.hashes.reload()
                self._sizes[download.name] = self._cache.path(download.sha256).stat().st_size
                return None
            if part is not None:
                return part
            written = self._cache.part_size(name) or 0
            self._sizes[download.name] = written
            if written != size:
                size, since = written, time.monotonic()
            elif time.monotonic() - since > self._stalled:
                return await asyncio.to_thread(self._cache.own_part, name)
            await asyncio.sleep(_POLL_S)

    async def _try_sources(self, part: Part, download: Download) -> str:
        """Return the sha256 of the file in ``part``, received from the first source that has it."""
        errors: list[YggdrasillError] = []
        for url in download.urls:
            try:
                return await self._receive(part, download, url)
            except StorageFailed as error:
                self._storage_error = error
                raise
            except YggdrasillError as error:
                errors.append(error)
        if not errors:
            raise InvalidArgument(f"{download.name!r} has no source.")
        errors[-1].message = " ".join(error.message for error in errors)
        raise errors[-1]

    async def _receive(self, part: Part, download: Download, url: str) -> str:
        source = self._pool.open(url)
        nbytes = download.nbytes if download.nbytes is not None else (await source.facts()).nbytes
        if nbytes is None or download.sha256 is None or part.size > nbytes:
            part.restart()
        while True:
            resumed = part.size > 0
            digest = await self._append(part, download.name, self._chunks(source, url, nbytes, part.size))
            if download.sha256 in (None, digest):
                return digest
            part.restart()
            if not resumed:  # otherwise what an earlier process left may be damaged
                raise CorruptData(
                    f"{shown_url(url)} has sha256 {digest}, expected {download.sha256}. The file was removed; correct the spec or the source.",
                    sha256=digest,
                )

    async def _append(self, part: Part, name: str, chunks: AsyncGenerator[bytes, None]) -> str:
        """Append chunks to a part and return the sha256 of all of it."""
        with _Receiver(part, self._hashing) as receiver:
            async with contextlib.aclosing(chunks):
                await asyncio.to_thread(receiver.hash_present)
                self._sizes[name] = part.size

                async def counted() -> AsyncGenerator[bytes, None]:
                    async for chunk in chunks:
                        self._check_storage()
                        self._sizes[name] += len(chunk)
                        yield chunk

                try:
                    await write_stream(counted(), receiver.write)
                except StorageFailed:
                    raise
                except BaseException:
                    receiver.finish()
                    raise
            return await asyncio.to_thread(receiver.finish)

    def _chunks(self, source: Source, url: str, nbytes: int | None, start: int) -> AsyncGenerator[bytes, None]:
        """Return the bytes of a file from ``start``: continued after broken connections if its size is known."""
        if nbytes is None:
            return _whole(source)
        if start == nbytes:
            return _nothing()

        def open_range(first: int, end: int) -> AbstractAsyncContextManager[RangeResponse]:
            return source.open_range(first, None if end == nbytes else end)

        def mismatch(what: str) -> CorruptData:
            return CorruptData(f"{shown_url(url)} sent {what} bytes, expected {nbytes}. Correct the size in the spec, or the source.")

        return stream_ranges(open_range, (start, nbytes), Retry(self._retry_policy), mismatch, most=nbytes)

    def _check_storage(self) -> None:
        """Raise the error of a disk that another download could not write."""
        if self._storage_error is not None:
            raise StorageFailed(self._storage_error.message, **self._storage_error.details)


async def _whole(source: Source) -> AsyncGenerator[bytes, None]:
    async with source.open_range(0, None) as response:
        async for chunk in response.chunks():
            yield chunk


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""


class _Receiver:
    """Writes chunks to a part, and hashes each batch in another thread while it is written."""

    def __init__(self, part: Part, threads: ThreadPoolExecutor) -> None:
        self._part, self._threads = part, threads
        self._digest = hashlib.sha256()
        self._batch: list[Data] = []
        self._size = 0
        self._hashing: Future[None] | None = None
        self._syncing: Future[None] | None = None
        self._synced = part.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future in (self._hashing, self._syncing):
            if future is not None:
                wait([future])

    def hash_present(self) -> None:
        """Hash what the part contains already.

        Raises:
            StorageFailed
        """
        buffer = memoryview(bytearray(_READ_BYTES))
        with failing(self._part.path), self._part.path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                self._digest.update(buffer[:count])

    def write(self, chunk: Data) -> None:
        """Append a chunk, in batches.

        Raises:
            StorageFailed
        """
        self._batch.append(chunk)
        self._size += len(chunk)
        if self._size >= _BATCH_BYTES:
            self._flush()

    def finish(self) -> str:
        """Write the rest and return the sha256 of the whole file."""
        self._flush()
        if self._hashing is not None:
            self._hashing.result()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        batch, self._batch, self._size = self._batch, [], 0
        if not batch:
            return
        if self._hashing is not None:
            self._hashing.result()
        self._hashing = self._threads.submit(self._hash, batch)
        try:
            for chunk in batch:
                rest = memoryview(chunk)
                while rest:
                    count = self._part.file.write(rest)
                    rest = rest[count:]
                    self._part.size += count or 0
            self._sync()
        except OSError as error:
            why = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
            raise StorageFailed(
                f"Cannot write {str(self._part.path)!r}: {why}. What was fetched of it is removed. Free space, or set COMFY_CACHE_ROOT to another disk.",
                path=str(self._part.path),
                full=error.errno in _FULL,
            ) from error

    def _sync(self) -> None:
        """Start to flush the file, so that little is left to flush at its end."""
        if self._part.size - self._synced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            if self._syncing is not None:
                self._syncing.result()
            self._synced = self._part.size
            self._syncing = self._threads.submit(os.fsync, self._part.file.fileno())

    def _hash(self, batch: Iterable[Data]) -> None:
        for chunk in batch:
            self._digest.update(chunk)
