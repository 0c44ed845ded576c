"""Sources of saves, a folder or an archive of the same tree, and the writing of archives.

Archives are read by name and never unpacked, so a name in one cannot leave it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, BinaryIO, Protocol, cast

from yggdrasill.errors import InvalidArgument, InvalidCheckpoint, MissingFile, StorageFailed
from yggdrasill.values.files import replacing
from yggdrasill.values.folders import recover_folder

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BLOBS", "ArchiveSource", "Content", "FolderSource", "Source", "open_source", "write_archive"]

#: The folder of a save's weights files.
BLOBS = "checkpoints/blobs"
_ZIP64 = 1 << 31

_TAR = (".tar", ".tar.gz", ".tgz")
#: What the standard library raises over archives that are cut, altered or of an unknown kind.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class Source(ABC):
    """The files of a save by relative name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, None if no file has that name."""

    @abstractmethod
    def find_blob(self, folder: str, name: str) -> Path | BinaryIO | None:
        """Return the weights file ``name`` of the save that ``folder`` belongs to: a path, or an open file in an archive."""

    def close(self) -> None:  # noqa: B027 - a folder has nothing to close
        """Release what is open."""

    def describe(self, name: str) -> str:
        """``name`` with where it is, for messages."""
        return repr(str(self.path / name if name else self.path))


class FolderSource(Source):
    """A save in a folder."""

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"cannot read {self.describe(name)}: {error.strerror or error}", path=str(self.path / name)) from error

    def find_blob(self, folder: str, name: str) -> Path | None:
        """Return the path of a weights file of this save, or of the one that this folder is a part of."""
        place = (self.path / folder).absolute()
        while True:
            found = place / BLOBS / name
            if found.is_file():
                return found
            if place.parent.name != "checkpoints":
                return None
            place = place.parent.parent


class ArchiveSource(Source):
    """A save in a zip or tar file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip: zipfile.ZipFile | None = None
        self._tar: tarfile.TarFile | None = None
        try:
            if zipfile.is_zipfile(path):
                self._zip = zipfile.ZipFile(path)
                self._names = set(self._zip.namelist())
            else:
                self._tar = tarfile.open(path)  # noqa: SIM115 - closed by close()
                self._names = set(self._tar.getnames())
                _check_end(self._tar)
        except _DAMAGE as error:
            self.close()
            raise InvalidCheckpoint(
                f"{str(path)!r} is not a readable archive: {error}; it must be a zip or tar that save() wrote"
            ) from error

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None."""
        file = self._open(name)
        if file is None:
            return None
        with file:
            return file.read()

    def find_blob(self, folder: str, name: str) -> BinaryIO | None:
        """Return an open weights file; an archive has all of them in one folder."""
        return self._open(f"{BLOBS}/{name}")

    def _open(self, name: str) -> BinaryIO | None:
        if name not in self._names:
            return None
        with self._damage(name):
            file = self._zip.open(name) if self._zip is not None else cast("tarfile.TarFile", self._tar).extractfile(name)
            return None if file is None else cast("BinaryIO", _Member(file, lambda: self._damage(name)))

    @contextlib.contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise InvalidCheckpoint(f"{self.describe(name)} cannot be read: {error}; the archive is damaged") from error

    def close(self) -> None:
        """Close the file."""
        for file in (self._zip, self._tar):
            if file is not None:
                file.close()


def open_source(path: str | Path) -> Source:
    """Open the save at ``path``, after finishing or undoing what a killed save left beside it.

    Raises:
        MissingFile: the path does not exist.
        InvalidCheckpoint: a file that is not an archive.
    """
    target = Path(path)
    recover_folder(target)
    if target.is_dir():
        return FolderSource(target)
    if target.is_file():
        return ArchiveSource(target)
    raise MissingFile(f"no save at {str(path)!r}; it must be a folder or an archive that save() wrote", path=str(path))


class Content(Protocol):
    """The bytes of a file in chunks, with their number."""

    nbytes: int

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


def write_archive(path: str | Path, files: Iterable[tuple[str, bytes | Content]]) -> None:
    """Write (name, content) pairs as a ``.zip`` (stored) or ``.tar[.gz]``; equal files give equal bytes.

    Raises:
        InvalidArgument: another ending. StorageFailed: an older archive is unchanged.
    """
    name = Path(path).name.lower()
    if not name.endswith((".zip", *_TAR)):
        raise InvalidArgument(f"an archive's name ends in .zip, .tar or .tar.gz, got {str(path)!r}")
    with replacing(path) as file:
        if name.endswith(".zip"):
            with zipfile.ZipFile(file, "w") as archive:
                for member, content in files:
                    with archive.open(zipfile.ZipInfo(member), "w", force_zip64=_size(content) >= _ZIP64) as target:
                        for chunk in (content,) if isinstance(content, bytes) else content:
                            target.write(chunk)
        elif name.endswith(".tar"):
            _write_tar(file, files)
        else:
            with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                _write_tar(packed, files)


def _check_end(tar: tarfile.TarFile) -> None:
    """A tar ends in empty blocks; `tarfile` takes one that was cut in a header for a shorter one."""
    file = cast(IO[bytes], tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")


def _write_tar(target: BinaryIO | gzip.GzipFile, files: Iterable[tuple[str, bytes | Content]]) -> None:
    with tarfile.open(fileobj=target, mode="w") as tar:
        for member, content in files:
            info = tarfile.TarInfo(member)
            info.size = _size(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else cast("IO[bytes]", _Reader(iter(content))))


def _size(content: bytes | Content) -> int:
    return len(content) if isinstance(content, bytes) else content.nbytes


class _Reader:
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, nbytes: int) -> bytes:
        """Return the next ``nbytes`` bytes, fewer at the end."""
        parts = []
        while nbytes:
            if not len(self._rest):
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._rest = memoryview(chunk)
                continue
            parts.append(self._rest[:nbytes])
            self._rest = self._rest[nbytes:]
            nbytes -= len(parts[-1])
        return b"".join(parts)


class _Member:
    """An open file of an archive whose damage is reported as such."""

    def __init__(self, file: IO[bytes], damage: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._damage = damage

    def read(self, nbytes: int = -1) -> bytes:
        """Return the next bytes."""
        with self._damage():
            return self._file.read(nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
