"""The cache of model files: files named by their sha256, the hashes that are known, and links from a folder of models.

Several processes and machines may share a cache. A file appears under its name complete or not at all, by a link that fails if the name
exists. Links to cached files are relative, so that they are valid wherever the volume is mounted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yggdrasill.errors import StorageFailed
from yggdrasill.values.files import FileLock, failing, link_or_copy, write_file
from yggdrasill.version_specs.places import volume_path

__all__ = ["HashMemory", "LinkRefused", "ModelCache", "Part", "sha256_of"]

_READ_BYTES = 4 << 20
_OLD_PART_S = 86400.0
_MAX_HASHES = 100_000
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""
Stamp = tuple[int, int, int]


def sha256_of(path: Path, report: Callable[[int], object] = lambda nbytes: None) -> str:
    """Return the sha256 of a file in hex. ``report`` is called with the number of bytes of every piece that was read.

    Raises:
        OSError
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            report(count)
    return digest.hexdigest()


class HashMemory:
    """Sha256 of files, each valid while size, modification time and inode of its file are unchanged; kept in a JSON file.

    Processes may share the file. One that writes at the same time as another may lose entries, and those files are hashed again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def known(self, path: Path) -> str | None:
        """Return the sha256 of a file if it is known, without reading the file."""
        stamp = _stamp(path)
        entry = self._known.get(_key(path))
        return entry[3] if entry is not None and stamp is not None and tuple(entry[:3]) == stamp else None

    def hash(self, path: Path, report: Callable[[int], object] = lambda nbytes: None) -> str:
        """Return the sha256 of a file, read only if it is not known.

        Raises:
            OSError
        """
        found = self.known(path)
        if found is None:
            before = _stamp(path)
            found = sha256_of(path, report)
            if before == _stamp(path):
                self.remember(path, found)
        return found

    def remember(self, path: Path, digest: str) -> None:
        """Note the sha256 of a file that was hashed while it was written."""
        stamp = _stamp(path)
        if stamp is not None:
            with self._lock:
                self._known[_key(path)] = self._new[_key(path)] = [*stamp, digest]

    def forget(self, path: Path) -> None:
        """Drop the sha256 of a file."""
        with self._lock:
            self._known.pop(_key(path), None)
            self._new.pop(_key(path), None)

    def reload(self) -> None:
        """Read the file again, for hashes that other processes have added."""
        with self._lock:
            self._known = {**self._known, **self._read(), **self._new}

    def save(self) -> None:
        """Add the new hashes to the file. A file that cannot be written only costs time, so this is not an error."""
        with self._lock:
            if not self._new:
                return
            merged = {**self._read(), **self._new}
            kept = dict(list(merged.items())[-_MAX_HASHES:])
            with contextlib.suppress(StorageFailed):
                write_file(self._file, json.dumps(kept, separators=(",", ":")).encode("utf-8", "surrogatepass"))
                self._new.clear()

    def _read(self) -> dict[str, list[Any]]:
        try:
            document = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        entries = document.items() if isinstance(document, dict) else ()
        return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 4 and isinstance(entry[3], str)}


class LinkRefused(Exception):
    """A place in a folder of models at which a link cannot be made; the text is the reason."""


class ModelCache:
    """The folder ``models`` in the root of a cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "models"
        self.hashes = HashMemory(root / "hashes.json")

    def path(self, sha256: str) -> Path:
        """Return the path of the file with this hash."""
        return self.folder / sha256

    def check(self, sha256: str, report: Callable[[int], object] = lambda nbytes: None) -> bool | None:
        """Return whether the cached file has its hash, None if it is not cached. The file is read unless its hash is known."""
        path = self.path(sha256)
        try:
            return self.hashes.hash(path, report) == sha256
        except OSError:
            return None

    def remove(self, sha256: str) -> None:
        """Remove a file, such as a damaged one.

        Raises:
            StorageFailed
        """
        with failing(self.path(sha256)):
            self.hashes.forget(self.path(sha256))
            self.path(sha256).unlink(missing_ok=True)

    def open_part(self, name: str) -> Part | None:
        """Return the unfinished file of a download, locked, with what an earlier process left; None if another process is writing it.

        Raises:
            StorageFailed
        """
        path = self.folder / f"{name}.part"
        with failing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                return Part.lock(path)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return self.own_part(name)

    def own_part(self, name: str) -> Part:
        """Return an empty unfinished file for this process alone, beside the one that another process is writing.

        Raises:
            StorageFailed
        """
        path = self.folder / f"{name}.{uuid.uuid4().hex[:8]}.part"
        with failing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            return Part(path, None)

    def part_size(self, name: str) -> int | None:
        """Return the size of the unfinished file that a process is writing, None if it does not exist."""
        try:
            return (self.folder / f"{name}.part").stat().st_size
        except OSError:
            return None

    def remove_old_parts(self) -> None:
        """Remove unfinished files of processes that ended more than a day ago."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.part"):
                if time.time() - path.stat().st_mtime > _OLD_PART_S:
                    path.unlink()

    def link(self, sha256: str, models: Path, target: str) -> None:
        """Link ``target``, a path below the folder ``models``, to the cached file. A link at the target is replaced, a file is not.

        Raises:
            LinkRefused: a folder on the way is a file or leads outside ``models``, or another file has the name.
            StorageFailed
        """
        path, source = models / target, self.path(sha256)
        self.check_place(models, target)
        with failing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() and os.path.realpath(path) == os.path.realpath(source):
                return
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                _link(source, temporary)
                if path.is_symlink() or not path.exists():
                    temporary.replace(path)
                else:
                    raise LinkRefused("another file has this name; remove or rename it")
            finally:
                temporary.unlink(missing_ok=True)

    def check_place(self, models: Path, target: str) -> None:
        """Raise `LinkRefused` unless ``target`` can be made below ``models`` without following a link out of it."""
        folder = models
        for part in Path(target).parts[:-1]:
            if folder.exists() and not folder.is_dir():
                break
            folder /= part
        if folder.exists() and not folder.is_dir():
            raise LinkRefused(f"{str(folder)!r} is a file, not a folder; remove or rename it")
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(models)):
            raise LinkRefused(f"{str(folder)!r} leads outside {str(models)!r}; replace the link by a folder")
        if (models / target).is_dir():
            raise LinkRefused(f"{str(models / target)!r} is a folder; remove or rename it")


class Part:
    """The unfinished file of a download. `close` keeps it for a later process, `discard` removes it, `commit` gives it its name."""

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path = path
        self._lock = lock
        self.file = path.open("ab+", buffering=0)
        self.size = os.fstat(self.file.fileno()).st_size

    @classmethod
    def lock(cls, path: Path) -> Part | None:
        """Return the part at ``path``, locked; None if another process has locked it.

        Raises:
            OSError
        """
        while True:
            lock = FileLock(path)
            if not lock.acquire(wait=False):
                return None
            part = cls(path, lock)
            # the process that had the lock may have renamed or removed the file in between
            with contextlib.suppress(OSError):
                if path.stat().st_ino == os.fstat(part.file.fileno()).st_ino:
                    return part
            part.close()

    def restart(self) -> None:
        """Drop what was received."""
        self.file.truncate(0)
        self.size = 0

    def commit(self, cache: ModelCache, sha256: str) -> None:
        """Flush the file and give it its name in the cache; it stays unnamed if another process was faster.

        Raises:
            StorageFailed
        """
        target = cache.path(sha256)
        with failing(target):
            os.fsync(self.file.fileno())
            self.path.chmod(0o444)
            try:
                os.link(self.path, target)
            except FileExistsError:
                pass
            except OSError:  # a file system without links: files of one name are equal, so replacing one changes nothing
                self.path.replace(target)
            self.path.unlink(missing_ok=True)
            cache.hashes.remember(target, sha256)
        self.close()

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the file; it stays as it is."""
        self.file.close()
        if self._lock is not None:
            self._lock.release()


def _link(source: Path, path: Path) -> None:
    """Make ``path`` a relative symbolic link to ``source``, or a second name or copy of it where such links are not possible."""
    try:
        path.symlink_to(os.path.relpath(os.path.realpath(source), os.path.realpath(path.parent)))
    except (OSError, NotImplementedError):
        link_or_copy(source, path)


def _key(path: Path) -> str:
    return volume_path(path.absolute())


def _stamp(path: Path) -> Stamp | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
