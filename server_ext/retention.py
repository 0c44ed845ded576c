"""Retention of finished jobs and of their outputs in the artifact store."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from yggdrasill.errors import StorageFailed
from yggdrasill.server_ext.artifacts import PinThread
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.values.stores.folder import FolderStore

__all__ = ["OutputRetention", "Retention", "default_quota"]

_MAX_DEFAULT_QUOTA = 64 << 30


@dataclass(frozen=True)
class Retention:
    """Limits for finished jobs: age in seconds, number of jobs, and bytes of output artifacts.

    The keys of deleted jobs are kept apart from them, so that no call runs twice: for ``key_seconds`` after the deletion, at most ``keys``.
    """

    seconds: float = 24 * 3600.0
    jobs: int = 1000
    bytes: int = 16 << 30
    key_seconds: float = 24 * 3600.0
    keys: int = 500_000

    def within(self, quota: int) -> Retention:
        """Return limits with outputs bounded to half of a store's ``quota``, so that new artifacts have room."""
        return replace(self, bytes=min(self.bytes, quota // 2))


def default_quota(store: FolderStore) -> int:
    """Return the default quota in bytes: half of the free disk space plus the store's size, at most 64 GiB.

    Raises:
        StorageFailed: the free space cannot be read.
    """
    used = store.used_bytes
    try:
        return min(_MAX_DEFAULT_QUOTA, (shutil.disk_usage(store.folder).free + used) // 2)
    except OSError as error:
        raise StorageFailed(
            f"Cannot read the free space at {str(store.folder)!r}: {error.strerror or error}. Set artifact_quota."
        ) from error


class OutputRetention:
    """Pins the outputs of finished jobs, and removes the oldest jobs beyond the limits."""

    def __init__(self, jobs: JobStore, pins: PinThread, limits: Retention) -> None:
        self._jobs, self._pins, self._limits = jobs, pins, limits
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._clock_offset = time.time() - time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether outputs exceed the byte limit. The newest output is always kept."""
        return len(self._kept) > 1 and sum(self._kept.values()) > self._limits.bytes

    def keep(self, job_id: str, hashes: tuple[str, ...]) -> None:
        """Pin the artifacts of a finished job."""
        self._kept[job_id] = 0
        self._pins.keep(f"job:{job_id}", hashes, lambda nbytes: self._measured(job_id, nbytes))

    def _measured(self, job_id: str, nbytes: int) -> None:
        if job_id in self._kept:
            self._kept[job_id] = nbytes

    def _now(self) -> float:
        """Return the seconds since the epoch for ages. If the clock was changed since the start, ages are too low rather than too high."""
        return min(time.time(), time.monotonic() + self._clock_offset)

    async def prune(self) -> set[str]:
        """Delete jobs beyond the limits, unpin their artifacts, and return their ids.

        Raises:
            StorageFailed: a part of it could not be done; the next call does it.
        """
        limits, now = self._limits, self._now()
        expired: list[str] = await asyncio.wrap_future(self._jobs.expired(finished_before=now - limits.seconds, keep=limits.jobs))
        removed = set(expired)
        total = sum(self._kept.values())
        for job_id, nbytes in list(self._kept.items())[:-1]:
            if total <= limits.bytes:
                break
            total -= nbytes
            removed.add(job_id)
        if removed:
            await asyncio.wrap_future(self._jobs.remove(list(removed)))
        for job_id in removed:
            self._kept.pop(job_id, None)
            self._pins.unpin(f"job:{job_id}")
        await asyncio.wrap_future(self._jobs.forget_keys(recorded_before=now - limits.key_seconds, keep=limits.keys))
        return removed
