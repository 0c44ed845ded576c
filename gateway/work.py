"""The store of a gateway as those see it who do the work: claims with leases, results, jobs that are given back, and what time brings about.

A claim is a guarded update, so of two gateways, or two workers, exactly one gets a job. Its lease says until when the claimant promises to
follow it. A result counts only if the job still is that of the claim.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from yggdrasill.gateway.database import Database, Transaction
from yggdrasill.gateway.models import COMPOSITE, POOL, STATUS, Job
from yggdrasill.gateway.rows import (
    Transition,
    add_event,
    end,
    find,
    give_back,
    is_queued,
    job_of,
    request_of,
    select_jobs,
    to_text,
    transition,
)
from yggdrasill.gateway.tables import asset_uses, bodies, events, jobs, needs, workers
from yggdrasill.protocol.states import CANCELLED, FINAL, IN_PROGRESS, IN_QUEUE, TIMED_OUT

__all__ = ["WORKER", "Claim", "Group", "Work"]

WORKER = "worker"
"""The owner of the jobs that workers of pools run: any gateway extends their leases and gives them back."""
_SWEEP_ROWS = 500
_KEPT_STOPS, _STOP_PAUSE = 60.0, 10.0
_SENT = ("sent", "failed")

# built once, as in `yggdrasill.gateway.rows`
_IS_DUE = jobs.c.not_before <= sa.bindparam("now_")
_GROUPS = (
    sa.select(jobs.c.kind, jobs.c.target, sa.func.count())
    .where(is_queued, jobs.c.kind != POOL, _IS_DUE)
    .group_by(jobs.c.kind, jobs.c.target)
)
_RUNNING = (
    sa.select(jobs.c.place, sa.func.count())
    .where(jobs.c.status == IN_PROGRESS, jobs.c.kind.not_in((POOL, COMPOSITE)))
    .group_by(jobs.c.place)
)
_FIRST = (
    select_jobs.where(is_queued, jobs.c.kind == sa.bindparam("kind_"), jobs.c.target == sa.bindparam("target_"), _IS_DUE)
    .order_by(jobs.c.priority.desc(), jobs.c.position, jobs.c.job_id)
    .limit(sa.bindparam("limit_", type_=sa.Integer))
)
_TAKE = Transition(
    IN_PROGRESS,
    (is_queued, jobs.c.attempts == sa.bindparam("attempts_")),
    ("started", "owner", "lease_until", "place", "attempts", "call_key"),
)


@dataclass(frozen=True)
class Group:
    """Queued jobs that the same endpoints can run."""

    kind: str
    target: str
    count: int


@dataclass(frozen=True)
class Claim:
    """A job to be taken for ``place``, as the claimant knows it."""

    job: Job
    place: str
    owner: str
    lease_seconds: float


def _is_mine(claimed: Job) -> tuple[Any, ...]:
    """Return the conditions under which a running job still is that of a claim."""
    return jobs.c.owner == claimed.owner, jobs.c.call_key == claimed.call_key


class Work:
    """The jobs in ``database``. All methods return futures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- taking jobs --------------------------------------------------------------------------------------------

    def groups(self) -> Future[tuple[list[Group], dict[str, int]]]:
        """Return the groups of jobs that may be taken now, except those of pools, and the number of running jobs of each endpoint."""

        def action(transaction: Transaction) -> tuple[list[Group], dict[str, int]]:
            groups = [Group(*row) for row in transaction.execute(_GROUPS, {"now_": transaction.now})]
            places = transaction.execute(_RUNNING).all()
            return groups, {str(place): int(count) for place, count in places}

        return self._database.read(action)

    def candidates(self, group: Group, limit: int) -> Future[list[Job]]:
        """Return the first jobs of a group that may be taken now."""
        return self._database.read(lambda transaction: _first(transaction, group.kind, group.target, limit))

    def claim(self, claims: Sequence[Claim]) -> Future[list[tuple[Job, dict[str, Any], dict[str, Any]]]]:
        """Take jobs. Return those that nobody else took, with their requests and the outputs of the steps that they need."""

        def action(transaction: Transaction) -> list[tuple[Job, dict[str, Any], dict[str, Any]]]:
            found = []
            for claim in claims:
                job = _take(transaction, claim.job, claim.place, claim.owner, claim.lease_seconds)
                if job is not None:
                    found.append((job, request_of(transaction, job.job_id), _needed_outputs(transaction, job)))
            return found

        return self._database.write(action)

    def claim_for_worker(self, pool: str, worker: str, count: int, lease_seconds: float) -> Future[list[tuple[Job, dict[str, Any]]]]:
        """Take at most ``count`` jobs of a pool for a worker, and record that it was seen."""

        def action(transaction: Transaction) -> list[tuple[Job, dict[str, Any]]]:
            _see(transaction, pool, worker)
            found = []
            for candidate in _first(transaction, POOL, pool, count):
                job = _take(transaction, candidate, worker, WORKER, lease_seconds)
                if job is not None:
                    found.append((job, request_of(transaction, job.job_id)))
            return found

        return self._database.write(action)

    # -- results ------------------------------------------------------------------------------------------------

    def finish(self, claimed: Job, status: str, *, output: Any = None, error: Mapping[str, Any] | None = None) -> Future[Job | None]:
        """End a job with its result. Return None if another claim has replaced this one: its result counts."""
        return self._database.write(
            lambda transaction: end(transaction, claimed.job_id, status, claimed=claimed, error=error, output=output)
        )

    def give_back(
        self, claimed: Job, *, delay: float = 0.0, error: Mapping[str, Any] | None = None, counted: bool = True
    ) -> Future[Job | None]:
        """Return a job to the queue, or fail it after its last attempt. Return None if another claim has replaced this one."""
        return self._database.write(
            lambda transaction: give_back(transaction, claimed, *_is_mine(claimed), delay=delay, error=error, counted=counted)
        )

    def report(self, claimed: Job, kind: str, data: Mapping[str, Any], *, progress: Mapping[str, Any] | None = None) -> Future[bool]:
        """Append an event to a running job, and set its progress. Return False if another claim has replaced this one."""

        def action(transaction: Transaction) -> bool:
            statement = jobs.update().where(jobs.c.job_id == claimed.job_id, jobs.c.status == IN_PROGRESS, *_is_mine(claimed))
            text = jobs.c.progress if progress is None else to_text(progress)
            if transaction.execute(statement.values(progress=text)).rowcount != 1:
                return False
            if kind == "progress":
                transaction.execute(events.delete().where(events.c.job_id == claimed.job_id, events.c.kind == kind))
            add_event(transaction, claimed, kind, data)
            return True

        return self._database.write(action)

    def worker_job(self, job_id: str, worker: str) -> Future[tuple[Job | None, bool]]:
        """Return the job that a worker runs, or None if it does not run it any more, and whether there is such a job."""

        def action(transaction: Transaction) -> tuple[Job | None, bool]:
            job = find(transaction, job_id, jobs.c.kind == POOL)
            is_its = job is not None and job.place == worker and job.status == IN_PROGRESS
            return job if is_its else None, job is not None

        return self._database.read(action)

    # -- leases -------------------------------------------------------------------------------------------------

    def renew(self, owner: str, lease_seconds: float) -> Future[set[str]]:
        """Extend the leases of all running jobs of ``owner``, and return their ids."""

        def action(transaction: Transaction) -> set[str]:
            mine = jobs.update().where(jobs.c.owner == owner, jobs.c.status == IN_PROGRESS)
            until = transaction.now + lease_seconds
            return set(transaction.execute(mine.values(lease_until=until).returning(jobs.c.job_id)).scalars())

        return self._database.write(action)

    def seen(self, pool: str, worker: str, job_ids: Sequence[str], lease_seconds: float) -> Future[None]:
        """Record that a worker was seen, and extend the leases of the jobs that it reports."""

        def action(transaction: Transaction) -> None:
            _see(transaction, pool, worker)
            if job_ids:
                held = jobs.c.job_id.in_(job_ids), jobs.c.place == worker, jobs.c.owner == WORKER, jobs.c.status == IN_PROGRESS
                transaction.execute(jobs.update().where(*held).values(lease_until=transaction.now + lease_seconds))

        return self._database.write(action)

    def stopped(self, worker: str) -> Future[list[str]]:
        """Return the ids of the jobs of a worker that were stopped in the last minute, each of them once in ten seconds."""

        def action(transaction: Transaction) -> list[str]:
            now = transaction.now
            stopped = jobs.c.place == worker, jobs.c.status.in_((CANCELLED, TIMED_OUT)), jobs.c.finished > now - _KEPT_STOPS
            unsent = sa.or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now - _STOP_PAUSE)
            ids = list(transaction.execute(sa.select(jobs.c.job_id).where(jobs.c.kind == POOL, *stopped, unsent)).scalars())
            if ids:
                # the lease of a job that has ended is the time when its worker was informed
                transaction.execute(jobs.update().where(jobs.c.job_id.in_(ids)).values(lease_until=now))
            return ids

        return self._database.write(action)

    def workers(self, pool: str, within: float) -> Future[dict[str, int]]:
        """Return the workers that were seen within so many seconds, with the number of jobs that each runs."""

        def action(transaction: Transaction) -> dict[str, int]:
            known = sa.select(workers.c.worker).where(workers.c.pool == pool, workers.c.seen > transaction.now - within)
            running = sa.select(jobs.c.place, sa.func.count()).where(
                jobs.c.status == IN_PROGRESS, jobs.c.kind == POOL, jobs.c.target == pool
            )
            counted = dict(transaction.execute(running.group_by(jobs.c.place)).tuples().all())
            return {name: int(counted.get(name, 0)) for name in transaction.execute(known).scalars()}

        return self._database.read(action)

    def pools(self) -> Future[list[str]]:
        """Return the names of the pools from which workers have taken jobs."""
        statement = sa.select(workers.c.pool).distinct()
        return self._database.read(lambda transaction: list(transaction.execute(statement).scalars()))

    def take_over(self, owner: str, dead: str | None, lease_seconds: float) -> Future[list[tuple[Job, dict[str, Any], dict[str, Any]]]]:
        """Take the running jobs of gateways whose leases have expired, and those of earlier starts of a gateway whose names begin with ``dead``."""

        def action(transaction: Transaction) -> list[tuple[Job, dict[str, Any], dict[str, Any]]]:
            lost = jobs.c.lease_until < transaction.now
            if dead is not None:
                lost = sa.or_(lost, sa.and_(jobs.c.owner.startswith(dead, autoescape=True), jobs.c.owner != owner))
            wanted = jobs.c.status == IN_PROGRESS, jobs.c.owner.is_not(None), jobs.c.owner != WORKER, lost
            found = []
            for row in transaction.execute(select_jobs.where(*wanted).limit(_SWEEP_ROWS)).all():
                job = job_of(row)
                mine = jobs.update().where(jobs.c.job_id == job.job_id, jobs.c.status == IN_PROGRESS, jobs.c.owner == job.owner)
                until = transaction.now + lease_seconds
                if transaction.execute(mine.values(owner=owner, lease_until=until)).rowcount == 1:
                    job.owner, job.lease_until = owner, until
                    found.append((job, request_of(transaction, job.job_id), _needed_outputs(transaction, job)))
            return found

        return self._database.write(action)

    # -- what time brings about ---------------------------------------------------------------------------------

    def sweep(self) -> Future[list[Job]]:
        """End jobs whose time is over, give back those of vanished workers, and delete expired rows. Return the jobs that it changed."""

        def action(transaction: Transaction) -> list[Job]:
            now = transaction.now
            changed: list[Job | None] = []
            too_old = sa.and_(jobs.c.ttl_at < now, jobs.c.status.in_((IN_QUEUE, IN_PROGRESS)))
            too_long = sa.and_(jobs.c.status == IN_PROGRESS, jobs.c.started + jobs.c.timeout < now)
            over = transaction.execute(select_jobs.where(sa.or_(too_old, too_long)).limit(_SWEEP_ROWS)).all()
            changed += [_time_out(transaction, job_of(row)) for row in over]
            vanished = jobs.c.status == IN_PROGRESS, jobs.c.owner == WORKER, jobs.c.lease_until < now
            for row in transaction.execute(select_jobs.where(*vanished).limit(_SWEEP_ROWS)).all():
                job = job_of(row)
                error = {"code": "worker_lost", "message": f"Worker {job.place!r} has vanished; the job had {job.attempts} attempts."}
                changed.append(give_back(transaction, job, jobs.c.lease_until < now, error=error))
            _delete_expired(transaction)
            return [job for job in changed if job is not None]

        return self._database.write(action)

    # -- webhooks -----------------------------------------------------------------------------------------------

    def due_webhooks(self, limit: int, lease_seconds: float) -> Future[list[tuple[Job, Any]]]:
        """Take ended jobs whose webhooks are due, with their outputs. They are due again after ``lease_seconds``."""

        def action(transaction: Transaction) -> list[tuple[Job, Any]]:
            due = jobs.c.webhook_state == "pending", jobs.c.webhook_at <= transaction.now
            found = []
            for row in transaction.execute(select_jobs.where(*due).order_by(jobs.c.webhook_at).limit(limit)).all():
                job = job_of(row)
                mine = jobs.update().where(jobs.c.job_id == job.job_id, jobs.c.webhook_at == job.webhook_at, due[0])
                if transaction.execute(mine.values(webhook_at=transaction.now + lease_seconds)).rowcount == 1:
                    text = transaction.execute(sa.select(bodies.c.output).where(bodies.c.job_id == job.job_id)).scalar()
                    found.append((job, None if text is None else json.loads(text)))
            return found

        return self._database.write(action)

    def next_webhook(self) -> Future[float | None]:
        """Return when the next webhook is due, or None."""
        statement = sa.select(sa.func.min(jobs.c.webhook_at)).where(jobs.c.webhook_state == "pending")

        def action(transaction: Transaction) -> float | None:
            found = transaction.execute(statement).scalar()
            return None if found is None else float(found)

        return self._database.read(action)

    def record_webhook(self, job_id: str, *, sent: bool, again_after: float | None) -> Future[None]:
        """Record an attempt to deliver a webhook; without ``again_after`` it was the last one."""

        def action(transaction: Transaction) -> None:
            state = "sent" if sent else "failed" if again_after is None else "pending"
            at = None if again_after is None or sent else transaction.now + again_after
            values = {"webhook_state": state, "webhook_at": at, "webhook_attempts": jobs.c.webhook_attempts + 1}
            transaction.execute(jobs.update().where(jobs.c.job_id == job_id, jobs.c.webhook_state == "pending").values(**values))

        return self._database.write(action)


def _first(transaction: Transaction, kind: str, target: str, limit: int) -> list[Job]:
    values = {"kind_": kind, "target_": target, "now_": transaction.now, "limit_": limit}
    return [job_of(row) for row in transaction.execute(_FIRST, values)]


def _take(transaction: Transaction, known: Job, place: str, owner: str, lease_seconds: float) -> Job | None:
    """Take a job if it still is as it is known, with its composite."""
    attempt = known.attempts + 1
    values = {
        "started": transaction.now,
        "owner": owner,
        "lease_until": transaction.now + lease_seconds,
        "place": place,
        "attempts": attempt,
        # each claim is another call; one that takes over a claim repeats its call
        "call_key": f"{known.job_id}.{secrets.token_hex(4)}",
    }
    job = _TAKE.apply(transaction, known.job_id, values, attempts_=known.attempts)
    if job is None:
        return None
    add_event(transaction, job, STATUS, {"status": IN_PROGRESS, "endpoint": place, "attempt": attempt})
    if job.parent is not None:
        composite = transition(transaction, job.parent, IN_PROGRESS, jobs.c.kind == COMPOSITE, started=transaction.now)
        if composite is not None:
            add_event(transaction, composite, STATUS, {"status": IN_PROGRESS})
    return job


def _needed_outputs(transaction: Transaction, job: Job) -> dict[str, Any]:
    """Return the outputs of the steps that a step needs, by name, with their endpoints."""
    if job.parent is None:
        return {}
    statement = (
        sa.select(jobs.c.step, jobs.c.place, bodies.c.output)
        .select_from(needs)
        .join(jobs, jobs.c.job_id == needs.c.needed)
        .join(bodies, bodies.c.job_id == needs.c.needed)
        .where(needs.c.job_id == job.job_id)
    )
    return {step: {**json.loads(output), "endpoint": place} for step, place, output in transaction.execute(statement) if output is not None}


def _see(transaction: Transaction, pool: str, worker: str) -> None:
    same = workers.c.pool == pool, workers.c.worker == worker
    if transaction.execute(workers.update().where(*same).values(seen=transaction.now)).rowcount == 0:
        transaction.execute(workers.insert(), {"pool": pool, "worker": worker, "seen": transaction.now})


def _time_out(transaction: Transaction, job: Job) -> Job | None:
    over = job.ttl_at is not None and job.ttl_at < transaction.now
    what = (
        f"its lifetime of {float(job.ttl_at or 0) - job.created:g} s" if over else f"its execution timeout of {float(job.timeout or 0):g} s"
    )
    error = {"code": "ttl" if over else "execution_timeout", "message": f"The job has exceeded {what}."}
    return end(transaction, job.job_id, TIMED_OUT, jobs.c.status == job.status, error=error)


def _delete_expired(transaction: Transaction) -> None:
    """Delete rows after their retention, steps with their composite, and workers that were not seen for a day."""
    ended = jobs.c.status.in_(FINAL), jobs.c.expires < transaction.now, jobs.c.parent.is_(None)
    delivered = sa.or_(jobs.c.webhook_state.is_(None), jobs.c.webhook_state.in_(_SENT))
    ids = list(transaction.execute(sa.select(jobs.c.job_id).where(*ended, delivered).limit(_SWEEP_ROWS)).scalars())
    if not ids:
        return
    ids += transaction.execute(sa.select(jobs.c.job_id).where(jobs.c.parent.in_(ids))).scalars()
    for table in (events, bodies, needs, asset_uses, jobs):
        transaction.execute(table.delete().where(table.c.job_id.in_(ids)))
    transaction.execute(workers.delete().where(workers.c.seen < transaction.now - 86400.0))
