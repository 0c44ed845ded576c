"""The bytes of artifacts that principals with a quota wrote. They count until the store has evicted the artifacts.

Only principals with a quota are tracked, in ``quotas.sqlite`` in the data folder.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

from yggdrasill.errors import InvalidArgument, StorageFailed
from yggdrasill.server_ext.principals import Principal
from yggdrasill.server_ext.upload_sessions import EXPIRE_SECONDS
from yggdrasill.values.stores.base import LocalStore
from yggdrasill.values.stores.folder import FILE_CHARGE
from yggdrasill.values.stores.threaded import ThreadedStore

__all__ = ["WriteQuotas", "Written"]

_LOCK_SECONDS = 10.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS written (principal TEXT NOT NULL, hash TEXT NOT NULL, nbytes INTEGER NOT NULL, PRIMARY KEY (principal, hash)) "
    "WITHOUT ROWID"
)

_Result = TypeVar("_Result")
Written = Callable[[str, int], None]
"""Receives the hash and the bytes of an artifact that was stored."""


class WriteQuotas:
    """Bounds the artifacts in ``store`` that principals wrote. ``path`` is the file; it is created when a principal with a quota writes.

    Not thread-safe: all calls happen on one event loop.
    """

    def __init__(self, path: Path, store: LocalStore) -> None:
        self._path, self._store = path, ThreadedStore(store)
        self._thread = ThreadPoolExecutor(1, "yggdrasill-quotas")
        self._written: dict[str, dict[str, int]] = {}
        self._reserved: Counter[str] = Counter()
        #: The size of each upload session, and the time of its last piece (monotonic seconds), by principal, hash and id.
        self._uploads: dict[tuple[str, str, str], tuple[int, float]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def writing(self, principal: Principal, nbytes: int | None, name: str | None = None) -> AsyncIterator[Written]:
        """Reserve ``nbytes`` of the principal's quota for the block, which receives a function to report what was stored.

        Nothing is reserved for an artifact ``name`` that the store already has.

        Raises:
            StorageFailed: the quota would be exceeded. InvalidArgument: there is a quota, and the length is unknown.
        """
        if principal.quota_bytes is None:
            yield _ignore
            return
        if nbytes is None:
            raise InvalidArgument("Send the body with a Content-Length: it counts against the quota of your token.")
        if name is not None and not await self._store.missing([name]):
            nbytes = 0
        await self._reserve(principal.name, principal.quota_bytes, nbytes)
        stored: dict[str, int] = {}
        try:
            yield lambda found, size: stored.update({found: max(size, FILE_CHARGE)})
        finally:
            self._reserved[principal.name] -= nbytes
            await self._add(principal.name, stored)

    @asynccontextmanager
    async def uploading(
        self, principal: Principal, total: int, name: str, upload_id: str, is_open: Callable[[], bool]
    ) -> AsyncIterator[Written]:
        """Reserve ``total`` bytes from the first piece of an upload session on, as `writing`, for a block that receives one piece.

        They stay reserved while ``is_open()`` returns True after the block, and until the session expires.

        Raises:
            StorageFailed: the quota would be exceeded.
        """
        if principal.quota_bytes is None:
            yield _ignore
            return
        self._end_expired(principal.name)
        key = principal.name, name, upload_id
        if key not in self._uploads and await self._store.missing([name]):
            await self._reserve(principal.name, principal.quota_bytes, total)
            # another piece of the session may have reserved it at the same time
            self.end_upload(*key)
            self._uploads[key] = total, time.monotonic()
        stored: dict[str, int] = {}
        try:
            yield lambda found, size: stored.update({found: max(size, FILE_CHARGE)})
        finally:
            if not is_open():
                self.end_upload(*key)
            elif key in self._uploads:
                self._uploads[key] = self._uploads[key][0], time.monotonic()
            await self._add(principal.name, stored)

    def end_upload(self, principal: str, name: str, upload_id: str) -> None:
        """Release the reservation of an upload session, if it has one."""
        nbytes, _ = self._uploads.pop((principal, name, upload_id), (0, 0.0))
        self._reserved[principal] -= nbytes

    def _end_expired(self, principal: str) -> None:
        before = time.monotonic() - EXPIRE_SECONDS
        for key in [key for key, (_, last) in self._uploads.items() if key[0] == principal and last < before]:
            self.end_upload(*key)

    async def _reserve(self, name: str, quota: int, nbytes: int) -> None:
        async with self._locks[name]:
            await self._check(name, quota, nbytes)
            self._reserved[name] += nbytes

    async def _add(self, name: str, stored: dict[str, int]) -> None:
        """Record what a principal stored."""
        if stored:
            self._written[name] |= stored
            await self._run(lambda: self._insert(name, stored))

    async def used(self, name: str) -> int:
        """Return the bytes that count against the quota of a principal, with those that are being written."""
        if name not in self._written:
            self._written[name] = await self._run(lambda: self._read(name))
        return sum(self._written[name].values()) + self._reserved[name]

    async def _check(self, name: str, quota: int, nbytes: int) -> None:
        if await self.used(name) + nbytes <= quota:
            return
        known = self._written[name]
        missing = await self._store.missing(known)
        if missing:
            for evicted in missing:
                known.pop(evicted, None)
            await self._run(lambda: self._delete(name, missing))
        used = await self.used(name)
        if used + nbytes > quota:
            raise StorageFailed(
                f"The artifacts that {name!r} wrote have {used} bytes; with {nbytes} more they would exceed the quota of {quota} bytes. "
                "Ask the endpoint's owner for a larger quota, or wait until older artifacts are evicted.",
                reason="quota",
                used=used,
                quota=quota,
            )

    def close(self) -> None:
        """End the thread that reads and writes the file."""
        self._thread.shutdown()

    async def _run(self, act: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def _open(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self._path, timeout=_LOCK_SECONDS)
            db.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise StorageFailed(f"Cannot open {str(self._path)!r}: {error}. Delete it to count from 0.", path=str(self._path)) from error
        return db

    def _read(self, name: str) -> dict[str, int]:
        with closing(self._open()) as db:
            return dict(db.execute("SELECT hash, nbytes FROM written WHERE principal = ?", (name,)).fetchall())

    def _insert(self, name: str, stored: dict[str, int]) -> None:
        with closing(self._open()) as db, db:
            db.executemany("INSERT OR REPLACE INTO written VALUES (?, ?, ?)", [(name, found, size) for found, size in stored.items()])

    def _delete(self, name: str, evicted: list[str]) -> None:
        with closing(self._open()) as db, db:
            db.executemany("DELETE FROM written WHERE principal = ? AND hash = ?", [(name, found) for found in evicted])


def _ignore(name: str, nbytes: int) -> None:
    """Receive what a principal without a quota stored."""
