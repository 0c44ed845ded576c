"""The assets of a gateway: files of clients and of jobs, as rows in its store and as bytes in a folder, named by their hash.

Equal bytes are stored once, also for several principals and jobs. An asset has a lifetime; if the folder would exceed its quota, those that
were used least recently are deleted before. Inputs of unfinished jobs, and what such jobs have made, are kept. Several gateways on one
database may share the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from yggdrasill.errors import InvalidArgument, StorageFailed, UnknownName, YggdrasillError
from yggdrasill.gateway.asset_model import Asset, AssetBounds, AssetInUse, Made, content_type_of
from yggdrasill.gateway.database import Database, Transaction
from yggdrasill.gateway.models import Job
from yggdrasill.gateway.tables import asset_uses, assets, jobs, numbers
from yggdrasill.protocol.states import FINAL
from yggdrasill.values.files import write_file
from yggdrasill.values.stores.base import Data
from yggdrasill.values.stores.shared import SharedFolderStore
from yggdrasill.values.stores.threaded import ThreadedStore

__all__ = ["AssetStore"]

_SWEEP_ROWS = 500
_SWEEP_SECONDS = 30.0
_ORPHAN_SECONDS = 3600.0
_USED_SECONDS = 60.0
_COUNT_SECONDS = 30.0
_COUNT_SHARE = 0.9
_ID_FILE, _ID_NAME, _FOLDER_NAME = "database-id", "assets", "asset-folder"
_LOG = logging.getLogger("yggdrasill.gateway")

_FIELDS = tuple(item.name for item in fields(Asset))
_select = sa.select(*(assets.c[name] for name in _FIELDS))
_unfinished = sa.select(jobs.c.job_id).where(jobs.c.status.not_in(FINAL))
#: Rows that an unfinished job needs or has made. Never NULL, so that it can be negated.
_is_held = sa.or_(
    sa.and_(assets.c.job_id.is_not(None), assets.c.job_id.in_(_unfinished)),
    assets.c.asset_id.in_(sa.select(asset_uses.c.asset_id).where(asset_uses.c.job_id.in_(_unfinished))),
)


class AssetStore:
    """The assets in ``database`` and ``folder``. Its coroutines run on any event loop.

    Raises:
        InvalidArgument: the folder belongs to another database. StorageFailed: the folder or the database cannot be used.
    """

    def __init__(self, database: Database, folder: Path, bounds: AssetBounds) -> None:
        self._database, self._bounds = database, bounds
        self.files = ThreadedStore(SharedFolderStore(folder, max_artifact_bytes=min(bounds.largest, bounds.quota)))
        self._counted, self._counted_at = 0, -1e9
        #: Received bytes that wait for their rows, by hash, with the number of their uploads.
        self._received: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._orphans_at = time.monotonic()
        self._claim(folder)

    def _claim(self, folder: Path) -> None:
        """Compare the id of the database with the one in the folder, because assets without a row in this database are deleted."""
        folder_id = int(self.files.store_id[:15], 16)
        proposed = secrets.randbits(62)

        def action(transaction: Transaction) -> tuple[int, bool]:
            known = dict(
                transaction.execute(sa.select(numbers.c.name, numbers.c.value).where(numbers.c.name.in_((_ID_NAME, _FOLDER_NAME)))).all()
            )
            if not known:
                for name, value in ((_ID_NAME, proposed), (_FOLDER_NAME, folder_id)):
                    transaction.execute(numbers.insert().values(name=name, value=value))
                return proposed, True
            transaction.execute(numbers.update().where(numbers.c.name == _FOLDER_NAME).values(value=folder_id))
            return int(known[_ID_NAME]), int(known[_FOLDER_NAME]) == folder_id

        found, is_same = self._database.write(action).result()
        mine = str(found)
        path = folder / _ID_FILE
        if not path.exists():
            write_file(path, mine.encode("ascii"))
        if path.read_text(encoding="ascii", errors="replace").strip() != mine:
            raise InvalidArgument(
                f"The folder of assets {str(folder)!r} belongs to the jobs of another database. Pass another --assets FOLDER."
            )
        if not is_same:
            _LOG.warning(
                "The last gateway on this database had another folder of assets. Gateways on one database need one: pass --assets FOLDER."
            )

    @property
    def largest(self) -> int:
        """The bytes that one asset may have."""
        return self.files.local.max_artifact_bytes

    def close(self) -> None:
        """Close the folder."""
        self.files.local.close()

    # -- adding -------------------------------------------------------------------------------------------------

    async def receive(self, chunks: AsyncIterable[Data], expected: str | None = None) -> str:
        """Store the bytes of ``chunks`` and return their hash. `record` or `discard` must follow; until then the bytes are kept.

        Raises:
            CorruptData: their hash is not ``expected``. LimitExceeded: larger than an asset may be. StorageFailed: the disk fails.
        """
        digest = await self.files.put_stream(chunks, hash=expected)
        with self._lock:
            self._received[digest] += 1
        return digest

    async def record(
        self,
        digest: str,
        *,
        principal: str,
        name: str,
        content_type: str | None = None,
        lifetime: float | None = None,
        limit: int | None = None,
        made: Made | None = None,
    ) -> tuple[Asset, bool]:
        """Return an asset over received bytes, and whether the bytes are new. ``limit`` bounds the bytes of the principal.

        Raises:
            StorageFailed: the limit, or the quota, is used up by assets that are needed, or the database fails; then the bytes are discarded.
        """
        try:
            stat = await self.files.stat(digest)
            if stat is None:
                raise _removed()
            inserting = self._inserting(digest, stat.nbytes, principal, name, content_type, lifetime, limit, made)
            found = await asyncio.wrap_future(self._database.write(inserting))
        except BaseException:
            self.discard(digest)
            raise
        if found[0].hash != digest:
            self.discard(digest)
        else:
            self._release(digest)
        return found

    def discard(self, digest: str) -> None:
        """Delete received bytes in the background, unless an asset has them or another upload has just brought them."""
        self._release(digest)
        self._database.write(lambda transaction: self._drop(transaction, [digest]))

    def _release(self, digest: str) -> None:
        with self._lock:
            self._received[digest] -= 1
            if self._received[digest] <= 0:
                del self._received[digest]

    def _inserting(
        self,
        digest: str,
        nbytes: int,
        principal: str,
        name: str,
        content_type: str | None,
        lifetime: float | None,
        limit: int | None = None,
        made: Made | None = None,
    ) -> Callable[[Transaction], tuple[Asset, bool]]:
        def action(transaction: Transaction) -> tuple[Asset, bool]:
            now = transaction.now
            ends = now + (self._bounds.lifetime if lifetime is None else lifetime)
            known = self._same(transaction, digest, principal, name, made)
            if known is not None:
                return self._extended(transaction, known, ends), False
            if not self.files.local.has(digest):
                raise _removed()
            if limit is not None:
                owned = sa.select(sa.func.coalesce(sa.func.sum(assets.c.nbytes), 0)).where(assets.c.principal == principal)
                if int(transaction.execute(owned).scalar_one()) + nbytes > limit:
                    raise StorageFailed(
                        f"The assets of {principal!r} would exceed {limit} bytes. Delete some of them.", reason="assets", bound=limit
                    )
            owners = set(transaction.execute(sa.select(assets.c.principal).where(assets.c.hash == digest).distinct()).scalars())
            if not owners:
                self._make_room(transaction, nbytes)
            asset = Asset(str(uuid.uuid4()), principal, digest, nbytes, content_type or content_type_of(name), name, now, ends, now)
            if made is not None:
                asset = made.output(asset)
            transaction.execute(assets.insert(), {item: getattr(asset, item) for item in _FIELDS})
            # whether another principal has the bytes is not reported
            return asset, principal not in owners

        return action

    def _same(self, transaction: Transaction, digest: str, principal: str, name: str, made: Made | None) -> Asset | None:
        """Return the row of an equal reference, or None."""
        if made is not None:
            wanted = [assets.c.asset_id == made.asset_id]
        else:
            wanted = [assets.c.hash == digest, assets.c.principal == principal, assets.c.name == name, assets.c.job_id.is_(None)]
            wanted.append(assets.c.expires > transaction.now)
        row = transaction.execute(_select.where(*wanted).limit(1)).first()
        return None if row is None else Asset(*row)

    @staticmethod
    def _extended(transaction: Transaction, asset: Asset, ends: float) -> Asset:
        """Return an asset that is kept at least until ``ends``."""
        found = Asset(**{**vars(asset), "expires": max(asset.expires, ends), "used": transaction.now})
        changed = assets.update().where(assets.c.asset_id == asset.asset_id).values(expires=found.expires, used=found.used)
        transaction.execute(changed)
        return found

    def _make_room(self, transaction: Transaction, nbytes: int) -> None:
        """Delete the least recently used assets that no unfinished job needs, until ``nbytes`` more are within the quota."""
        quota = self._bounds.quota
        if time.monotonic() - self._counted_at > _COUNT_SECONDS or self._counted + nbytes > _COUNT_SHARE * quota:
            each = sa.select(sa.func.max(assets.c.nbytes).label("nbytes")).group_by(assets.c.hash).subquery()
            self._counted = int(transaction.execute(sa.select(sa.func.coalesce(sa.func.sum(each.c.nbytes), 0))).scalar_one())
            self._counted_at = time.monotonic()
        excess = self._counted + nbytes - quota
        if excess > 0:
            held = sa.select(assets.c.hash).where(_is_held)
            free = sa.select(assets.c.hash, sa.func.max(assets.c.nbytes)).where(assets.c.hash.not_in(held)).group_by(assets.c.hash)
            chosen: list[str] = []
            for digest, size in transaction.execute(free.order_by(sa.func.max(assets.c.used))):
                if excess <= 0:
                    break
                chosen.append(digest)
                excess -= int(size)
                self._counted -= int(size)
            if excess > 0:
                self._counted_at = -1e9
                raise StorageFailed(
                    f"The assets of unfinished jobs use up the quota of {quota} bytes. Send the asset again when they have ended.",
                    reason="assets", bound=quota,
                )  # fmt: skip
            transaction.execute(assets.delete().where(assets.c.hash.in_(chosen)))
            self._drop(transaction, chosen)
        self._counted += nbytes

    def _drop(self, transaction: Transaction, digests: Iterable[str]) -> None:
        """Delete the bytes that no row refers to. Inside a writing transaction no other gateway adds one."""
        for digest in digests:
            if transaction.execute(sa.select(assets.c.asset_id).where(assets.c.hash == digest).limit(1)).first() is None:
                with self._lock:
                    if digest not in self._received:
                        self.files.local.delete(digest)

    async def mint(
        self, digest: str, *, principal: str, seen_by: str | None, name: str, lifetime: float | None, limit: int | None
    ) -> tuple[Asset, bool] | None:
        """Return an asset over bytes that a caller has, and whether the asset is new, or None. ``seen_by`` is as in `get`.

        Raises:
            StorageFailed: as `record`.
        """
        source = await self._with_hash(digest, seen_by)
        if source is None:
            return None
        content_type = source.content_type if content_type_of(name) == "application/octet-stream" else None

        def action(transaction: Transaction) -> tuple[Asset, bool] | None:
            if not self.files.local.has(digest):
                return None
            is_known = self._same(transaction, digest, principal, name, None) is not None
            asset, _ = self._inserting(digest, source.nbytes, principal, name, content_type, lifetime, limit)(transaction)
            return asset, not is_known

        return await asyncio.wrap_future(self._database.write(action))

    # -- reading ------------------------------------------------------------------------------------------------

    async def get(self, asset_id: str, seen_by: str | None = None) -> Asset:
        """Return an asset. ``seen_by`` is the principal whose assets count, None for all. Raise `UnknownName`."""
        return (await self.all_of([asset_id], seen_by))[0]

    async def all_of(self, asset_ids: Sequence[str], seen_by: str | None) -> list[Asset]:
        """Return assets whose bytes are present, in order. Raise `UnknownName` for the first that is not."""
        if not asset_ids:
            return []

        def action(transaction: Transaction) -> dict[str, Asset]:
            wanted = [assets.c.asset_id.in_([name for name in asset_ids if name.isprintable()]), assets.c.expires > transaction.now]
            wanted += [] if seen_by is None else [assets.c.principal == seen_by]
            return {row[0]: Asset(*row) for row in transaction.execute(_select.where(*wanted))}

        found = await asyncio.wrap_future(self._database.read(action))
        for name in asset_ids:
            if name not in found or await self.files.stat(found[name].hash) is None:
                raise UnknownName(
                    f"Unknown asset {name[:80]!r}. It may have been deleted after its lifetime. Upload it again.", name=name[:80]
                )
        return [found[name] for name in asset_ids]

    async def has_hash(self, digest: str, seen_by: str | None) -> bool:
        """Return whether a caller has an asset with these bytes."""
        return await self._with_hash(digest, seen_by) is not None

    async def _with_hash(self, digest: str, seen_by: str | None) -> Asset | None:
        def action(transaction: Transaction) -> Asset | None:
            wanted = [assets.c.hash == digest, assets.c.expires > transaction.now]
            wanted += [] if seen_by is None else [assets.c.principal == seen_by]
            row = transaction.execute(_select.where(*wanted).limit(1)).first()
            return None if row is None else Asset(*row)

        found = await asyncio.wrap_future(self._database.read(action))
        return found if found is not None and await self.files.stat(digest) is not None else None

    async def outputs(self, job: Job) -> list[Asset]:
        """Return what the last attempt of a job has made so far, in order."""
        if job.call_key is None:
            return []
        statement = _select.where(assets.c.job_id == job.job_id, assets.c.call_key == job.call_key).order_by(assets.c.number)
        return await asyncio.wrap_future(self._database.read(lambda transaction: [Asset(*row) for row in transaction.execute(statement)]))

    async def path(self, asset: Asset) -> Path:
        """Return the file of an asset, for reading, and record the use. Raise `UnknownName` if the bytes are gone."""
        stat = await self.files.stat(asset.hash)
        if stat is None:
            raise UnknownName(f"The bytes of asset {asset.asset_id!r} are gone. Upload it or run its job again.", name=asset.asset_id)
        now = self._database.now()
        if now - asset.used > _USED_SECONDS:
            used = assets.update().where(assets.c.hash == asset.hash).values(used=now)
            await asyncio.wrap_future(self._database.write(lambda transaction: transaction.execute(used)))
        found = await self.files.run(lambda: self.files.local.path(asset.hash))
        assert found is not None  # noqa: S101 - a store in a folder has files
        return found

    # -- deleting -----------------------------------------------------------------------------------------------

    async def delete(self, asset_id: str, seen_by: str | None) -> None:
        """Delete an asset; its bytes too, if no other one has them. Raise `UnknownName`, `AssetInUse`."""
        asset = await self.get(asset_id, seen_by)

        def action(transaction: Transaction) -> None:
            if transaction.execute(sa.select(assets.c.asset_id).where(assets.c.asset_id == asset_id, _is_held)).first() is not None:
                raise AssetInUse(f"Asset {asset_id!r} belongs to a job that has not ended. Cancel the job, or delete the asset later.")
            transaction.execute(assets.delete().where(assets.c.asset_id == asset_id))
            self._drop(transaction, [asset.hash])

        await asyncio.wrap_future(self._database.write(action))

    async def sweep_forever(self) -> None:
        """Delete assets after their lifetime, and bytes that no row refers to, until cancelled."""
        while True:
            try:
                await self.sweep()
                if time.monotonic() - self._orphans_at > _ORPHAN_SECONDS:
                    self._orphans_at = time.monotonic()
                    await self.remove_orphans()
            except (YggdrasillError, OSError) as error:
                _LOG.warning("Expired assets are deleted later: %s", error)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def sweep(self) -> int:
        """Delete assets whose lifetime is over, and return their number."""

        def action(transaction: Transaction) -> int:
            over = sa.select(assets.c.asset_id, assets.c.hash).where(assets.c.expires < transaction.now, sa.not_(_is_held))
            found = transaction.execute(over.limit(_SWEEP_ROWS)).all()
            if found:
                transaction.execute(assets.delete().where(assets.c.asset_id.in_([row[0] for row in found])))
                self._drop(transaction, {row[1] for row in found})
                self._counted_at = -1e9
            return len(found)

        return await asyncio.wrap_future(self._database.write(action))

    async def remove_orphans(self, older_than: float = _ORPHAN_SECONDS) -> int:
        """Delete files without a row that were written so many seconds ago, as a killed gateway leaves them. Return their number."""
        end = time.time() - older_than

        def listed() -> list[str]:
            found = []
            for path in (self.files.local.folder / "objects").glob("??/??/*"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < end:
                        found.append(path.name)
            return found

        names = await asyncio.to_thread(listed)
        removed = 0
        for start in range(0, len(names), _SWEEP_ROWS):
            chosen = names[start : start + _SWEEP_ROWS]
            known = sa.select(assets.c.hash).where(assets.c.hash.in_(chosen)).distinct()

            def read(transaction: Transaction, statement: Any = known) -> set[str]:
                return set(transaction.execute(statement).scalars())

            present = await asyncio.wrap_future(self._database.read(read))
            orphans = [name for name in chosen if name not in present]
            removed += len(orphans)
            if orphans:
                await asyncio.wrap_future(self._database.write(partial(self._drop, digests=orphans)))
        return removed


def _removed() -> StorageFailed:
    return StorageFailed("The asset was removed while it was stored. Send it again.", reason="assets")
