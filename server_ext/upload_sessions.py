"""Upload sessions: artifacts that arrive in pieces, resumed at the byte after a broken connection or a restart of the endpoint."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yggdrasill.errors import CorruptData, InvalidArgument, PayloadTooLarge, StorageFailed, UploadConflict
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import Data, Reservation, StagingStore, Writer, check_hash, hashing
from yggdrasill.values.stores.disk_files import hash_file, storage_errors
from yggdrasill.values.stores.folder import FolderStore

if TYPE_CHECKING:
    from blake3 import blake3

__all__ = ["EXPIRE_SECONDS", "MAX_PIECE_BYTES", "Piece", "UploadSessions"]

MAX_PIECE_BYTES = 64 << 20
"""The size limit of one piece."""
EXPIRE_SECONDS = 3600.0
"""Seconds without a byte after which a session is dropped."""

_LOG = logging.getLogger("yggdrasill.server")
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"([0-9a-f]{64})-([0-9a-f]{32})-([0-9]{1,18})-([0-9a-f]{16})\.part")
_EXPIRE_INTERVAL = 60.0


@dataclass
class _Session:
    """A session: its partial file has the bytes so far. ``hasher`` has hashed ``hashed`` bytes; it is None after a restart."""

    path: Path
    total: int
    reservation: Reservation
    last_byte: float
    hasher: blake3 | None = None
    hashed: int = 0
    piece: Piece | None = None

    @property
    def offset(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


class UploadSessions:
    """The upload sessions of one endpoint. Methods block and are safe to call from several threads.

    A session belongs to the principal that began it, the hash, and an id chosen by the caller. Its whole size counts against the quota
    from its first byte on. The state of a session is its partial file, so that it survives a restart of the endpoint.
    """

    def __init__(self, store: StagingStore) -> None:
        self._store = store
        if isinstance(store, FolderStore):
            self._folder = store.folder / "uploads"
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="yggdrasill-uploads-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._expired_at = time.monotonic()
        with storage_errors(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for path in list(self._folder.iterdir()):
                self._resume(path)

    def status(self, principal: str, name: str, upload_id: str) -> tuple[int, int | None, bool]:
        """Return the offset and the total size of a session, and whether the artifact is stored; an unknown session has offset 0."""
        key = _key(principal, name, upload_id)
        if not self._store.missing([name]):
            nbytes = self._store.nbytes(name)
            return nbytes, nbytes, True
        with self._lock:
            session = self._sessions.get(key)
            return (0, None, False) if session is None else (session.offset, session.total, False)

    def is_open(self, principal: str, name: str, upload_id: str) -> bool:
        """Return whether a session is unfinished."""
        with self._lock:
            return _key(principal, name, upload_id) in self._sessions

    def begin(self, principal: str, name: str, upload_id: str, start: int, stop: int, total: int) -> Piece | None:
        """Begin to receive the bytes from ``start`` to ``stop`` of ``total``. Return None if the artifact is stored already.

        A piece of the session that is still being received ends: its connection was lost.

        Raises:
            UploadConflict: the session continues at another byte. PayloadTooLarge, StorageFailed: it is too large for the store.
        """
        key = _key(principal, name, upload_id)
        self.expire()
        if not self._store.missing([name]):
            self.drop(principal, name, upload_id)
            return None
        if total > self._store.max_artifact_bytes:
            raise PayloadTooLarge(
                f"The artifact has {total} bytes; this endpoint accepts at most {self._store.max_artifact_bytes}.",
                bound=self._store.max_artifact_bytes,
                found=total,
            )
        with self._lock:
            session = self._sessions.get(key)
            if session is not None and session.total != total:
                raise InvalidArgument(f"This upload has {session.total} bytes, the piece says {total}. Begin another upload.")
            if session is None:
                if start:
                    raise _conflict(0)
                path = self._folder / _file_name(key, total)
                session = _Session(path, total, self._store.reserve(total), time.monotonic(), _new_hasher())
                self._sessions[key] = session
            if session.piece is not None:
                session.piece.close()
            if session.offset != start:
                raise _conflict(session.offset)
            try:
                session.piece = Piece(self, key, session, stop)
            except BaseException:
                self._drop(key)
                raise
            return session.piece

    def drop(self, principal: str, name: str, upload_id: str) -> None:
        """Drop a session and its bytes; does nothing if it is unknown."""
        with self._lock:
            self._drop(_key(principal, name, upload_id))

    def expire(self) -> None:
        """Drop the sessions that received nothing for `EXPIRE_SECONDS`; looks at most once a minute."""
        now = time.monotonic()
        with self._lock:
            if now - self._expired_at < min(_EXPIRE_INTERVAL, EXPIRE_SECONDS):
                return
            self._expired_at = now
            for key in [key for key, session in self._sessions.items() if now - session.last_byte > EXPIRE_SECONDS]:
                self._drop(key)

    def _drop(self, key: str) -> None:
        session = self._sessions.pop(key, None)
        if session is None:
            return
        if session.piece is not None:
            session.piece.close()
        session.reservation.release()
        with contextlib.suppress(OSError):
            session.path.unlink(missing_ok=True)

    def _resume(self, path: Path) -> None:
        """Take over the session of an earlier process, or remove its file."""
        found = _FILE.fullmatch(path.name)
        try:
            age = time.time() - path.stat().st_mtime
            if found is None or age > EXPIRE_SECONDS:
                path.unlink(missing_ok=True)
                return
            name, upload_id, total, principal = found.groups()
            reservation = self._store.reserve(int(total))
        except FileNotFoundError:
            return
        except StorageFailed as error:
            _LOG.warning("An unfinished upload of artifact %s is dropped: %s", path.name[:64], error)
            path.unlink(missing_ok=True)
            return
        self._sessions[f"{principal}:{name}:{upload_id}"] = _Session(path, int(total), reservation, time.monotonic() - max(0.0, age))

    def _finish(self, key: str, session: _Session, writer: Writer) -> bool:
        """Store the artifact if all its bytes have arrived; return whether it is stored."""
        if session.offset != session.total:
            return False
        name = key.split(":")[1]
        with storage_errors(session.path):
            whole = session.hasher is not None and session.hashed == session.total
            digest = session.hasher.hexdigest() if whole and session.hasher is not None else hash_file(session.path)
        if digest != name:
            with self._lock:
                self._drop(key)
            raise CorruptData(
                f"The bytes of upload {key.split(':')[2]} have BLAKE3 {digest}, not {name}. Send the artifact again.", hash=name
            )
        self._store.adopt(session.path, name, session.reservation, writer)
        with self._lock:
            self._drop(key)
        return True


class Piece:
    """One piece of a session that is being received: ``write`` chunks, then `end`, or `close` after a failure."""

    def __init__(self, sessions: UploadSessions, key: str, session: _Session, stop: int) -> None:
        self._sessions, self._key, self._session = sessions, key, session
        self._lock = threading.Lock()
        self._at, self._stop = session.offset, stop
        with storage_errors(session.path):
            self._file = session.path.open("ab", buffering=0)

    def write(self, chunk: Data) -> None:
        """Append ``chunk``.

        Raises:
            UploadConflict: another connection continues this session. CorruptData: more bytes than announced. StorageFailed
        """
        view = memoryview(chunk).cast("B")
        session = self._session
        with self._lock:
            if self._file.closed:
                raise _conflict(session.offset)
            if self._at + view.nbytes > self._stop:
                raise CorruptData("The piece has more bytes than its Content-Range. Send it again.", hash=self._key.split(":")[1])
            hasher, session.hasher = session.hasher, None
            if hasher is not None and session.hashed == self._at:
                with hashing(hasher, view):
                    self._append(view)
                session.hasher, session.hashed = hasher, session.hashed + view.nbytes
            else:
                self._append(view)
            session.last_byte = time.monotonic()

    def _append(self, view: memoryview) -> None:
        with storage_errors(self._session.path):
            while view.nbytes:
                written = self._file.write(view)
                self._at += written
                view = view[written:]

    def end(self, writer: Writer) -> tuple[int, bool]:
        """End the piece and return the offset of the session and whether the artifact is stored, which it is after its last byte.

        Raises:
            CorruptData: all bytes arrived, and they are not those of the hash; the session is dropped. StorageFailed
        """
        with self._lock:
            if self._file.closed:
                raise _conflict(self._session.offset)
        self.close()
        stored = self._sessions._finish(self._key, self._session, writer)
        return (self._session.total if stored else self._session.offset), stored

    def close(self) -> None:
        """End the piece; the bytes that were written count."""
        with self._lock:
            if not self._file.closed:
                self._file.close()
                if self._session.piece is self:
                    self._session.piece = None


def _conflict(offset: int) -> UploadConflict:
    return UploadConflict(f"The upload continues at byte {offset}. Send the piece that begins there.", offset=offset)


def _new_hasher() -> blake3:
    from blake3 import blake3

    return blake3()


def _key(principal: str, name: str, upload_id: str) -> str:
    """Return the key of a session. Raise `InvalidArgument` for an invalid hash or id."""
    check_hash(name)
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise InvalidArgument(f"Invalid upload id {upload_id[:80]!r}. Expected 32 lower-case hex digits.")
    return f"{blake3_hex(memoryview(principal.encode('utf-8', 'surrogatepass')))[:16]}:{name}:{upload_id}"


def _file_name(key: str, total: int) -> str:
    principal, name, upload_id = key.split(":")
    return f"{name}-{upload_id}-{total}-{principal}.part"
