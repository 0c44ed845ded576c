"""A store in a folder that several processes may share.

The folder has ``objects/ab/cd/<hash>`` with the artifacts, ``incoming`` with partial files, ``pins`` with a folder for each open
store and in it an empty file for each hash it pins or a list of many, the file ``store-id``, and ``used`` with the bytes in use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.files import sync_folder, write_file
from yggdrasill.values.stores.base import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactStore,
    ArtifactWriter,
    check_hash,
    check_size,
    checked_digest,
    over_quota,
    span_of,
    unknown_artifact,
)
from yggdrasill.values.stores.disk_files import FileLock, PartialFile, hash_file, read_chunks, read_file, storage_errors

__all__ = ["FILE_CHARGE", "GRACE_S", "LOCK_SECONDS", "DiskStore", "PinFolder", "read_store_id"]

GRACE_S = 600.0
"""Seconds that the pins of a process outlive it, so that a process that was killed can restart and pin again."""

_LOG = logging.getLogger("yggdrasill.values")
FILE_CHARGE = 8192
"""Bytes of disk that a small file takes at least: a block for its content, and its share of inodes and folders."""

LOCK_SECONDS = 10.0
"""Seconds that a store waits for the lock of its folder before it raises `StorageFailed`."""

_MANY_OBJECTS = 1000
_MANY_PINS = 16
# A write of unknown length reserves room in steps, after its first bytes.
_UNRESERVED_BYTES = 256 << 10
_RESERVE_STEP = 1 << 20
_LIST_SUFFIX = ".list"
_MAX_INTACT = 200_000
_ID_FILE = "store-id"
_USED_FILE = "used"
_STORE_ID = re.compile(r"[0-9a-f]{32}")
_LOCK_FILE = "lock"
_DEAD_FILE = "left"


class DiskStore(ArtifactStore):
    """An `ArtifactStore` in a folder. Large artifacts are read as copy-on-write maps of their files.

    Processes with a store on the same folder share its artifacts and never evict one another's pins. ``quota_bytes`` bounds the
    artifacts of all processes together and the unfinished writes of this one; each artifact counts at least ``min_charge`` bytes. Files survive the end of the process; with ``durable`` also a power failure.
    A new folder is private to this user. A folder that other users may already open is shared with them.

    Raises:
        StorageFailed: the folder cannot be used.
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
        self.min_charge = min_charge
        self.quota_bytes = quota_bytes
        self.max_artifact_bytes = max_artifact_bytes
        self.durable = durable
        self._objects = self.folder / "objects"
        self._incoming = self.folder / "incoming"
        self._pins: dict[str, set[str]] = {}
        self._pin_counts: Counter[str] = Counter()
        self._pins_lock = threading.Lock()
        self._reserved = 0
        self._reserved_lock = threading.Lock()
        # Size and inode of the files whose content this store has written or verified.
        self._intact: dict[str, tuple[int, int]] = {}
        with storage_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for subfolder in (self._objects, self._incoming):
                subfolder.mkdir(parents=True, exist_ok=True)
            self._lock_mode = 0o666 if self.folder.stat().st_mode & 0o077 else 0o600
            with self._locked():
                self.store_id = self._read_id()
                self._folder_pins = PinFolder(self.folder / "pins")
                self._remove_abandoned()
        # A method of the pins, because a method of the store would keep the store alive.
        self._end = weakref.finalize(self, self._folder_pins.close)

    def close(self) -> None:
        """Close the store; remaining pins last for `GRACE_S` more, so that a successor can pin the artifacts again."""
        self._end()

    @property
    def used_bytes(self) -> int:
        """Bytes of all artifacts in the folder, of this and other processes, as they count against the quota."""
        with storage_errors(self.folder), self._locked():
            return self._read_used()

    def has(self, hash: str) -> bool:  # noqa: A002
        return self._find(hash) is not None

    def missing(self, hashes: Iterable[str]) -> list[str]:
        return [hash for hash in dict.fromkeys(hashes) if self._use(hash) is None]  # noqa: A001

    def nbytes(self, hash: str) -> int:  # noqa: A002
        status = self._status(hash) if hash not in self._intact else self._find(hash)
        if status is None:
            raise unknown_artifact(hash)
        return status.st_size

    def put(self, data: bytes | bytearray | memoryview, *, hash: str | None = None, verify: bool = True) -> str:  # noqa: A002
        view = memoryview(data).cast("B")
        check_size(view.nbytes, self.max_artifact_bytes)
        digest = checked_digest(view, hash, verify=verify)
        if self._use(digest) is None:
            partial = PartialFile(self._partial_path(), durable=self.durable)
            try:
                partial.write(view)
                self._adopt(partial, digest)
            finally:
                partial.discard()
        return digest

    def writer(self, expected: str | None = None, nbytes: int | None = None) -> ArtifactWriter:
        return _DiskWriter(self, expected=expected, nbytes=nbytes)

    def read(self, hash: str) -> memoryview:  # noqa: A002
        return read_file(self._path_of(hash), self._use_known(hash), hash)

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        first, end = span_of(self._use_known(hash), start, stop, size)
        return read_chunks(self._path_of(hash), hash, first, end, size)

    def path(self, hash: str) -> Path | None:  # noqa: A002
        self._use_known(hash)
        return self._path_of(hash)

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        wanted = set(map(check_hash, hashes))
        with self._pins_lock:
            fresh = wanted - self._pins.get(owner, set())
            unpinned = [digest for digest in fresh if digest not in self._pin_counts]
            if unpinned:
                with storage_errors(self.folder), self._locked():
                    self._folder_pins.add(unpinned)
            self._pins.setdefault(owner, set()).update(fresh)
            self._pin_counts.update(fresh)

    def unpin(self, owner: str) -> None:
        with self._pins_lock:
            released = []
            for digest in self._pins.pop(owner, ()):
                self._pin_counts[digest] -= 1
                if not self._pin_counts[digest]:
                    del self._pin_counts[digest]
                    released.append(digest)
            self._folder_pins.remove(released)

    def _path_of(self, hash: str) -> Path:  # noqa: A002
        check_hash(hash)
        return self._objects / hash[:2] / hash[2:4] / hash

    def _partial_path(self) -> Path:
        return self._incoming / f"{self._folder_pins.name}-{uuid.uuid4().hex}.part"

    def _locked(self) -> FileLock:
        return FileLock(self.folder / _LOCK_FILE, timeout=LOCK_SECONDS, mode=self._lock_mode)

    def _status(self, digest: str) -> os.stat_result | None:
        try:
            return self._path_of(digest).stat()
        except FileNotFoundError:
            return None

    def _find(self, digest: str) -> os.stat_result | None:
        """Return the status of an artifact's file, or None if there is no intact file. Remove a damaged one.

        The content is verified once per store object, and again if size or inode changed. Files are therefore not flushed to the disk
        before they are renamed: a file that a power failure damaged is found at its first use.
        """
        status = self._status(digest)
        if status is None or self._intact.get(digest) == _mark(status):
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
            return status
        self._remove_damaged(digest, status)
        return None

    def _use(self, digest: str) -> os.stat_result | None:
        """Return as `_find`, and record the use."""
        status = self._find(digest)
        return status if status is not None and self._touch(self._path_of(digest)) else None

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
        with storage_errors(self.folder), self._locked():
            found = self._status(digest)
            # Another process may have replaced it by an intact file.
            if found is not None and _mark(found) == _mark(status):
                path.unlink(missing_ok=True)
                self._discard_used()

    @staticmethod
    def _touch(path: Path) -> bool:
        """Record the use of an artifact for eviction; return False if the file does not exist."""
        now = time.time_ns()
        try:
            os.utime(path, ns=(now, now))
        except FileNotFoundError:
            return False
        except OSError:
            # On a shared folder, another user's file may be readable without permission to set its time.
            return path.is_file()
        return True

    def _read_id(self) -> str:
        path = self.folder / _ID_FILE
        if not path.exists():
            write_file(path, uuid.uuid4().hex.encode(), durable=True)
        return read_store_id(self.folder)

    def _remove_abandoned(self) -> None:
        """Remove the partial files of writers that were killed."""
        for path in self._incoming.iterdir():
            if not self._folder_pins.is_alive(path.name.partition("-")[0]):
                path.unlink(missing_ok=True)

    def _charge(self, nbytes: int) -> int:
        return max(nbytes, self.min_charge)

    def _adopt(self, partial: PartialFile, digest: str, reserved: int = 0) -> None:
        """Make a complete partial file the artifact ``digest``, in room of which ``reserved`` bytes are reserved."""
        target = self._path_of(digest)
        with storage_errors(self.folder):
            partial.close()
            with self._locked():
                found = self._status(digest)
                if found is not None and self._intact.get(digest) == _mark(found):
                    self._touch(target)
                    return
                used = self._make_room(self._charge(partial.nbytes), reserved)
                known = target.parent.exists()
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.path.replace(target)
                self._touch(target)
                self._remember(digest, target.stat())
                if found is None:
                    self._write_used(used + self._charge(partial.nbytes))
                else:
                    # Content that was not verified was replaced, because it may be damaged.
                    self._discard_used()
            if self.durable:
                # the file's name lies in its folder, and the name of a new folder in the folder above it
                for folder in (target.parent,) if known else (target.parent, target.parent.parent, self._objects):
                    sync_folder(folder)

    def _reserve(self, nbytes: int) -> None:
        """Make room for ``nbytes`` before they are written, and keep it until `_release`."""
        with storage_errors(self.folder), self._locked():
            self._write_used(self._make_room(nbytes))
            with self._reserved_lock:
                self._reserved += nbytes

    def _release(self, nbytes: int) -> None:
        with self._reserved_lock:
            self._reserved -= nbytes

    def _make_room(self, nbytes: int, reserved: int = 0) -> int:
        """Evict artifacts until ``nbytes`` fit, of which ``reserved`` bytes are reserved already. Return the bytes in use."""
        used = self._read_used()
        arriving = self._reserved - reserved
        if self.quota_bytes is None or used + arriving + nbytes <= self.quota_bytes:
            return used
        objects = sorted(self._scan(), key=lambda found: found.used_ns)
        used = sum(found.charge for found in objects)
        pinned = self._folder_pins.pinned()
        free = [found for found in objects if found.path.name not in pinned]
        pinned_bytes = used - sum(found.charge for found in free)
        if pinned_bytes + arriving + nbytes > self.quota_bytes:
            raise over_quota(nbytes, self.quota_bytes, pinned_bytes, len(objects) - len(free), arriving)
        # With many artifacts, evict some more, so that not every write has to scan the folder.
        goal = self.quota_bytes - nbytes - arriving
        if len(objects) > _MANY_OBJECTS:
            goal -= min(self.quota_bytes // 16, goal - pinned_bytes)
        for found in free:
            if used <= goal:
                break
            # Windows does not delete a file that is mapped; the next one is evicted in its place.
            with contextlib.suppress(PermissionError):
                found.path.unlink(missing_ok=True)
                used -= found.charge
        if used + arriving + nbytes > self.quota_bytes:
            raise over_quota(nbytes, self.quota_bytes, used, len(objects), arriving)
        return used

    def _scan(self) -> Iterator[_Object]:
        for first in os.scandir(self._objects):
            for second in os.scandir(first.path):
                for entry in os.scandir(second.path):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        yield _Object(Path(entry.path), self._charge(stat.st_size), stat.st_mtime_ns)

    def _read_used(self) -> int:
        """Return the recorded bytes in use; count them if the record is missing or incomplete."""
        try:
            return int((self.folder / _USED_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return sum(found.charge for found in self._scan())

    def _write_used(self, nbytes: int) -> None:
        path = self.folder / _USED_FILE
        try:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(b"%020d" % nbytes)
        except OSError:
            # The disk is full.
            self._discard_used()

    def _discard_used(self) -> None:
        """Remove the record of the bytes in use; the next reader counts them."""
        (self.folder / _USED_FILE).unlink(missing_ok=True)


def _mark(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_ino


@dataclass(frozen=True)
class _Object:
    path: Path
    charge: int
    used_ns: int


class _DiskWriter(ArtifactWriter):
    def __init__(self, store: DiskStore, *, expected: str | None, nbytes: int | None) -> None:
        super().__init__(expected=expected, nbytes=nbytes, limit=store.max_artifact_bytes)
        self._store = store
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
        self._store._adopt(self._partial, digest, self._reserved)
        self._discard()

    def _discard(self) -> None:
        self._partial.discard()
        self._release()

    def _reserve(self, nbytes: int) -> None:
        if not self._known and self._store.quota_bytes is not None:
            self._store._reserve(nbytes)
            self._reserved += nbytes

    def _release(self) -> None:
        self._store._release(self._reserved)
        self._reserved = 0


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


class PinFolder:
    """The pins of one open store, and a view of the pins of all other stores on the same ``folder``.

    An open store holds a file lock while it lives, so the end of a process is detected without clocks or process ids. Except for
    `remove` and `close`, call the methods under the lock of the store's folder. Raises OSError as the file system does.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        self._own = folder / self.name
        self._own.mkdir(parents=True)
        self._life = FileLock(self._own / _LOCK_FILE)
        self._life.acquire()
        # Many hashes that were pinned at once are lines of one file, because a file for each takes long.
        self._lists: dict[str, set[str]] = {}
        self._list_of: dict[str, str] = {}

    def add(self, digests: Collection[str]) -> None:
        """Pin ``digests``, which are not pinned."""
        if len(digests) >= _MANY_PINS:
            self._write_list(set(digests))
            return
        for digest in digests:
            (self._own / digest).touch()

    def remove(self, digests: Iterable[str]) -> None:
        """Unpin ``digests``."""
        changed = set()
        for digest in digests:
            name = self._list_of.pop(digest, None)
            if name is None:
                self._unlink(digest)
            else:
                self._lists[name].remove(digest)
                changed.add(name)
        for name in changed:
            remaining = self._lists.pop(name)
            try:
                if remaining:
                    self._write_list(remaining)
                self._unlink(name)
            except OSError:
                # The old list still protects the pins that remain.
                self._lists[name] = remaining

    def _write_list(self, digests: set[str]) -> None:
        name = f"{uuid.uuid4().hex}{_LIST_SUFFIX}"
        (self._own / name).write_text("\n".join(digests), encoding="ascii")
        self._lists[name] = digests
        self._list_of.update(dict.fromkeys(digests, name))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._own / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; remaining pins last for `GRACE_S` more."""
        self._life.release()
        with contextlib.suppress(OSError):
            if {path.name for path in self._own.iterdir()} == {_LOCK_FILE}:
                shutil.rmtree(self._own)

    def is_alive(self, name: str) -> bool:
        """Return whether the store with the pin folder ``name`` is open."""
        if name == self.name:
            return True
        path = self._folder / name / _LOCK_FILE
        if not path.exists():
            return False
        probe = FileLock(path)
        try:
            free = probe.acquire(wait=False)
        except FileNotFoundError:
            return False
        probe.release()
        return not free

    def pinned(self) -> set[str]:
        """Return every pinned hash; remove the pins of processes that ended more than `GRACE_S` ago."""
        hashes: set[str] = set()
        for folder in self._folder.iterdir():
            try:
                names = {path.name for path in folder.iterdir()}
            except FileNotFoundError:
                continue
            pins = names - {_LOCK_FILE, _DEAD_FILE}
            if not self.is_alive(folder.name) and (not pins or self._is_expired(folder, marked=_DEAD_FILE in names)):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                for name in pins:
                    hashes.update(self._read_list(folder / name) if name.endswith(_LIST_SUFFIX) else [name])
        return hashes

    @staticmethod
    def _read_list(path: Path) -> list[str]:
        try:
            return path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return []

    @staticmethod
    def _is_expired(folder: Path, *, marked: bool) -> bool:
        mark = folder / _DEAD_FILE
        if not marked:
            mark.touch()
        return time.time() - mark.stat().st_mtime > GRACE_S
