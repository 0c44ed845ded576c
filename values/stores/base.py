"""Artifacts: immutable bytes named by their blake3, and what every store of them offers (`memory`, `disk`)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, StorageFailed, UnknownArtifact

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CHUNK_BYTES",
    "MAX_ARTIFACT_BYTES",
    "ArtifactStore",
    "ArtifactWriter",
    "check_hash",
    "check_put",
    "check_size",
    "over_quota",
    "put_mutable",
    "span_of",
    "unknown_artifact",
]

CHUNK_BYTES = 1 << 20
MAX_ARTIFACT_BYTES = 64 << 30
"""The largest artifact a store takes unless told otherwise."""

#: Below so many bytes another thread costs more than it gains.
_BESIDE_FROM = 256 << 10
_HASHERS = 4
_HASH = re.compile(r"[0-9a-f]{64}")


class ArtifactStore(Protocol):
    """Bytes by the blake3 of their content; safe to use from several threads.

    Every method that takes a hash raises `InvalidArgument` for a text that is none. ``read``, ``chunks``, ``path``, ``missing``
    and ``put`` count as use: what was not used for longest is evicted first.
    """

    store_id: str
    """Random text, the same for all who share these bytes: between equal ids a reference suffices."""

    def has(self, hash: str) -> bool:  # noqa: A002 - the word of the protocol
        """Whether the bytes are here."""
        ...

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Those of ``hashes`` that are not here, each once, in order."""
        ...

    def nbytes(self, hash: str) -> int:  # noqa: A002
        """Length in bytes; raises `UnknownArtifact`."""
        ...

    def put(self, data: bytes | bytearray | memoryview, *, hash: str | None = None, verify: bool = True) -> str:  # noqa: A002
        """Keep a copy of ``data`` and give its hash. A ``hash`` is compared; with ``verify=False`` it is believed unseen.

        Raises `CorruptData` (another hash), `LimitExceeded` (larger than the store takes), `StorageFailed` (quota, disk).
        """
        ...

    def writer(self, expected: str | None = None, nbytes: int | None = None) -> ArtifactWriter:
        """Take bytes in chunks; ``expected`` hash and ``nbytes`` are held to. Raises as `put`, before the first chunk if it can."""
        ...

    def read(self, hash: str) -> memoryview:  # noqa: A002
        """All bytes: read-only, or writable where writing cannot reach the store. Raises `UnknownArtifact`."""
        ...

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        """The bytes from ``start`` up to ``stop``, at most ``size`` at a time. Raises `UnknownArtifact` when called."""
        ...

    def path(self, hash: str) -> Path | None:  # noqa: A002
        """The file that holds the bytes, to be read only; None if there is none. Raises `UnknownArtifact`."""
        ...

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        """Keep ``hashes`` from eviction until ``unpin(owner)``; they may arrive later."""
        ...

    def unpin(self, owner: str) -> None:
        """Give up all pins of ``owner``; nothing happens if it has none."""
        ...


class ArtifactWriter(ABC):
    """Bytes on their way into a store: ``write`` chunks, then ``commit``; whatever else happens, nothing is kept.

    A context manager that aborts unless ``commit`` was called inside.
    """

    def __init__(self, *, expected: str | None, nbytes: int | None, limit: int) -> None:
        from blake3 import blake3

        self._expected = None if expected is None else check_hash(expected)
        self._promised = nbytes
        self._limit = limit
        self._taken = 0
        self._open = True
        self._hasher = blake3()
        if nbytes is not None:
            check_size(nbytes, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    @property
    def nbytes(self) -> int:
        """Bytes taken so far."""
        return self._taken

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises `CorruptData` (more than promised), `LimitExceeded` or `StorageFailed`; the writer is aborted then.
        """
        self._require_open()
        view = memoryview(chunk).cast("B")
        try:
            taken = self._taken + view.nbytes
            if self._promised is not None and taken > self._promised:
                raise self._corrupt(f"has more than the {self._promised} bytes it was said to have")
            check_size(taken, self._limit)
            with self._hashing(view):
                self._append(view)
            self._taken = taken
        except BaseException:
            self.abort()
            raise

    def commit(self) -> str:
        """Make the bytes an artifact and give its hash.

        Raises `CorruptData` if hash or length are not the promised ones, `StorageFailed`; nothing is kept then.
        """
        self._require_open()
        try:
            digest = self._hasher.hexdigest()
            if self._promised is not None and self._taken != self._promised:
                raise self._corrupt(f"ends after {self._taken} of {self._promised} bytes")
            if self._expected is not None and digest != self._expected:
                raise self._corrupt(f"has blake3 {digest}")
            self._keep(digest)
        except BaseException:
            self.abort()
            raise
        self._open = False
        return digest

    def abort(self) -> None:
        """Keep nothing; does nothing after `commit`."""
        if self._open:
            self._open = False
            self._discard()

    @contextmanager
    def _hashing(self, view: memoryview) -> Iterator[None]:
        """Hash ``view`` while this is open: beside the writing, where there is enough to hash."""
        if view.nbytes < _BESIDE_FROM:
            self._hasher.update(view)
            yield
            return
        hashing = _hashers().submit(self._hasher.update, view)
        try:
            yield
        finally:
            hashing.result()

    def _require_open(self) -> None:
        if not self._open:
            raise InvalidArgument("the writer of this artifact is closed; ask the store for a new writer()")

    def _corrupt(self, what: str) -> CorruptData:
        name = "the artifact" if self._expected is None else f"artifact {self._expected}"
        return CorruptData(f"{name} {what}: it was cut short or altered; send it again", hash=self._expected)

    @abstractmethod
    def _append(self, chunk: memoryview) -> None:
        """Take ``chunk``; its memory is the caller's again afterwards."""

    @abstractmethod
    def _keep(self, digest: str) -> None:
        """Name what was taken."""

    @abstractmethod
    def _discard(self) -> None:
        """Forget what was taken; must not raise."""


@lru_cache(maxsize=1)
def _hashers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_HASHERS, "yggdrasill-hash")


def check_hash(hash: str) -> str:  # noqa: A002
    """``hash`` if it is the hex form of a blake3, else `InvalidArgument`."""
    if type(hash) is not str or not _HASH.fullmatch(hash):
        raise InvalidArgument(f"{str(hash)[:80]!r} names no artifact; a name is the blake3 of the bytes in 64 lower-case hex digits")
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


def check_put(view: memoryview, digest: str, promised: str | None) -> None:
    """Raise `CorruptData` if ``promised`` is given and is not the ``digest`` of ``view``."""
    if promised is not None and digest != promised:
        raise CorruptData(f"the {view.nbytes} bytes given as artifact {promised} have blake3 {digest}; send them again", hash=promised)


def put_mutable(store: ArtifactStore, hash: str, data: memoryview) -> None:  # noqa: A002
    """Store ``data``, which others may write to meanwhile, under its ``hash``: what is hashed are the very bytes that are stored.

    Raises:
        CorruptData: they are not those of ``hash`` (any more). LimitExceeded, StorageFailed
    """
    with store.writer(hash, data.nbytes) as writer:
        for place in range(0, data.nbytes, CHUNK_BYTES):
            writer.write(bytes(data[place : place + CHUNK_BYTES]))
        writer.commit()


def span_of(nbytes: int, start: int, stop: int | None, size: int) -> tuple[int, int]:
    """First byte and end of ``data[start:stop]`` for ``nbytes`` of data; raises `InvalidArgument` for a ``size`` of chunks below 1."""
    if size < 1:
        raise InvalidArgument(f"chunks of {size} bytes cannot be; give a size from 1 on")
    first, end, _ = slice(start, stop).indices(nbytes)
    return first, end


def unknown_artifact(hash: str) -> UnknownArtifact:  # noqa: A002
    """The error for bytes that are not here (any more)."""
    return UnknownArtifact(f"artifact {hash} is not in this store; it never came or was evicted, send it again", hash=hash, missing=[hash])


def over_quota(nbytes: int, quota: int, pinned_bytes: int, pins: int) -> StorageFailed:
    """The error for bytes that find no room beside those that must stay."""
    return StorageFailed(
        f"no room for an artifact of {nbytes} bytes: the quota is {quota} bytes, and {pins} artifacts of {pinned_bytes} bytes are pinned by "
        "running jobs or calls; let them end, raise the quota, or send less at once",
        quota=quota,
        pins=pins,
        pinned_bytes=pinned_bytes,
        nbytes=nbytes,
    )
