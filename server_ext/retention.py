"""How long finished jobs are remembered, and their outputs kept from eviction."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from yggdrasill.errors import StorageFailed
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.values.stores.base import ArtifactStore
from yggdrasill.values.stores.disk import DiskStore

__all__ = ["Memory", "Retention", "fair_quota"]

_LARGEST_QUOTA = 64 << 30


@dataclass(frozen=True)
class Retention:
    """How long finished jobs and their outputs are kept: so many seconds, so many jobs, so many bytes of artifacts."""

    seconds: float = 24 * 3600.0
    jobs: int = 1000
    bytes: int = 16 << 30

    def within(self, quota: int) -> Retention:
        """The same, with outputs in at most half of a store's ``quota``, so that there is room for those to come."""
        return replace(self, bytes=min(self.bytes, quota // 2))


def fair_quota(store: DiskStore) -> int:
    """Bytes for a store whose owner named none: half of what is free on its disk or taken by its artifacts, at most 64 GiB.

    Raises:
        StorageFailed: the disk does not tell.
    """
    used = store.used_bytes
    try:
        return min(_LARGEST_QUOTA, (shutil.disk_usage(store.folder).free + used) // 2)
    except OSError as error:
        raise StorageFailed(f"cannot tell what is free at {str(store.folder)!r}: {error.strerror or error}; set artifact_quota") from error


class Memory:
    """The outputs that are kept, oldest first."""

    def __init__(self, jobs: JobStore, store: ArtifactStore, limits: Retention) -> None:
        self._jobs, self._store, self._limits = jobs, store, limits
        self._kept: OrderedDict[str, int] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether outputs take more bytes than they may, one job's output apart."""
        return len(self._kept) > 1 and sum(self._kept.values()) > self._limits.bytes

    def keep(self, job_id: str, hashes: tuple[str, ...]) -> None:
        """Keep a finished job's artifacts."""
        self._store.pin(f"job:{job_id}", hashes)
        missing = set(self._store.missing(hashes))
        self._kept[job_id] = sum(self._store.nbytes(name) for name in hashes if name not in missing)

    async def prune(self) -> set[str]:
        """Forget what is too old or too much, let the store evict its artifacts, and give the ids.

        Raises:
            StorageFailed: nothing was forgotten.
        """
        limits = self._limits
        old: list[str] = await asyncio.wrap_future(self._jobs.expired(finished_before=time.time() - limits.seconds, keep=limits.jobs))
        gone = set(old)
        total = sum(self._kept.values())
        for job_id, nbytes in list(self._kept.items())[:-1]:
            if total <= limits.bytes:
                break
            total -= nbytes
            gone.add(job_id)
        if gone:
            await asyncio.wrap_future(self._jobs.remove(list(gone)))
        for job_id in gone:
            self._kept.pop(job_id, None)
            self._store.unpin(f"job:{job_id}")
        return gone
