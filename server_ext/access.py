"""What an endpoint knows about its callers: the principals, the quotas of their artifacts, the audit log, and the end of revoked ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from yggdrasill.server_ext.deployment import RepeatedFailures
from yggdrasill.server_ext.jobs.model import Job
from yggdrasill.server_ext.logs import AuditLog
from yggdrasill.server_ext.principals import Principals
from yggdrasill.server_ext.quotas import WriteQuotas
from yggdrasill.values.stores.base import LocalStore

__all__ = ["Access"]

_CHECK_SECONDS = 0.5


class Access:
    """The principals of an endpoint whose data folder is ``data_dir``. Their artifacts are in ``store``."""

    def __init__(self, principals: Principals, data_dir: Path, store: LocalStore) -> None:
        self.principals = principals
        self.audit = AuditLog(data_dir)
        self.quotas = WriteQuotas(data_dir / "quotas.sqlite", store)
        self._checking: asyncio.Task[None] | None = None

    def start(self, unfinished: Callable[[], Iterable[Job]], stop: Callable[[Job, str], None]) -> None:
        """Begin to stop, with ``stop(job, reason)``, the unfinished jobs of principals that are revoked or expire."""
        self._checking = asyncio.create_task(self._check(unfinished, stop))

    async def close(self) -> None:
        """End the checks and write the audit log."""
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking
        await asyncio.to_thread(self.audit.close)
        await asyncio.to_thread(self.quotas.close)

    async def _check(self, unfinished: Callable[[], Iterable[Job]], stop: Callable[[Job, str], None]) -> None:
        failures = RepeatedFailures("The check for revoked principals failed; it is repeated.")
        while True:
            with failures.logged():
                for job in unfinished():
                    if not self.principals.is_valid(job.principal) and not job.token.cancelled:
                        self.audit.record("endpoint", "cancel_revoked", job.principal, job=job.job_id)
                        stop(job, f"The token of {job.principal!r} was revoked or has expired, so its unfinished jobs are cancelled.")
            await asyncio.sleep(_CHECK_SECONDS)
