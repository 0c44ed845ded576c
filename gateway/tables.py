"""The tables of a gateway's store, as SQLAlchemy Core, and how a database is opened: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from yggdrasill.errors import InvalidArgument, StorageFailed, UnsupportedVersion
from yggdrasill.gateway.models import Job

__all__ = [
    "JSON_COLUMNS",
    "asset_uses",
    "assets",
    "bodies",
    "create_tables",
    "events",
    "jobs",
    "lock_events",
    "needs",
    "numbers",
    "open_engine",
    "storage_failure",
    "workers",
]

VERSION = 1
"""The version of the tables. A store of another version is refused."""
JSON_COLUMNS = ("progress", "error", "extra")
_EVENT_LOCK = 0x79676764
_BUSY_MS = 10_000
_CREDENTIALS = re.compile(r"//[^/@]*@")

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("dialect", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("principal", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("queued", sa.Double, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.Column("ttl_at", sa.Double),
    sa.Column("timeout", sa.Double),
    sa.Column("not_before", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("retries", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(200)),
    sa.Column("lease_until", sa.Double),
    sa.Column("place", sa.String(200)),
    sa.Column("call_key", sa.String(200)),
    sa.Column("parent", sa.String(64)),
    sa.Column("step", sa.String(200)),
    sa.Column("waits_for", sa.Integer, nullable=False),
    sa.Column("key", sa.String(200)),
    sa.Column("body_hash", sa.String(64)),
    sa.Column("retention", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Column("webhook", sa.Text),
    sa.Column("webhook_state", sa.String(16)),
    sa.Column("webhook_attempts", sa.Integer, nullable=False),
    sa.Column("webhook_at", sa.Double),
    sa.Column("streamed", sa.BigInteger, nullable=False),
    sa.Column("progress", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("extra", sa.Text, nullable=False),
    sa.UniqueConstraint("principal", "key", name="jobs_key"),
    sa.Index("jobs_queue", "status", "kind", "target", "priority", "position"),
    sa.Index("jobs_created", "created"),
    sa.Index("jobs_parent", "parent"),
    sa.Index("jobs_webhook", "webhook_state", "webhook_at"),
    sa.Index("jobs_expires", "expires"),
)

#: Requests and outputs, which may be large, so that lists of jobs do not read them.
bodies = sa.Table(
    "bodies",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("output", sa.Text),
)

#: Which steps of a composite must end before another step.
needs = sa.Table(
    "needs",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("needed", sa.String(64), primary_key=True),
    sa.Index("needs_needed", "needed"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Column("principal", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Index("events_job", "job_id", "seq"),
    sqlite_autoincrement=True,
)

#: Files of clients and of jobs; the bytes are in the folder of assets, named by their hash.
assets = sa.Table(
    "assets",
    metadata,
    sa.Column("asset_id", sa.String(64), primary_key=True),
    sa.Column("principal", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("nbytes", sa.BigInteger, nullable=False),
    sa.Column("content_type", sa.String(200), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("used", sa.Double, nullable=False),
    sa.Column("job_id", sa.String(64)),
    sa.Column("call_key", sa.String(200)),
    sa.Column("node", sa.String(200)),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Index("assets_hash", "hash", "principal"),
    sa.Index("assets_job", "job_id"),
    sa.Index("assets_expires", "expires"),
)

#: Which assets are inputs of which jobs.
asset_uses = sa.Table(
    "asset_uses",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("asset_id", sa.String(64), primary_key=True),
    sa.Index("asset_uses_asset", "asset_id"),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("pool", sa.String(200), primary_key=True),
    sa.Column("worker", sa.String(200), primary_key=True),
    sa.Column("seen", sa.Double, nullable=False),
)

numbers = sa.Table(
    "numbers", metadata, sa.Column("name", sa.String(64), primary_key=True), sa.Column("value", sa.BigInteger, nullable=False)
)

assert tuple(column.name for column in jobs.columns) == tuple(Job.__dataclass_fields__)  # noqa: S101 - the row is the dataclass


def open_engine(url: str) -> Engine:
    """Return an engine for ``url``: ``sqlite:///FILE`` or ``postgresql://...``.

    Raises:
        InvalidArgument: another URL, or its driver is not installed; the message has no credentials.
    """
    shown = _CREDENTIALS.sub("//", url)
    try:
        parts = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise InvalidArgument("The URL of the database is invalid. Pass sqlite:///FILE or postgresql://USER@HOST/NAME.") from None
    if parts.drivername in ("postgres", "postgresql"):
        parts = parts.set(drivername="postgresql+psycopg")
    if parts.drivername not in ("sqlite", "postgresql+psycopg"):
        raise InvalidArgument(f"The database {shown[:200]!r} is not supported. Pass sqlite:///FILE or postgresql://USER@HOST/NAME.")
    try:
        if parts.drivername == "sqlite":
            engine = sa.create_engine(parts, connect_args={"check_same_thread": False, "timeout": _BUSY_MS / 1000}, poolclass=sa.NullPool)
            sa.event.listen(engine, "connect", _set_up_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = sa.create_engine(parts, poolclass=sa.NullPool, connect_args={"connect_timeout": 5})
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f'The database {shown[:200]!r} needs the package {error.name!r}. Install it with: pip install "yggdrasill[gateway]"'
        ) from error
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    """Let `_begin_sqlite` begin the transactions."""
    connection.isolation_level = None
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", f"PRAGMA busy_timeout={_BUSY_MS}"):
        connection.execute(statement)


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction; one that writes takes the lock at once, so that it never fails in between."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def create_tables(connection: Connection) -> None:
    """Create missing tables, and check the version of those that exist.

    Raises:
        UnsupportedVersion: the store was written by another version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_EVENT_LOCK + 1})"))
    metadata.create_all(connection)
    found = connection.execute(sa.select(numbers.c.value).where(numbers.c.name == "version")).scalar()
    if found is None:
        connection.execute(numbers.insert().values(name="version", value=VERSION))
    elif int(found) != VERSION:
        raise UnsupportedVersion(
            f"The store of this gateway has version {int(found)}; this yggdrasill reads version {VERSION}. Update yggdrasill, or use another "
            "database."
        )


def lock_events(connection: Connection) -> None:
    """Make the numbers of events follow the order of the transactions, so that a reader never misses one. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_EVENT_LOCK})"))


def storage_failure(error: Exception) -> StorageFailed:
    """Return the error for an exception of the database, without its statement, values and address."""
    original = getattr(error, "orig", None) or error
    return StorageFailed(
        f"The store of the gateway failed ({type(original).__name__}). Nothing of this request was stored. Call again later.",
        reason="store",
    )
