"""Where a save is read from, a folder or an archive of the same tree, and the writing of archives.

Archives are read by name and never unpacked, so a name in one cannot leave it.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, cast

from yggdrasill.errors import InvalidArgument, InvalidCheckpoint, MissingFile, StorageFailed
from yggdrasill.values.files import write_file

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ArchiveSource", "FolderSource", "Source", "open_source", "write_archive"]

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
        """The bytes of a file, or None if there is none of that name."""

    def close(self) -> None:  # noqa: B027 - a folder has nothing to close
        """Release what is open."""

    def describe(self, name: str) -> str:
        """``name`` with where it is, for messages."""
        return repr(str(self.path / name if name else self.path))


class FolderSource(Source):
    """A save in a folder."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"cannot read {self.describe(name)}: {error.strerror or error}", path=str(self.path / name)) from error


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
            raise InvalidCheckpoint(f"{str(path)!r} is no readable archive: {error}; it must be a zip or tar that save() wrote") from error

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None."""
        if name not in self._names:
            return None
        try:
            if self._zip is not None:
                return self._zip.read(name)
            member = self._tar.extractfile(name) if self._tar is not None else None
            return None if member is None else member.read()
        except _DAMAGE as error:
            raise InvalidCheckpoint(f"{self.describe(name)} cannot be read: {error}; the archive is damaged") from error

    def close(self) -> None:
        """Close the file."""
        for file in (self._zip, self._tar):
            if file is not None:
                file.close()


def open_source(path: str | Path) -> Source:
    """The save at ``path``.

    Raises:
        MissingFile: nothing is there.
        InvalidCheckpoint: a file that is no archive.
    """
    target = Path(path)
    if target.is_dir():
        return FolderSource(target)
    if target.is_file():
        return ArchiveSource(target)
    raise MissingFile(f"there is no save at {str(path)!r}; it must be a folder or an archive that save() wrote", path=str(path))


def write_archive(path: str | Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, bytes) pairs as a ``.zip`` (stored) or ``.tar[.gz]``, the same bytes for the same files."""
    name = Path(path).name.lower()
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, data in files:
                archive.writestr(zipfile.ZipInfo(member), data)
    elif name.endswith(_TAR):
        if name.endswith(".tar"):
            _write_tar(buffer, files)
        else:
            with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as packed:
                _write_tar(packed, files)
    else:
        raise InvalidArgument(f"an archive's name ends in .zip, .tar or .tar.gz, got {str(path)!r}")
    write_file(path, buffer.getbuffer())


def _check_end(tar: tarfile.TarFile) -> None:
    """A tar ends in empty blocks; `tarfile` takes one that was cut in a header for a shorter one."""
    file = cast(IO[bytes], tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")


def _write_tar(target: IO[bytes] | gzip.GzipFile, files: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(fileobj=target, mode="w") as tar:
        for member, data in files:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
