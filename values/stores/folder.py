"""The base of stores in folders: files ``objects/ab/cd/<hash>``, verified at their first use, and ``incoming`` with partial files."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.files import sync_folder, write_file
from yggdrasill.values.stores.base import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactStat,
    ArtifactWriter,
    Data,
    Reservation,
    StagingStore,
    Writer,
    check_hash,
    check_size,
    checked_digest,
    current_writer,
    span_of,
    unknown_artifact,
)
from yggdrasill.values.stores.disk_files import PartialFile, hash_file, place_new, read_chunks, read_file, storage_errors

__all__ = ["FILE_CHARGE", "GRACE_S", "PARTIAL_S", "FolderStore", "read_store_id"]

GRACE_S = 600.0
"""Seconds that the leases of a process outlive it, so that a process that was killed can restart and take them again."""
PARTIAL_S = 3600.0
"""Seconds after the last write at which a partial file counts as abandoned."""
FILE_CHARGE = 8192
"""Bytes of disk that a small file takes at least: a block for its content, and its share of inodes and folders."""

_LOG = logging.getLogger("yggdrasill.values")
# A write of unknown length reserves room in steps, after its first bytes.
_UNRESERVED_BYTES = 256 << 10
_RESERVE_STEP = 1 << 20
_MAX_INTACT = 200_000
_ID_FILE = "store-id"
_STORE_ID = re.compile(r"[0-9a-f]{32}")


class FolderStore(StagingStore):
    """A `LocalStore` in a folder. Large artifacts are read as copy-on-write maps of their files.

    The content of a file is verified once per store object, and again if its size or inode changed; a damaged file is removed and
    treated as missing. Files are therefore not flushed to the disk before they are renamed, unless the store is ``durable``. Each
    artifact counts at least ``min_charge`` bytes against ``quota_bytes``. A new folder is private to this user.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        quota_bytes: int | None = None,
        max_artifact_bytes: int = MAX_ARTIFACT_BYTES,
        durable: bool = False,
        min_charge: int = 0,
    ) -> None:
        self.folder = Path(folder)
        self.quota_bytes, self.max_artifact_bytes = quota_bytes, max_artifact_bytes
        self.durable, self.min_charge = durable, min_charge
        self._objects = self.folder / "objects"
        self._incoming = self.folder / "incoming"
        self._name = uuid.uuid4().hex
        self._lock = threading.Lock()
        # Size and inode of the files whose content this store has written or verified.
        self._intact: dict[str, tuple[int, int]] = {}
        with storage_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for subfolder in (self._objects, self._incoming):
                subfolder.mkdir(exist_ok=True)
            self.store_id = self._read_id()
            self._remove_abandoned()

    @abstractmethod
    def close(self) -> None:
        """Close the store; leases without an end last for `GRACE_S` more."""

    @property
    @abstractmethod
    def used_bytes(self) -> int:
        """Bytes of all artifacts in the folder, as they count against the quota."""

    def has(self, hash: str) -> bool:  # noqa: A002 - the protocol's word
        return self._find(hash) is not None

    def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002
        status = self._find(hash)
        return None if status is None else ArtifactStat(hash, status.st_size, status.st_mtime)

    def missing(self, hashes: Iterable[str]) -> list[str]:
        return [hash for hash in dict.fromkeys(hashes) if self._use(hash) is None]  # noqa: A001

    def nbytes(self, hash: str) -> int:  # noqa: A002
        status = self._status(hash) if hash not in self._intact else self._find(hash)
        if status is None:
            raise unknown_artifact(hash)
        return status.st_size

    def put(self, data: Data, *, hash: str | None = None, verify: bool = True, writer: Writer | None = None) -> str:  # noqa: A002
        view = memoryview(data).cast("B")
        check_size(view.nbytes, self.max_artifact_bytes)
        digest = checked_digest(view, hash, verify=verify)
        if self._use(digest) is None:
            charge = self._charge(view.nbytes)
            self._reserve(charge)
            try:
                partial = PartialFile(self._partial_path(), durable=self.durable)
                try:
                    partial.write(view)
                    with storage_errors(self.folder):
                        partial.close()
                    self._place(partial.path, digest, charge, writer or current_writer())
                    charge = 0
                finally:
                    partial.discard()
            finally:
                self._unreserve(charge)
        return digest

    def writer(self, expected: str | None = None, nbytes: int | None = None, writer: Writer | None = None) -> ArtifactWriter:
        return _FolderWriter(self, writer, expected=expected, nbytes=nbytes)

    def read(self, hash: str) -> memoryview:  # noqa: A002
        return read_file(self._path_of(hash), self._use_known(hash), hash)

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        first, end = span_of(self._use_known(hash), start, stop, size)
        return read_chunks(self._path_of(hash), hash, first, end, size)

    def path(self, hash: str) -> Path | None:  # noqa: A002
        self._use_known(hash)
        return self._path_of(hash)

    def reserve(self, nbytes: int) -> Reservation:
        charge = self._charge(nbytes)
        self._reserve(charge)
        return Reservation(charge, self._unreserve)

    def adopt(self, path: Path, hash: str, reservation: Reservation, writer: Writer | None = None) -> None:  # noqa: A002
        with storage_errors(self.folder):
            if self._use(hash) is None:
                charge, reservation.nbytes = reservation.nbytes, 0
                try:
                    self._place(path, hash, charge, writer or current_writer())
                except BaseException:
                    self._unreserve(charge)
                    raise
            path.unlink(missing_ok=True)
        reservation.release()

    # -- what a kind of folder defines ------------------------------------------------------------------------------

    @abstractmethod
    def _reserve(self, nbytes: int) -> None:
        """Make room for ``nbytes`` and keep it; raises `StorageFailed`."""

    @abstractmethod
    def _unreserve(self, nbytes: int) -> None:
        """Give back reserved room."""

    @abstractmethod
    def _touch(self, digest: str) -> None:
        """Record the use of an artifact for eviction."""

    @abstractmethod
    def _stored(self, digest: str, nbytes: int, reserved: int, writer: Writer) -> None:
        """Record a file that is in its place; ``reserved`` bytes become bytes in use."""

    @abstractmethod
    def _found(self, digest: str, nbytes: int) -> None:
        """Record a file whose content was verified, and which may have been put there by another process."""

    @abstractmethod
    def _gone(self, digest: str) -> None:
        """Record that an artifact's file no longer exists."""

    # -- files --------------------------------------------------------------------------------------------------

    def _path_of(self, hash: str) -> Path:  # noqa: A002
        check_hash(hash)
        return self._objects / hash[:2] / hash[2:4] / hash

    def _partial_path(self) -> Path:
        return self._incoming / f"{self._name}-{uuid.uuid4().hex}.part"

    def _charge(self, nbytes: int) -> int:
        return max(nbytes, self.min_charge)

    def _status(self, digest: str) -> os.stat_result | None:
        try:
            return os.stat(self._path_of(digest))  # noqa: PTH116 - called very often
        except FileNotFoundError:
            return None

    def _find(self, digest: str) -> os.stat_result | None:
        """Return the status of an artifact's file, or None if there is no intact file. Remove a damaged one."""
        status = self._status(digest)
        known = self._intact.get(digest)
        if status is None:
            if known is not None:
                self._intact.pop(digest, None)
                self._gone(digest)
            return None
        if known == _mark(status):
            return status
        path = self._path_of(digest)
        try:
            intact = hash_file(path) == digest
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOG.warning("Cannot read artifact %s at %s: %s", digest, path, error)
            return None
        if intact:
            self._remember(digest, status)
            self._found(digest, status.st_size)
            return status
        self._remove_damaged(digest, status)
        return None

    def _use(self, digest: str) -> os.stat_result | None:
        """Return as `_find`, and record the use. The use is recorded first, so that an eviction at the same time passes it over."""
        self._touch(check_hash(digest))
        return self._find(digest)

    def _use_known(self, digest: str) -> int:
        """Record the use and return the length. Raise `UnknownArtifact` if there is no intact file."""
        status = self._use(digest)
        if status is None:
            raise unknown_artifact(digest)
        return status.st_size

    def _remember(self, digest: str, status: os.stat_result) -> None:
        if len(self._intact) >= _MAX_INTACT:
            self._intact.clear()
        self._intact[digest] = _mark(status)

    def _remove_damaged(self, digest: str, status: os.stat_result) -> None:
        path = self._path_of(digest)
        _LOG.warning("The artifact file %s is damaged (%d bytes). It is removed and must be sent again.", path, status.st_size)
        # Another process may have replaced it by an intact file.
        found = self._status(digest)
        if found is not None and _mark(found) == _mark(status):
            with storage_errors(self.folder):
                path.unlink(missing_ok=True)
            self._gone(digest)

    def _place(self, partial: Path, digest: str, reserved: int, writer: Writer) -> None:
        """Make a complete partial file the artifact ``digest``; ``reserved`` bytes become bytes in use."""
        target = self._path_of(digest)
        with storage_errors(self.folder):
            status = self._create(partial, target, digest)
            self._remember(digest, status)
            self._stored(digest, status.st_size, reserved, writer)

    def _create(self, partial: Path, target: Path, digest: str) -> os.stat_result:
        try:
            created = place_new(partial, target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            created = place_new(partial, target)
            if self.durable:
                for folder in (target.parent.parent, self._objects):
                    sync_folder(folder)
        if not created:
            # Another writer was first: its file counts, unless it is damaged.
            status = self._find(digest)
            if status is not None:
                return status
            created = place_new(partial, target)
        if self.durable:
            sync_folder(target.parent)
        return target.stat()

    def _read_id(self) -> str:
        path = self.folder / _ID_FILE
        if not path.exists():
            fresh = self._incoming / f"{self._name}.id"
            write_file(fresh, uuid.uuid4().hex.encode(), durable=True)
            place_new(fresh, path)
            fresh.unlink(missing_ok=True)
        return read_store_id(self.folder)

    def _remove_abandoned(self) -> None:
        """Remove the partial files without a write for `PARTIAL_S`."""
        end = time.time() - PARTIAL_S
        for path in self._incoming.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < end:
                    path.unlink()

    def _scan(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield hash and status of every file of an artifact."""
        for first in _names(self._objects):
            for second in _names(self._objects / first):
                folder = f"{self._objects}/{first}/{second}"
                for name in _names(folder):
                    with contextlib.suppress(FileNotFoundError):
                        yield name, os.stat(f"{folder}/{name}")  # noqa: PTH116 - called for every file


def _names(folder: Path | str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def _mark(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_ino


class _FolderWriter(ArtifactWriter):
    def __init__(self, store: FolderStore, writer: Writer | None, *, expected: str | None, nbytes: int | None) -> None:
        super().__init__(expected=expected, nbytes=nbytes, limit=store.max_artifact_bytes)
        self._store, self._writer = store, writer or current_writer()
        self._reserved = 0
        self._known = expected is not None and store.has(expected)
        if nbytes is not None:
            self._reserve(store._charge(nbytes))
        try:
            self._partial = PartialFile(store._partial_path(), durable=store.durable)
        except BaseException:
            self._release()
            raise

    def _append(self, chunk: memoryview) -> None:
        end = self._written + chunk.nbytes
        if end > max(self._reserved, _UNRESERVED_BYTES):
            self._reserve(end - self._reserved + _RESERVE_STEP)
        self._partial.write(chunk)

    def _keep(self, digest: str) -> None:
        store = self._store
        if store._use(digest) is None:
            charge = store._charge(self._written)
            if charge > self._reserved:
                store._reserve(charge - self._reserved)
                self._reserved = charge
            with storage_errors(store.folder):
                self._partial.close()
            store._place(self._partial.path, digest, charge, self._writer)
            self._reserved -= charge
        self._discard()

    def _discard(self) -> None:
        self._partial.discard()
        self._release()

    def _reserve(self, nbytes: int) -> None:
        if not self._known:
            self._store._reserve(nbytes)
            self._reserved += nbytes

    def _release(self) -> None:
        reserved, self._reserved = self._reserved, 0
        self._store._unreserve(reserved)


def read_store_id(folder: Path) -> str:
    """Return the id of the store in ``folder``. Raise OSError if there is no id file, `StorageFailed` if it has no valid id."""
    path = folder / _ID_FILE
    text = path.read_text(encoding="utf-8", errors="replace")
    if not _STORE_ID.fullmatch(text):
        raise StorageFailed(
            f"{str(path)!r} contains {text[:40]!r}; expected a store id of 32 hex digits. Delete that file, or choose another folder.",
            path=str(path),
        )
    return text
