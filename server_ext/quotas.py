"""The bytes of artifacts that principals with a quota wrote. They count until the store has evicted the artifacts.

Only principals with a quota are tracked, in ``quotas.sqlite`` in the data folder.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

from yggdrasill.errors import InvalidArgument, StorageFailed
from yggdrasill.server_ext.artifacts import in_store_thread
from yggdrasill.server_ext.principals import Principal
from yggdrasill.values.stores.base import ArtifactStore, check_hash
from yggdrasill.values.stores.disk import FILE_CHARGE

__all__ = ["WriteQuotas"]

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

    def __init__(self, path: Path, store: ArtifactStore) -> None:
        self._path, self._store = path, store
        self._thread = ThreadPoolExecutor(1, "yggdrasill-quotas")
        self._written: dict[str, dict[str, int]] = {}
        self._reserved: Counter[str] = Counter()
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
        if name is not None and await in_store_thread(lambda: self._store.has(check_hash(name))):
            nbytes = 0
        stored: dict[str, int] = {}
        async with self._locks[principal.name]:
            await self._check(principal.name, principal.quota_bytes, nbytes)
            self._reserved[principal.name] += nbytes
        try:
            yield lambda found, size: stored.update({found: max(size, FILE_CHARGE)})
        finally:
            self._reserved[principal.name] -= nbytes
            if stored:
                self._written[principal.name] |= stored
                await self._run(lambda: self._insert(principal.name, stored))

    async def used(self, name: str) -> int:
        """Return the bytes that count against the quota of a principal, with those that are being written."""
        if name not in self._written:
            self._written[name] = await self._run(lambda: self._read(name))
        return sum(self._written[name].values()) + self._reserved[name]

    async def _check(self, name: str, quota: int, nbytes: int) -> None:
        if await self.used(name) + nbytes <= quota:
            return
        known = self._written[name]
        missing = await in_store_thread(lambda: self._store.missing(list(known)))
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
