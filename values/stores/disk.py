"""Artifacts in a folder that several processes may share: ``objects/ab/cd/<hash>``, and beside them pins, arrivals and the store's id.

Who keeps which artifacts of a shared folder: a folder for each open store, in it an empty file for each hash it pins.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.files import sync_folder, write_file
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactStore,
    ArtifactWriter,
    check_hash,
    check_put,
    check_size,
    over_quota,
    span_of,
    unknown_artifact,
)
from yggdrasill.values.stores.disk_files import FileLock, PartialFile, read_chunks, read_file, using

__all__ = ["GRACE_S", "DiskStore", "PinFolder", "read_store_id"]

_MANY = 1000
_ID_FILE = "store-id"
_STORE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class _Object:
    path: Path
    nbytes: int
    used_ns: int


class DiskStore(ArtifactStore):
    """An `ArtifactStore` in a folder. Large artifacts are read as copy-on-write maps of their files.

    Processes with a store on the same folder see one another's artifacts and never evict one another's pins. ``quota_bytes`` bounds
    the artifacts in the folder, whoever wrote them. Files survive the death of the process; with ``durable`` also a power cut.

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
    ) -> None:
        self.folder = Path(folder)
        self.quota_bytes = quota_bytes
        self.max_artifact_bytes = max_artifact_bytes
        self.durable = durable
        self._objects = self.folder / "objects"
        self._incoming = self.folder / "incoming"
        self._pins: dict[str, set[str]] = {}
        self._pin_counts: Counter[str] = Counter()
        self._pins_lock = threading.Lock()
        with using(self.folder):
            for place in (self._objects, self._incoming):
                place.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self.store_id = self._read_id()
                self._folder_pins = PinFolder(self.folder / "pins")
                self._remove_leftovers()
        # not the store's own method, which would keep it alive
        self._end = weakref.finalize(self, self._folder_pins.close)

    def close(self) -> None:
        """End; what is still pinned stays so for ten minutes, for a successor to pin again."""
        self._end()

    @property
    def used_bytes(self) -> int:
        """Bytes of the artifacts in the folder, whoever wrote them."""
        with using(self.folder), self._alone():
            return self._read_used()

    def has(self, hash: str) -> bool:  # noqa: A002
        return self._place(hash).is_file()

    def missing(self, hashes: Iterable[str]) -> list[str]:
        return [hash for hash in dict.fromkeys(hashes) if not self._touch(self._place(hash))]  # noqa: A001

    def nbytes(self, hash: str) -> int:  # noqa: A002
        try:
            return self._place(hash).stat().st_size
        except FileNotFoundError as error:
            raise unknown_artifact(hash) from error

    def put(self, data: bytes | bytearray | memoryview, *, hash: str | None = None, verify: bool = True) -> str:  # noqa: A002
        view = memoryview(data).cast("B")
        check_size(view.nbytes, self.max_artifact_bytes)
        promised = None if hash is None else check_hash(hash)
        digest = blake3_hex(view) if verify or promised is None else promised
        check_put(view, digest, promised)
        if not self._touch(self._place(digest)):
            arrival = PartialFile(self._part(), durable=self.durable)
            try:
                arrival.write(view)
                self._adopt(arrival, digest)
            finally:
                arrival.discard()
        return digest

    def writer(self, expected: str | None = None, nbytes: int | None = None) -> ArtifactWriter:
        return _DiskWriter(self, expected=expected, nbytes=nbytes)

    def read(self, hash: str) -> memoryview:  # noqa: A002
        nbytes = self.nbytes(hash)
        path = self._place(hash)
        self._touch(path)
        return read_file(path, nbytes, hash)

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        first, end = span_of(self.nbytes(hash), start, stop, size)
        path = self._place(hash)
        self._touch(path)
        return read_chunks(path, hash, first, end, size)

    def path(self, hash: str) -> Path | None:  # noqa: A002
        path = self._place(hash)
        if not self._touch(path):
            raise unknown_artifact(hash)
        return path

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        with self._pins_lock:
            fresh = set(map(check_hash, hashes)) - self._pins.get(owner, set())
            with using(self.folder), self._alone():
                for digest in fresh:
                    if not self._pin_counts[digest]:
                        self._folder_pins.add(digest)
            self._pins.setdefault(owner, set()).update(fresh)
            self._pin_counts.update(fresh)

    def unpin(self, owner: str) -> None:
        with self._pins_lock:
            for digest in self._pins.pop(owner, ()):
                self._pin_counts[digest] -= 1
                if not self._pin_counts[digest]:
                    del self._pin_counts[digest]
                    self._folder_pins.remove(digest)

    def _place(self, hash: str) -> Path:  # noqa: A002
        check_hash(hash)
        return self._objects / hash[:2] / hash[2:4] / hash

    def _part(self) -> Path:
        return self._incoming / f"{self._folder_pins.name}-{uuid.uuid4().hex}.part"

    def _alone(self) -> FileLock:
        return FileLock(self.folder / "lock")

    @staticmethod
    def _touch(path: Path) -> bool:
        """Note that the artifact was used, for eviction; False if it is not there."""
        now = time.time_ns()
        try:
            os.utime(path, ns=(now, now))
        except FileNotFoundError:
            return False
        except OSError:
            # another user's file on a shared folder: readable, its time not ours to set
            return path.is_file()
        return True

    def _read_id(self) -> str:
        path = self.folder / _ID_FILE
        if not path.exists():
            write_file(path, uuid.uuid4().hex.encode(), durable=True)
        return read_store_id(self.folder)

    def _remove_leftovers(self) -> None:
        """Remove what killed writers left."""
        for part in self._incoming.iterdir():
            if not self._folder_pins.is_alive(part.name.partition("-")[0]):
                part.unlink(missing_ok=True)

    def _adopt(self, arrival: PartialFile, digest: str) -> None:
        """Give a complete arrival its name."""
        target = self._place(digest)
        with using(self.folder):
            arrival.close()
            with self._alone():
                if self._touch(target):
                    return
                used = self._make_room(arrival.nbytes)
                known = target.parent.exists()
                target.parent.mkdir(parents=True, exist_ok=True)
                arrival.path.replace(target)
                self._touch(target)
                self._write_used(used + arrival.nbytes)
            if self.durable:
                # the file's name lies in its folder, and the name of a new folder in the folder above it
                for folder in (target.parent,) if known else (target.parent, target.parent.parent, self._objects):
                    sync_folder(folder)

    def _expect(self, nbytes: int) -> None:
        """Make room before the first byte comes."""
        with using(self.folder), self._alone():
            self._write_used(self._make_room(nbytes))

    def _make_room(self, nbytes: int) -> int:
        """Evict until ``nbytes`` more fit; gives the bytes in use."""
        used = self._read_used()
        if self.quota_bytes is None or used + nbytes <= self.quota_bytes:
            return used
        objects = sorted(self._scan(), key=lambda found: found.used_ns)
        used = sum(found.nbytes for found in objects)
        pinned = self._folder_pins.pinned()
        free = [found for found in objects if found.path.name not in pinned]
        kept = used - sum(found.nbytes for found in free)
        if kept + nbytes > self.quota_bytes:
            raise over_quota(nbytes, self.quota_bytes, kept, len(objects) - len(free))
        # a little more at once where there are many, so that not every arrival looks through the folder
        goal = self.quota_bytes - nbytes - (min(self.quota_bytes // 16, self.quota_bytes - nbytes - kept) if len(objects) > _MANY else 0)
        for found in free:
            if used <= goal:
                break
            # Windows keeps a file while somebody maps it; the next one goes instead
            with contextlib.suppress(PermissionError):
                found.path.unlink(missing_ok=True)
                used -= found.nbytes
        if used + nbytes > self.quota_bytes:
            raise over_quota(nbytes, self.quota_bytes, used, len(objects))
        return used

    def _scan(self) -> Iterator[_Object]:
        for first in os.scandir(self._objects):
            for second in os.scandir(first.path):
                for entry in os.scandir(second.path):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        yield _Object(Path(entry.path), stat.st_size, stat.st_mtime_ns)

    def _read_used(self) -> int:
        """Bytes in use as last written down; counted anew if a process died while writing."""
        try:
            return int((self.folder / "used").read_bytes())
        except (FileNotFoundError, ValueError):
            return sum(found.nbytes for found in self._scan())

    def _write_used(self, nbytes: int) -> None:
        path = self.folder / "used"
        try:
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(b"%020d" % nbytes)
        except OSError:
            # the disk is full: whoever needs the number next counts
            path.unlink(missing_ok=True)


def read_store_id(folder: Path) -> str:
    """The id of the store on ``folder``. Raises OSError if there is none, `StorageFailed` if its file holds something else."""
    path = folder / _ID_FILE
    text = path.read_text(encoding="utf-8", errors="replace")
    if not _STORE_ID.fullmatch(text):
        raise StorageFailed(
            f"{str(path)!r} holds {text[:40]!r} and no store id of 32 hex digits; delete that file, or choose another folder",
            path=str(path),
        )
    return text


class _DiskWriter(ArtifactWriter):
    def __init__(self, store: DiskStore, *, expected: str | None, nbytes: int | None) -> None:
        super().__init__(expected=expected, nbytes=nbytes, limit=store.max_artifact_bytes)
        if nbytes is not None and not (expected is not None and store.has(expected)):
            store._expect(nbytes)
        self._store = store
        self._arrival = PartialFile(store._part(), durable=store.durable)

    def _append(self, chunk: memoryview) -> None:
        self._arrival.write(chunk)

    def _keep(self, digest: str) -> None:
        self._store._adopt(self._arrival, digest)
        self._arrival.discard()

    def _discard(self) -> None:
        self._arrival.discard()


GRACE_S = 600.0
"""Seconds that the pins of a process outlive it, so that one that was killed can come back and pin again."""

_LOCK = "lock"
_LEFT = "left"


class PinFolder:
    """The pins of one open store, and a view of those of all others on the same ``folder``.

    An open store holds a lock while it lives, so a dead one is known without clocks or process ids. Everything here but `remove` and
    `close` is called under the lock of the store's folder. Raises OSError as the file system does.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        self._own = folder / self.name
        self._own.mkdir(parents=True)
        self._life = FileLock(self._own / _LOCK)
        self._life.acquire()

    def add(self, digest: str) -> None:
        """Pin ``digest``."""
        (self._own / digest).touch()

    def remove(self, digest: str) -> None:
        """Unpin ``digest``."""
        with contextlib.suppress(OSError):
            (self._own / digest).unlink(missing_ok=True)

    def close(self) -> None:
        """End; pins that are left hold for `GRACE_S` more."""
        self._life.release()
        with contextlib.suppress(OSError):
            if {path.name for path in self._own.iterdir()} == {_LOCK}:
                shutil.rmtree(self._own)

    def is_alive(self, name: str) -> bool:
        """Whether the store that called itself ``name`` is open."""
        if name == self.name:
            return True
        path = self._folder / name / _LOCK
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
        """Every pinned hash; forgets processes that died longer than `GRACE_S` ago."""
        hashes: set[str] = set()
        for place in self._folder.iterdir():
            try:
                names = {path.name for path in place.iterdir()}
            except FileNotFoundError:
                continue
            pins = names - {_LOCK, _LEFT}
            if not self.is_alive(place.name) and (not pins or self._is_over(place, known=_LEFT in names)):
                shutil.rmtree(place, ignore_errors=True)
            else:
                hashes |= pins
        return hashes

    @staticmethod
    def _is_over(place: Path, *, known: bool) -> bool:
        left = place / _LEFT
        if not known:
            left.touch()
        return time.time() - left.stat().st_mtime > GRACE_S
