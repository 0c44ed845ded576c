"""The store of a gateway as its clients use it: submissions, rows, outputs, events, and the commands that change queued jobs.

`yggdrasill.gateway.work` is the side of those who do the work. Several gateways may share one database. All methods return futures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from yggdrasill.errors import InvalidArgument, JobConflict, QueueFull, UnknownJob
from yggdrasill.gateway.database import Database, Transaction
from yggdrasill.gateway.models import COMPOSITE, RETRYABLE, STATES, STATUS, Event, Job, NewJob, body_hash, check_name
from yggdrasill.gateway.rows import QUEUED, add_event, end, event_of, find, insert, job_of, request_of, select_jobs, transition
from yggdrasill.gateway.tables import asset_uses, bodies, events, jobs, needs
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FINAL, IN_QUEUE

__all__ = ["Bounds", "JobStore"]

#: Positions of jobs that are submitted one microsecond apart differ by this much, so that jobs can be moved between them.
_STEP = 1 << 12
_ROOM = 1 << 20
_MAX_ROWS = 10_000
_MOST_AHEAD = 1000
_EVENT_COLUMNS = (events.c.seq, events.c.job_id, events.c.principal, events.c.kind, events.c.data, events.c.created)
_COUNT_QUEUED = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status == IN_QUEUE)
_OF_KEY = select_jobs.where(jobs.c.principal == sa.bindparam("principal_"), jobs.c.key == sa.bindparam("key_"))
_OUTPUT = sa.select(bodies.c.output).where(bodies.c.job_id == sa.bindparam("id_"))
_COUNT_UNFINISHED = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status.not_in(FINAL))


@dataclass(frozen=True)
class Bounds:
    """The bounds of the queue: jobs that may wait, and attempts of a job that names none."""

    max_queue: int = 10_000
    max_attempts: int = 3


class JobStore:
    """The jobs in ``database``."""

    def __init__(self, database: Database, bounds: Bounds) -> None:
        self._database, self._bounds = database, bounds
        self._last_position = 0

    # -- submissions --------------------------------------------------------------------------------------------

    def submit(self, new: NewJob) -> Future[tuple[Job, bool]]:
        """Store a job and its steps. Return the job and True, or the job that the same principal submitted with the same key and False.

        The future raises:
            JobConflict: the key was used for another request.
            QueueFull: the queue, or the principal's part of it, is full.
        """
        bounds = self._bounds

        def action(transaction: Transaction) -> tuple[Job, bool]:
            known = find(transaction, new.job_id) if transaction.again else None
            if known is not None:
                return known, True
            if new.key is not None:
                row = transaction.execute(_OF_KEY, {"principal_": new.principal, "key_": new.key}).first()
                if row is not None:
                    return _same(job_of(row), new), False
            self._check_room(transaction, new)
            job = new.row(transaction.now, self._next_position(transaction), bounds.max_attempts)
            job.waits_for = len(new.steps) if new.kind == COMPOSITE else job.waits_for
            insert(transaction, job, new.request)
            if new.assets:
                transaction.execute(asset_uses.insert(), [{"job_id": job.job_id, "asset_id": name} for name in new.assets])
            if new.steps:
                self._insert_steps(transaction, job, new)
            if new.max_jobs is not None:
                transaction.add(new.principal)
            return job, True

        return self._database.write(action)

    def _check_room(self, transaction: Transaction, new: NewJob) -> None:
        queued = transaction.count(QUEUED, _COUNT_QUEUED)
        if queued + 1 + len(new.steps) > self._bounds.max_queue:
            raise QueueFull(
                f"The queue of the gateway has {queued} jobs, its limit. Submit the job again later.", bound=self._bounds.max_queue
            )
        if new.max_jobs is not None:
            unfinished = transaction.count(
                new.principal, _COUNT_UNFINISHED.where(jobs.c.principal == new.principal, jobs.c.parent.is_(None))
            )
            if unfinished + 1 > new.max_jobs:
                raise QueueFull(
                    f"{new.principal!r} has {unfinished} unfinished jobs, its limit. Submit the job again later.", bound=new.max_jobs
                )

    def _next_position(self, transaction: Transaction) -> int:
        self._last_position = max(self._last_position + _STEP, int(transaction.now * 1_000_000) * _STEP)
        return self._last_position

    def _insert_steps(self, transaction: Transaction, composite: Job, new: NewJob) -> None:
        ids = {step.step: step.job_id for step in new.steps}
        for step in new.steps:
            row = step.row(transaction.now, self._next_position(transaction), self._bounds.max_attempts)
            row.parent = composite.job_id
            insert(transaction, row, step.request, [ids[name] for name in step.needs])

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, job_id: str, principal: str | None = None) -> Future[Job]:
        """Return a job. With ``principal`` that of another one is unknown. The future raises `UnknownJob`."""
        return self._database.read(lambda transaction: _existing(transaction, job_id, principal))

    def of_key(self, principal: str, key: str) -> Future[Job | None]:
        """Return the job of an idempotency key, or None."""

        def action(transaction: Transaction) -> Job | None:
            row = transaction.execute(_OF_KEY, {"principal_": principal, "key_": key}).first()
            return None if row is None else job_of(row)

        return self._database.read(action)

    def result(self, job_id: str, principal: str | None = None) -> Future[tuple[Job, Any]]:
        """Return a job and its output, None without one. The future raises `UnknownJob`."""

        def action(transaction: Transaction) -> tuple[Job, Any]:
            job = _existing(transaction, job_id, principal)
            text = transaction.execute(_OUTPUT, {"id_": job_id}).scalar()
            return job, None if text is None else json.loads(text)

        return self._database.read(action)

    def request(self, job_id: str, principal: str | None = None) -> Future[dict[str, Any]]:
        """Return the request of a job. The future raises `UnknownJob`."""

        def action(transaction: Transaction) -> dict[str, Any]:
            _existing(transaction, job_id, principal)
            return request_of(transaction, job_id)

        return self._database.read(action)

    def newest(
        self,
        *,
        principal: str | None = None,
        statuses: Sequence[str] = (),
        target: str | None = None,
        dialect: str | None = None,
        parent: str | None = None,
        before: float | None = None,
        last: str | None = None,
        containing: Sequence[str] = (),
        limit: int = 100,
    ) -> Future[list[Job]]:
        """Return jobs, newest first, without the steps of composites unless ``parent`` is one. ``before`` continues after an earlier list:
        it is the time at which the last job of that list was created. With ``last``, the id of that job, those of the same time follow too.
        ``containing`` are texts that the JSON of ``extra`` contains, without regard to case.
        """
        if not 0 < limit <= _MAX_ROWS or not set(statuses) <= set(STATES):
            raise InvalidArgument(f"The limit must be 1 to {_MAX_ROWS}, and a status one of {', '.join(STATES)}.")
        for value in (target, dialect, parent, last):
            if value is not None:
                check_name(value, "filter")
        equal = {"principal": principal, "target": target, "dialect": dialect}
        wanted = [jobs.c[name] == value for name, value in equal.items() if value is not None]
        wanted += [jobs.c.parent.is_(None) if parent is None else jobs.c.parent == parent]
        wanted += [jobs.c.status.in_(statuses)] if statuses else []
        if before is not None:
            same = sa.false() if last is None else sa.and_(jobs.c.created == before, jobs.c.job_id > last)
            wanted.append(sa.or_(jobs.c.created < before, same))
        wanted += [jobs.c.extra.icontains(text, autoescape=True) for text in containing]
        statement = select_jobs.where(*wanted).order_by(jobs.c.created.desc(), jobs.c.job_id).limit(limit)
        return self._database.read(lambda transaction: [job_of(row) for row in transaction.execute(statement)])

    def queue(self, *, principal: str | None = None, target: str | None = None, limit: int = 1000) -> Future[list[Job]]:
        """Return queued jobs in the order in which they are taken."""
        wanted = [jobs.c.status == IN_QUEUE]
        wanted += [jobs.c.principal == principal] if principal is not None else []
        wanted += [jobs.c.target == target] if target is not None else []
        statement = select_jobs.where(*wanted).order_by(jobs.c.priority.desc(), jobs.c.position, jobs.c.job_id).limit(limit)
        return self._database.read(lambda transaction: [job_of(row) for row in transaction.execute(statement)])

    def ahead_of(self, job: Job) -> Future[int]:
        """Return the number of queued jobs that are taken before a queued job if endpoints can run any of them, at most 1000."""
        earlier = sa.and_(jobs.c.priority == job.priority, jobs.c.position < job.position)
        wanted = jobs.c.status == IN_QUEUE, jobs.c.kind != COMPOSITE, sa.or_(jobs.c.priority > job.priority, earlier)
        found = sa.select(jobs.c.job_id).where(*wanted).limit(_MOST_AHEAD).subquery()
        statement = sa.select(sa.func.count()).select_from(found)
        return self._database.read(lambda transaction: int(transaction.execute(statement).scalar_one()))

    def counts(self, target: str | None = None) -> Future[dict[str, int]]:
        """Return the number of jobs in each state, and of ``retries``."""

        def action(transaction: Transaction) -> dict[str, int]:
            wanted = [] if target is None else [jobs.c.target == target]
            statement = sa.select(jobs.c.status, sa.func.count(), sa.func.sum(jobs.c.retries)).where(*wanted).group_by(jobs.c.status)
            rows = transaction.execute(statement).all()
            return {**dict.fromkeys(STATES, 0), **{row[0]: int(row[1]) for row in rows}, "retries": sum(int(row[2] or 0) for row in rows)}

        return self._database.read(action)

    def unfinished_principals(self) -> Future[list[str]]:
        """Return the names of the principals that have unfinished jobs."""
        statement = sa.select(jobs.c.principal).where(jobs.c.status.not_in(FINAL)).distinct()
        return self._database.read(lambda transaction: list(transaction.execute(statement).scalars()))

    def events(
        self, after: int, *, job_id: str | None = None, principal: str | None = None, kind: str | None = None, limit: int = 1000
    ) -> Future[list[Event]]:
        """Return events with a number above ``after``, in order."""
        equal = {"job_id": job_id, "principal": principal, "kind": kind}
        wanted = [events.c.seq > after, *(events.c[name] == value for name, value in equal.items() if value is not None)]
        statement = sa.select(*_EVENT_COLUMNS).where(*wanted).order_by(events.c.seq).limit(limit)
        return self._database.read(lambda transaction: [event_of(row) for row in transaction.execute(statement)])

    def last_seq(self) -> Future[int]:
        """Return the number of the newest event, or 0."""
        return self._database.read(lambda transaction: int(transaction.execute(sa.select(sa.func.max(events.c.seq))).scalar() or 0))

    # -- commands -----------------------------------------------------------------------------------------------

    def cancel(self, job_id: str, principal: str | None = None, reason: str = "The job was cancelled by its client.") -> Future[Job]:
        """Cancel a job, and return it; one that has ended is returned unchanged. The future raises `UnknownJob`."""

        def action(transaction: Transaction) -> Job:
            job = _existing(transaction, job_id, principal)
            ended = end(transaction, job_id, CANCELLED, error={"code": "cancelled", "message": reason})
            return ended or find(transaction, job_id) or job

        return self._database.write(action)

    def retry(self, job_id: str, principal: str | None = None) -> Future[Job]:
        """Return a job that failed or timed out to the queue, with a new lifetime. The future raises `UnknownJob`, `InvalidArgument`."""

        def action(transaction: Transaction) -> Job:
            job = _existing(transaction, job_id, principal)
            lifetime = None if job.ttl_at is None else transaction.now + job.ttl_at - job.created
            found = transition(
                transaction, job_id, IN_QUEUE, jobs.c.status.in_(RETRYABLE), queued=transaction.now, started=None, finished=None, expires=None,
                ttl_at=lifetime, not_before=0.0, attempts=0, retries=jobs.c.retries + 1, place=None, error=None, progress=None, call_key=None,
                webhook_state=sa.case((jobs.c.webhook.is_not(None), "waiting"), else_=None), webhook_attempts=0, webhook_at=None, streamed=0,
            )  # fmt: skip
            if found is None:
                raise InvalidArgument(f"Job {job_id!r} is {job.status}; only jobs that are {' or '.join(RETRYABLE)} can be retried.")
            transaction.execute(bodies.update().where(bodies.c.job_id == job_id).values(output=None))
            transaction.execute(events.delete().where(events.c.job_id == job_id, events.c.kind == "stream"))
            add_event(transaction, found, STATUS, {"status": IN_QUEUE, "reason": "retry"})
            if found.kind == COMPOSITE:
                _retry_steps(transaction, found)
            return found

        return self._database.write(action)

    def change(self, job_id: str, principal: str | None = None, *, paused: bool | None = None, priority: int | None = None) -> Future[Job]:
        """Pause, resume or prioritise a queued job with its steps, and return it. The future raises `UnknownJob`, `InvalidArgument`."""
        values = {name: value for name, value in (("paused", paused), ("priority", priority)) if value is not None}

        def action(transaction: Transaction) -> Job:
            job = _existing(transaction, job_id, principal)
            chosen = sa.or_(jobs.c.job_id == job_id, jobs.c.parent == job_id)
            changed = transaction.execute(jobs.update().where(chosen, jobs.c.status == IN_QUEUE).values(**values)).rowcount
            if not changed:
                raise InvalidArgument(f"Job {job_id!r} is {job.status}; only a queued job can be paused, resumed or moved.")
            add_event(transaction, job, "queue", values)
            return find(transaction, job_id) or job

        return self._database.write(action)

    def move(self, job_id: str, principal: str | None = None, *, before: str | None = None) -> Future[Job]:
        """Move a queued job directly before another one, whose priority it takes, or before all others of its own priority.

        The future raises `UnknownJob`, `InvalidArgument`.
        """

        def action(transaction: Transaction) -> Job:
            job = _existing(transaction, job_id, principal)
            if job.kind == COMPOSITE:
                raise InvalidArgument("A composite cannot be moved, because its steps have places of their own. Change its priority.")
            if job.status != IN_QUEUE:
                raise InvalidArgument(f"Job {job_id!r} is {job.status}; only a queued job can be paused, resumed or moved.")
            others = sa.and_(jobs.c.status == IN_QUEUE, jobs.c.job_id != job_id)
            priority = job.priority
            if before is None:
                ahead = sa.and_(others, jobs.c.priority == priority, jobs.c.position < job.position)
                first = transaction.execute(select_jobs.where(ahead).order_by(jobs.c.position).limit(1)).first()
                position = job.position if first is None else _position_before(transaction, job_of(first), others)
            else:
                target = _existing(transaction, before, principal)
                if target.status != IN_QUEUE or target.job_id == job_id:
                    raise InvalidArgument(f"Job {before!r} is {target.status}; move a job before another one that is queued.")
                priority, position = target.priority, _position_before(transaction, target, others)
            moved = {"priority": priority, "position": position}
            transaction.execute(jobs.update().where(jobs.c.job_id == job_id, jobs.c.status == IN_QUEUE).values(**moved))
            add_event(transaction, job, "queue", {"moved": True, "before": before})
            return find(transaction, job_id) or job

        return self._database.write(action)

    def purge(self, target: str, principal: str | None = None) -> Future[int]:
        """Cancel all queued jobs of a target, and return their number."""

        def action(transaction: Transaction) -> int:
            wanted = [jobs.c.status == IN_QUEUE, jobs.c.target == target, jobs.c.parent.is_(None)]
            wanted += [jobs.c.principal == principal] if principal is not None else []
            found = transaction.execute(sa.select(jobs.c.job_id).where(*wanted)).all()
            error = {"code": "cancelled", "message": "The queue was purged."}
            return sum(end(transaction, job_id, CANCELLED, error=error) is not None for (job_id,) in found)

        return self._database.write(action)

    def take_stream(self, job_id: str, principal: str | None = None) -> Future[tuple[Job, list[Event]]]:
        """Return a job and the chunks of its output that no reader has received. The future raises `UnknownJob`."""

        def action(transaction: Transaction) -> tuple[Job, list[Event]]:
            job = _existing(transaction, job_id, principal)
            wanted = events.c.job_id == job_id, events.c.kind == "stream", events.c.seq > job.streamed
            found = [
                event_of(row) for row in transaction.execute(sa.select(*_EVENT_COLUMNS).where(*wanted).order_by(events.c.seq).limit(1000))
            ]
            if found:
                transaction.execute(jobs.update().where(jobs.c.job_id == job_id).values(streamed=found[-1].seq))
            return job, found

        return self._database.write(action)


def _existing(transaction: Transaction, job_id: str, principal: str | None) -> Job:
    """Return a job, or raise `UnknownJob`. The id of another principal's job is unknown."""
    job = find(transaction, job_id)
    if job is None or (principal is not None and job.principal != principal):
        raise UnknownJob(f"Unknown job {job_id[:80]!r}. Its row may have been deleted after its retention.", name=job_id[:80])
    return job


def _same(known: Job, new: NewJob) -> Job:
    """Return the known job of a key, or raise `JobConflict` if it has another request."""
    if known.body_hash != body_hash([new.kind, new.target, new.request]):
        raise JobConflict(
            f"The idempotency key {new.key!r} was used for another request, of job {known.job_id}. Use a new key.", job=known.job_id
        )
    return known


def _retry_steps(transaction: Transaction, composite: Job) -> None:
    """Return the steps of a composite that did not complete to the queue."""
    rows = transaction.execute(select_jobs.where(jobs.c.parent == composite.job_id)).all()
    steps = [job_of(row) for row in rows]
    completed = {step.job_id for step in steps if step.status == COMPLETED}
    for step in steps:
        if step.job_id in completed:
            continue
        needed = transaction.execute(sa.select(needs.c.needed).where(needs.c.job_id == step.job_id)).scalars()
        left = sum(other not in completed for other in needed)
        again = {"status": IN_QUEUE, "queued": transaction.now, "started": None, "finished": None, "expires": None, "attempts": 0}
        rest = {"place": None, "error": None, "progress": None, "call_key": None, "ttl_at": composite.ttl_at, "waits_for": left}
        transaction.execute(jobs.update().where(jobs.c.job_id == step.job_id).values(**again, **rest))
    transaction.execute(jobs.update().where(jobs.c.job_id == composite.job_id).values(waits_for=len(steps) - len(completed)))


def _position_before(transaction: Transaction, target: Job, others: Any) -> int:
    """Return a position between a job and the one before it, of any priority, after making room if they are adjacent.

    So jobs keep their order when their priorities change later.
    """
    earlier = sa.and_(others, jobs.c.position < target.position)
    previous = transaction.execute(sa.select(sa.func.max(jobs.c.position)).where(earlier)).scalar()
    if previous is None:
        return target.position - _STEP
    if target.position - int(previous) < 2:
        transaction.execute(jobs.update().where(earlier).values(position=jobs.c.position - _ROOM))
        previous = int(previous) - _ROOM
    return (int(previous) + target.position) // 2
