"""The protocols of artifact stores, for event loops and for threads, the base of their writers, and the checks and errors that the stores share.

An artifact is immutable bytes named by their BLAKE3 hash.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeAlias

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, StorageFailed, UnknownArtifact
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.write_tracking import known_digest, protected_parts

if TYPE_CHECKING:
    from blake3 import blake3
    from typing_extensions import Self

__all__ = [
    "CHUNK_BYTES",
    "MAX_ARTIFACT_BYTES",
    "ArtifactStat",
    "ArtifactStore",
    "ArtifactWriter",
    "Data",
    "LocalStore",
    "Reservation",
    "StagingStore",
    "Writer",
    "check_hash",
    "check_size",
    "checked_digest",
    "current_writer",
    "hashing",
    "over_quota",
    "put_mutable",
    "span_of",
    "unknown_artifact",
    "writing_as",
]

CHUNK_BYTES = 1 << 20
MAX_ARTIFACT_BYTES = 64 << 30
"""The default size limit of one artifact."""

# Below this size, a thread for the hash beside the write costs more than it saves.
_THREADED_FROM = 1 << 20
#: The buffer through which changing bytes pass: it stays in the processor's cache, and is large enough for a parallel hash.
_COPY_BYTES = 512 << 10
_WRITE_BYTES = 4 << 20
_HASHERS = 4
Data: TypeAlias = "bytes | bytearray | memoryview"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Writer:
    """The identity that a write is recorded under: the name of a principal and the id of a job; empty if unknown."""

    principal: str = ""
    job: str = ""


@dataclass(frozen=True)
class ArtifactStat:
    """The facts of a stored artifact: hash, length in bytes, time of the write in seconds since the epoch (0 if unknown), and its writer."""

    hash: str
    nbytes: int
    created: float = 0.0
    writer: Writer = Writer()


_writer: ContextVar[Writer] = ContextVar("yggdrasill_artifact_writer")


@contextmanager
def writing_as(writer: Writer) -> Iterator[None]:
    """Record ``writer`` for the writes of this context that name no writer."""
    token = _writer.set(writer)
    try:
        yield
    finally:
        _writer.reset(token)


def current_writer() -> Writer:
    """Return the writer of this context, see `writing_as`."""
    return _writer.get(Writer())


class ArtifactStore(Protocol):
    """Bytes by the BLAKE3 of their content, for an event loop: no method blocks it.

    Every method that takes a hash raises `InvalidArgument` for a text that is not one. Reads and writes count as use; the least recently
    used artifact without a lease is evicted first. ``writer`` is recorded with what is stored.
    """

    @property
    def store_id(self) -> str:
        """Random text, equal for all users of the same bytes: between equal ids a reference is sufficient."""
        ...

    async def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002 - the protocol's word
        """Return the facts of an artifact, or None if the store lacks it."""
        ...

    async def missing(self, hashes: Iterable[str]) -> list[str]:
        """Return those of ``hashes`` that the store lacks, each once, in order."""
        ...

    async def put(self, data: Data, *, hash: str | None = None, writer: Writer | None = None) -> str:  # noqa: A002
        """Store a copy of ``data`` and return its hash. If ``hash`` is given it is verified.

        Raises `CorruptData` (different hash), `LimitExceeded` (larger than the store accepts), `StorageFailed` (quota, disk).
        """
        ...

    async def put_stream(
        self,
        chunks: AsyncIterable[Data],
        *,
        hash: str | None = None,  # noqa: A002
        nbytes: int | None = None,
        writer: Writer | None = None,
    ) -> str:
        """Store the bytes of ``chunks`` and return their hash; ``hash`` and ``nbytes`` are verified. Raises as `put`, and as ``chunks``."""
        ...

    def open_range(self, hash: str, start: int = 0, stop: int | None = None) -> AsyncIterator[memoryview]:  # noqa: A002
        """Return an iterator over the bytes from ``start`` to ``stop``. Its first step raises `UnknownArtifact`."""
        ...

    async def delete(self, hash: str) -> bool:  # noqa: A002
        """Remove an artifact. Return False if the store lacks it or a lease protects it."""
        ...

    async def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        """Protect ``hashes`` from eviction until ``release(owner)``, or for ``seconds`` if given. The artifacts may be stored later.

        A further lease of the same owner adds hashes; its ``seconds`` apply to these.
        """
        ...

    async def release(self, owner: str) -> None:
        """End all leases of ``owner``; does nothing if it has none."""
        ...


class LocalStore(Protocol):
    """An artifact store for threads: its methods block, and are safe to call from several threads. The codec and jobs use it.

    The rules of `ArtifactStore` apply. A lease without an end lasts until it is released, or some minutes longer than the process.
    """

    store_id: str
    """Random text, equal for all users of the same bytes: between equal ids a reference is sufficient."""

    def has(self, hash: str) -> bool:  # noqa: A002
        """Return whether the store has the artifact."""
        ...

    def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002
        """Return the facts of an artifact, or None if the store lacks it."""
        ...

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Return those of ``hashes`` that the store lacks, each once, in order."""
        ...

    def nbytes(self, hash: str) -> int:  # noqa: A002
        """Return the length in bytes; raises `UnknownArtifact`."""
        ...

    def put(self, data: Data, *, hash: str | None = None, verify: bool = True, writer: Writer | None = None) -> str:  # noqa: A002
        """Store a copy of ``data`` and return its hash. If ``hash`` is given it is verified; with ``verify=False`` it is trusted.

        Raises `CorruptData` (different hash), `LimitExceeded` (larger than the store accepts), `StorageFailed` (quota, disk).
        """
        ...

    def writer(self, expected: str | None = None, nbytes: int | None = None, writer: Writer | None = None) -> ArtifactWriter:
        """Return a writer for bytes in chunks that verifies ``expected`` (hash) and ``nbytes``.

        Raises as `put`, before the first chunk if possible.
        """
        ...

    def read(self, hash: str) -> memoryview:  # noqa: A002
        """Return all bytes: read-only, or writable if writes do not reach the store. Raises `UnknownArtifact`."""
        ...

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        """Return an iterator over the bytes from ``start`` to ``stop``, at most ``size`` at a time.

        Raises `UnknownArtifact` when called. The iterator yields all bytes even if the artifact is evicted in between.
        """
        ...

    def path(self, hash: str) -> Path | None:  # noqa: A002
        """Return the file of the artifact, for reading only; None for a store without files. Raises `UnknownArtifact`."""
        ...

    def delete(self, hash: str) -> bool:  # noqa: A002
        """Remove an artifact. Return False if the store lacks it or a lease protects it."""
        ...

    def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        """Protect ``hashes`` from eviction until ``release(owner)``, or for ``seconds``; see `ArtifactStore.lease`."""
        ...

    def release(self, owner: str) -> None:
        """End all leases of ``owner``; does nothing if it has none."""
        ...

    def lease_owners(self) -> list[str]:
        """Return the owners of leases, also of those from an earlier process, as far as the store knows them."""
        return []


class StagingStore(LocalStore, Protocol):
    """A local store that keeps room for bytes that arrive outside of it, and takes a finished file over."""

    max_artifact_bytes: int

    def reserve(self, nbytes: int) -> Reservation:
        """Make room for ``nbytes`` and keep it until the reservation is released. Raises `StorageFailed`."""
        ...

    def adopt(self, path: Path, hash: str, reservation: Reservation, writer: Writer | None = None) -> None:  # noqa: A002
        """Store the content of the file ``path``, which the caller has verified, as ``hash`` in the reserved room, and remove the file."""
        ...


class Reservation:
    """Room in a store for bytes that arrive; ``release`` gives it back, once."""

    def __init__(self, nbytes: int, release: Callable[[int], None]) -> None:
        self.nbytes = nbytes
        self._release = release

    def release(self) -> None:
        """Give the room back; does nothing the second time."""
        nbytes, self.nbytes = self.nbytes, 0
        if nbytes:
            self._release(nbytes)


class ArtifactWriter(ABC):
    """A write of one artifact: ``write`` chunks, then ``commit``. Without a commit nothing is stored.

    A context manager that aborts unless ``commit`` was called.
    """

    def __init__(self, *, expected: str | None, nbytes: int | None, limit: int) -> None:
        from blake3 import blake3

        self._expected = None if expected is None else check_hash(expected)
        self._expected_bytes = nbytes
        self._limit = limit
        self._written = 0
        self._open = True
        self._hasher = blake3(max_threads=blake3.AUTO)
        if nbytes is not None:
            check_size(nbytes, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._written

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append ``chunk``.

        Raises `CorruptData` (more bytes than expected), `LimitExceeded` or `StorageFailed`, and aborts the writer.
        """
        self._require_open()
        view = memoryview(chunk).cast("B")
        try:
            written = self._written + view.nbytes
            if self._expected_bytes is not None and written > self._expected_bytes:
                raise self._corrupt(f"has more than the expected {self._expected_bytes} bytes")
            check_size(written, self._limit)
            with hashing(self._hasher, view):
                self._append(view)
            self._written = written
        except BaseException:
            self.abort()
            raise

    def commit(self) -> str:
        """Store the artifact and return its hash.

        Raises `CorruptData` if hash or length differ from the expected ones, or `StorageFailed`; nothing is stored then.
        """
        self._require_open()
        try:
            digest = self._hasher.hexdigest()
            if self._expected_bytes is not None and self._written != self._expected_bytes:
                raise self._corrupt(f"ends after {self._written} of {self._expected_bytes} bytes")
            if self._expected is not None and digest != self._expected:
                raise self._corrupt(f"has BLAKE3 {digest}")
            self._keep(digest)
        except BaseException:
            self.abort()
            raise
        self._open = False
        return digest

    def store_protected(self, parts: Iterable[memoryview], is_unchanged: Callable[[], bool]) -> bool:
        """Append ``parts``, whose hash is the expected one unless ``is_unchanged()`` returns False after that, and store the artifact.

        Return False if nothing was stored. Closes the writer. Raises as `write` and `commit`.
        """
        self._require_open()
        try:
            for part in parts:
                for start in range(0, part.nbytes, _WRITE_BYTES):
                    chunk = part[start : start + _WRITE_BYTES]
                    self._append(chunk)
                    self._written += chunk.nbytes
            stored = self._expected is not None and self._written == self._expected_bytes and is_unchanged()
            if stored:
                self._keep(self._expected or "")
        except BaseException:
            self.abort()
            raise
        if not stored:
            self.abort()
        self._open = False
        return stored

    def abort(self) -> None:
        """Discard the bytes; does nothing after `commit`."""
        if self._open:
            self._open = False
            self._discard()

    def _require_open(self) -> None:
        if not self._open:
            raise InvalidArgument("the writer of this artifact is closed; call writer() again")

    def _corrupt(self, what: str) -> CorruptData:
        name = "the artifact" if self._expected is None else f"artifact {self._expected}"
        return CorruptData(f"{name} {what}: it was cut short or altered; send it again", hash=self._expected)

    @abstractmethod
    def _append(self, chunk: memoryview) -> None:
        """Append ``chunk``; its memory is not used after the return."""

    @abstractmethod
    def _keep(self, digest: str) -> None:
        """Store the written bytes under ``digest``."""

    @abstractmethod
    def _discard(self) -> None:
        """Discard the written bytes; must not raise."""


@contextmanager
def hashing(hasher: blake3, view: memoryview) -> Iterator[None]:
    """Hash ``view`` while the context is open, on another thread if it is large enough."""
    if view.nbytes < _THREADED_FROM:
        hasher.update(view)
        yield
        return
    running = _hashers().submit(hasher.update, view)
    try:
        yield
    finally:
        running.result()


@lru_cache(maxsize=1)
def _hashers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_HASHERS, "yggdrasill-hash")


def check_hash(hash: str) -> str:  # noqa: A002
    """Return ``hash`` if it is the hex form of a BLAKE3; raise `InvalidArgument` otherwise."""
    if type(hash) is not str or not _HASH.fullmatch(hash):
        raise InvalidArgument(f"Invalid artifact hash {str(hash)[:80]!r}. Expected the BLAKE3 of the bytes in 64 lower-case hex digits.")
    return hash


def check_size(nbytes: int, limit: int) -> None:
    """Raise `LimitExceeded` if an artifact of ``nbytes`` is above ``limit``."""
    if nbytes > limit:
        raise LimitExceeded(
            f"an artifact of {nbytes} bytes is above this store's limit of {limit}; split the value, or raise max_artifact_bytes",
            limit="max_artifact_bytes",
            bound=limit,
            found=nbytes,
        )


def checked_digest(view: memoryview, expected: str | None, *, verify: bool) -> str:
    """Return the hash of ``view``; ``expected`` is trusted without ``verify``, else `CorruptData` is raised if it differs."""
    if expected is not None and not verify:
        return check_hash(expected)
    digest = blake3_hex(view)
    if expected is not None and digest != check_hash(expected):
        raise CorruptData(f"the {view.nbytes} bytes sent as artifact {expected} have BLAKE3 {digest}; send them again", hash=expected)
    return digest


def put_mutable(store: LocalStore, hash: str, data: memoryview) -> None:  # noqa: A002
    """Store ``data`` under ``hash`` although other threads may write to it: the bytes that are stored are the bytes that are hashed.

    Raises:
        CorruptData: the bytes are no longer those of ``hash``.
        LimitExceeded, StorageFailed: as `LocalStore.put`.
    """
    if _put_protected(store, hash, data):
        return
    # One buffer for all chunks: new memory for each would cost more than the copy.
    buffer = memoryview(bytearray(min(_COPY_BYTES, data.nbytes)))
    with store.writer(hash, data.nbytes) as writer:
        for start in range(0, data.nbytes, _COPY_BYTES):
            chunk = data[start : start + _COPY_BYTES]
            copied = buffer[: chunk.nbytes]
            copied[:] = chunk
            writer.write(copied)
        writer.commit()


def _put_protected(store: LocalStore, hash: str, data: memoryview) -> bool:  # noqa: A002
    """Store ``data`` without a further hash if the kernel confirms, after the write, that it did not change since it was hashed."""
    parts = protected_parts(data, hash)
    if parts is None:
        return False
    with store.writer(hash, data.nbytes) as writer:
        return writer.store_protected(parts, lambda: known_digest(data) == hash)


def span_of(nbytes: int, start: int, stop: int | None, size: int) -> tuple[int, int]:
    """Return the first byte and the end of ``data[start:stop]`` for ``nbytes`` of data; raise `InvalidArgument` for a chunk ``size`` below 1."""
    if size < 1:
        raise InvalidArgument(f"Invalid chunk size {size}. It must be at least 1.")
    first, end, _ = slice(start, stop).indices(nbytes)
    return first, end


def unknown_artifact(hash: str) -> UnknownArtifact:  # noqa: A002
    """Return the error for an artifact that the store lacks."""
    return UnknownArtifact(
        f"artifact {hash} is not in this store: it was never stored or was evicted; send it again", hash=hash, missing=[hash]
    )


def over_quota(nbytes: int, quota: int, pinned_bytes: int, pins: int, reserved: int = 0) -> StorageFailed:
    """Return the error for an artifact that does not fit beside the pinned ones and the ``reserved`` bytes of unfinished writes."""
    arriving = f"; {reserved} bytes are reserved for artifacts that are being written" if reserved else ""
    return StorageFailed(
        f"no room for an artifact of {nbytes} bytes: the quota is {quota} bytes, and {pins} artifacts of {pinned_bytes} bytes are pinned by "
        f"running jobs or calls{arriving}; wait for them to finish, raise the quota, or send less at once",
        quota=quota,
        pins=pins,
        pinned_bytes=pinned_bytes,
        nbytes=nbytes,
        reserved=reserved,
    )
