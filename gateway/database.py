"""The connections of a gateway's store: one thread that writes, and one that reads, so that the event loop never waits for the disk.

Writes that are queued at the same time share a transaction. With ``synchronous=NORMAL`` in WAL mode a killed process loses no committed
data of SQLite; PostgreSQL commits as its server is set.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from yggdrasill.errors import StorageFailed, YggdrasillError
from yggdrasill.gateway.tables import create_tables, lock_events, open_engine, storage_failure

__all__ = ["Database", "Transaction"]

Result = TypeVar("Result")
_MAX_BATCH = 256
_CLOCK_SECONDS = 60.0


class Transaction:
    """What the writes of one transaction share: the connection, the time of the store, and counts that are read once."""

    def __init__(self, connection: Connection, now: float, *, again: bool) -> None:
        self.connection = connection
        self.now = now
        #: Whether this transaction repeats one whose commit may have succeeded.
        self.again = again
        self.counts: dict[Any, int] = {}
        self.wrote_events = False
        #: Called after the commit, on the writing thread.
        self.after: list[Callable[[], None]] = []

    def execute(self, statement: Any, values: Any = None) -> Any:
        """Execute a statement and return its result."""
        return self.connection.execute(statement, values) if values is not None else self.connection.execute(statement)

    def count(self, key: Any, statement: Any) -> int:
        """Return a count, read once in this transaction. `add` changes it."""
        if key not in self.counts:
            self.counts[key] = int(self.connection.execute(statement).scalar_one())
        return self.counts[key]

    def add(self, key: Any, number: int = 1) -> None:
        """Change a count that was read."""
        if key in self.counts:
            self.counts[key] += number


Action = Callable[[Transaction], Any]


@dataclass(frozen=True)
class _Operation:
    action: Action
    future: Future[Any] = field(default_factory=Future)


class Database:
    """The database at ``url``. ``on_events`` is called after each commit of events, on the writing thread.

    Raises:
        InvalidArgument, UnsupportedVersion: as `open_engine` and `create_tables`.
        StorageFailed: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._file = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        self._inode: int | None = None
        self.on_events: Callable[[], None] = _ignore
        self._writes: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._offset, self._offset_at = 0.0, -_CLOCK_SECONDS
        try:
            with self.connect(writing=True) as connection, connection.begin():
                create_tables(connection)
                self._inode = self._present_inode()
        except sa.exc.SQLAlchemyError as error:
            raise storage_failure(error) from None
        self._threads = [
            threading.Thread(target=self._run, args=(operations, writing), name=f"yggdrasill-gateway-{name}", daemon=True)
            for operations, writing, name in ((self._writes, True, "write"), (self._reads, False, "read"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of SQLite."""
        return self._file is not None

    def now(self) -> float:
        """Return the time of the store, in seconds since the epoch: that of the database server, so that all gateways agree."""
        return time.time() + self._offset

    def write(self, action: Callable[[Transaction], Result]) -> Future[Result]:
        """Execute ``action`` in a transaction with others. It may be executed twice, if the first transaction fails.

        The future raises the error of ``action``, or `StorageFailed`; then nothing of it was stored.
        """
        return self._submit(self._writes, action)

    def read(self, action: Callable[[Transaction], Result]) -> Future[Result]:
        """Execute ``action``, which only reads."""
        return self._submit(self._reads, action)

    def close(self) -> None:
        """Complete all operations and close the connections. Later operations raise `StorageFailed`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._writes.put(None)
                self._reads.put(None)
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _submit(self, operations: queue.SimpleQueue[_Operation | None], action: Callable[[Transaction], Result]) -> Future[Result]:
        operation = _Operation(action)
        with self._lock:
            if self._closed:
                operation.future.set_exception(
                    StorageFailed("The store is closed: the gateway is stopping. Call again later.", reason="store")
                )
            else:
                operations.put(operation)
        return operation.future

    # -- the threads --------------------------------------------------------------------------------------------

    def connect(self, *, writing: bool) -> Connection:
        """Open a connection, for one thread."""
        return self._engine.connect().execution_options(writing=writing)

    def _run(self, operations: queue.SimpleQueue[_Operation | None], writing: bool) -> None:
        session = _Session(self, writing)
        is_open = True
        while is_open:
            batch: list[_Operation] = []
            entry = operations.get()
            while entry is not None:
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                if not writing or len(batch) >= _MAX_BATCH or operations.empty():
                    break
                entry = operations.get()
            is_open = entry is not None
            if batch:
                session.execute(batch)
        session.close()

    def _present_inode(self) -> int | None:
        if self._file in (None, "", ":memory:"):
            return None
        with contextlib.suppress(OSError):
            return os.stat(str(self._file)).st_ino  # noqa: PTH116 - one call per transaction
        return -1

    def check_file(self) -> None:
        """Raise `StorageFailed` if the file of SQLite was removed or replaced: what is written to it would be lost."""
        if self._inode is not None and self._present_inode() != self._inode:
            raise StorageFailed(
                "The file of the gateway's store was removed or replaced. Restore it and restart the gateway.", reason="store"
            )

    def measure_clock(self, connection: Connection) -> None:
        """Compare the clock with that of the database server, once a minute."""
        if self.is_sqlite or time.monotonic() - self._offset_at < _CLOCK_SECONDS:
            return
        before = time.time()
        found = float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())
        self._offset, self._offset_at = found - (before + time.time()) / 2, time.monotonic()


def _ignore() -> None:
    """Do nothing: no one waits for events."""


class _Session:
    """The connection of one thread. It is opened again after a failure."""

    def __init__(self, database: Database, writing: bool) -> None:
        self._database, self._writing = database, writing
        self._connection: Connection | None = None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.close()

    def execute(self, batch: list[_Operation], *, again: bool = False) -> None:
        """Execute operations in one transaction, and each alone if that fails, so that only the failing one is lost."""
        try:
            results, transaction = self._commit(batch, again)
        except Exception as error:  # noqa: BLE001 - reported to the caller; the thread must survive every error
            lost = isinstance(error, sa.exc.SQLAlchemyError)
            if lost:
                self.close()
            if len(batch) > 1 or (lost and not again):
                for operation in batch:
                    self.execute([operation], again=lost)
                return
            failure = error if isinstance(error, YggdrasillError) else storage_failure(error)
            batch[0].future.set_exception(failure)
            return
        for act in transaction.after:
            act()
        for operation, result in zip(batch, results, strict=True):
            operation.future.set_result(result)
        if transaction.wrote_events:
            self._database.on_events()

    def _commit(self, batch: list[_Operation], again: bool) -> tuple[list[Any], Transaction]:
        self._database.check_file()
        if self._connection is None:
            self._connection = self._database.connect(writing=self._writing)
        with self._connection.begin():
            self._database.measure_clock(self._connection)
            transaction = Transaction(self._connection, self._database.now(), again=again)
            if self._writing:
                lock_events(self._connection)
            return [operation.action(transaction) for operation in batch], transaction
