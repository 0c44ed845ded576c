"""What all writes of a gateway's store share: rows as jobs, guarded transitions, events, and the progress of composites."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from yggdrasill.errors import YggdrasillError
from yggdrasill.gateway.database import Transaction
from yggdrasill.gateway.models import COMPOSITE, JOB_FIELDS, PREDECESSORS, STATUS, Event, Job
from yggdrasill.gateway.steps import compose
from yggdrasill.gateway.tables import JSON_COLUMNS, bodies, events, jobs, needs
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, IN_PROGRESS, IN_QUEUE

__all__ = [
    "Transition",
    "add_event",
    "end",
    "event_of",
    "find",
    "give_back",
    "insert",
    "is_queued",
    "job_of",
    "request_of",
    "select_jobs",
    "to_text",
    "transition",
]

QUEUED = "queued"
"""The key of the count of queued jobs in a `Transaction`."""

#: A job that may be taken, apart from the time before which it is not.
is_queued = sa.and_(jobs.c.status == IN_QUEUE, jobs.c.paused.is_(False), jobs.c.waits_for == 0, jobs.c.kind != COMPOSITE)
select_jobs = sa.select(*(jobs.c[name] for name in JOB_FIELDS))


_JSON_INDEXES = tuple(JOB_FIELDS.index(name) for name in JSON_COLUMNS)

# What every job executes is built once: building a statement takes longer than SQLite takes to execute it.
_FIND = select_jobs.where(jobs.c.job_id == sa.bindparam("id_"))
_REQUEST = sa.select(bodies.c.request).where(bodies.c.job_id == sa.bindparam("id_"))
_INSERT, _INSERT_BODY, _INSERT_EVENT = jobs.insert(), bodies.insert(), events.insert().inline()
_SET_OUTPUT = bodies.update().where(bodies.c.job_id == sa.bindparam("id_")).values(output=sa.bindparam("output_"))
_EXPIRES = sa.bindparam("now_", type_=sa.Float) + jobs.c.retention
_WEBHOOK_STATE = sa.case((jobs.c.webhook.is_not(None), "pending"), else_=None)


def to_text(value: Any) -> str:
    """Return a JSON value as text. ASCII, because a lone surrogate has no UTF-8 form; PostgreSQL stores no NUL, which JSON escapes."""
    return json.dumps(value, separators=(",", ":"))


def job_of(row: Sequence[Any]) -> Job:
    """Return the job of a row of `select_jobs`."""
    values = list(row)
    for index in _JSON_INDEXES:
        text = values[index]
        if text is not None:
            values[index] = {} if text == "{}" else json.loads(text)
    return Job(*values)


def find(transaction: Transaction, job_id: str, *conditions: Any) -> Job | None:
    """Return the job with this id, or None."""
    if not job_id.isprintable():
        # PostgreSQL refuses some of the other texts
        return None
    row = transaction.execute(_FIND.where(*conditions) if conditions else _FIND, {"id_": job_id}).first()
    return None if row is None else job_of(row)


def request_of(transaction: Transaction, job_id: str) -> dict[str, Any]:
    """Return the request of a job; ``{}`` if the job does not exist."""
    text = transaction.execute(_REQUEST, {"id_": job_id}).scalar()
    return {} if text is None else dict(json.loads(text))


def insert(transaction: Transaction, job: Job, request: Mapping[str, Any], needed: Sequence[str] = ()) -> None:
    """Insert a job with its request and its first event."""
    values = {name: getattr(job, name) for name in JOB_FIELDS}
    values |= {name: None if values[name] is None else to_text(values[name]) for name in JSON_COLUMNS}
    transaction.execute(_INSERT, values)
    transaction.execute(_INSERT_BODY, {"job_id": job.job_id, "request": to_text(request)})
    if needed:
        transaction.execute(needs.insert(), [{"job_id": job.job_id, "needed": other} for other in needed])
    transaction.add(QUEUED)
    add_event(transaction, job, STATUS, {"status": job.status})


class Transition:
    """A change of a row to ``status``, built once for many uses.

    ``conditions`` must hold besides the state that precedes it. Columns are set to the expressions in ``computed``, and those of ``given`` to
    the values that `apply` receives. Further parameters of the expressions are bound by `apply` too.
    """

    def __init__(
        self, status: str, conditions: Sequence[Any] = (), given: Sequence[str] = (), computed: Mapping[str, Any] | None = None
    ) -> None:
        self._json = [name for name in given if name in JSON_COLUMNS]
        self._given = tuple(given)
        values = {**(computed or {}), **{name: sa.bindparam(f"new_{name}", type_=jobs.c[name].type) for name in given}}
        self._statement = (
            jobs.update()
            .where(jobs.c.job_id == sa.bindparam("id_"), jobs.c.status.in_(PREDECESSORS[status]), *conditions)
            .values(status=status, **values)
            .returning(*(jobs.c[name] for name in JOB_FIELDS))
        )

    def apply(self, transaction: Transaction, job_id: str, values: Mapping[str, Any], **parameters: Any) -> Job | None:
        """Change the row of a job and return it, or None if its state may not precede this one or a condition fails."""
        new = {**values, **{name: to_text(values[name]) for name in self._json if values[name] is not None}}
        bound = {f"new_{name}": new[name] for name in self._given}
        row = transaction.execute(self._statement, {"id_": job_id, **bound, **parameters}).first()
        if row is None:
            return None
        transaction.counts.pop(QUEUED, None)
        return job_of(row)


def transition(transaction: Transaction, job_id: str, status: str, *conditions: Any, **values: Any) -> Job | None:
    """Bring a row to ``status`` and set ``values``, which may be expressions. Return as `Transition.apply`."""
    computed = {name: value for name, value in values.items() if isinstance(value, sa.ColumnElement)}
    given = {name: value for name, value in values.items() if name not in computed}
    return Transition(status, conditions, tuple(given), computed).apply(transaction, job_id, given)


_IS_CLAIMED = (jobs.c.status == IN_PROGRESS, jobs.c.owner == sa.bindparam("owner_"), jobs.c.call_key == sa.bindparam("call_key_"))
"""The conditions under which a running job still is that of a claim, whose owner and key are the parameters."""

_ENDED = ("finished", "error", "owner", "lease_until", "webhook_at")
_ENDS = {status: Transition(status, (), _ENDED, {"expires": _EXPIRES, "webhook_state": _WEBHOOK_STATE}) for status in FINAL}
_ENDS_OF_CLAIMS = {
    status: Transition(status, _IS_CLAIMED, _ENDED, {"expires": _EXPIRES, "webhook_state": _WEBHOOK_STATE}) for status in FINAL
}


def end(
    transaction: Transaction,
    job_id: str,
    status: str,
    *conditions: Any,
    claimed: Job | None = None,
    error: Mapping[str, Any] | None = None,
    output: Any = None,
) -> Job | None:
    """End a job: its output, its last event, its webhook, and what follows from it for a composite. Return as `Transition.apply`.

    With ``claimed`` the job must still be that of the claim; ``conditions`` must hold too.
    """
    now = transaction.now
    values = {"finished": now, "error": None if error is None else dict(error), "owner": None, "lease_until": None, "webhook_at": now}
    if claimed is not None:
        job = _ENDS_OF_CLAIMS[status].apply(transaction, job_id, values, now_=now, owner_=claimed.owner, call_key_=claimed.call_key)
    elif conditions:
        computed = {"expires": now + jobs.c.retention, "webhook_state": _WEBHOOK_STATE}
        job = transition(transaction, job_id, status, *conditions, **values, **computed)
    else:
        job = _ENDS[status].apply(transaction, job_id, values, now_=now)
    if job is None:
        return None
    if output is not None:
        transaction.execute(_SET_OUTPUT, {"id_": job_id, "output_": to_text(output)})
    add_event(transaction, job, STATUS, {"status": status, **({} if error is None else {"error": dict(error)})})
    if job.kind == COMPOSITE and status != COMPLETED:
        _cancel_steps(transaction, job.job_id)
    if job.parent is not None:
        _step_ended(transaction, job)
    return job


def _cancel_steps(transaction: Transaction, composite_id: str) -> None:
    unfinished = sa.select(jobs.c.job_id).where(jobs.c.parent == composite_id, jobs.c.status.not_in(FINAL))
    for (job_id,) in transaction.execute(unfinished).all():
        end(transaction, job_id, CANCELLED, error={"code": "composite_ended", "message": "The composite of this step has ended."})


def _step_ended(transaction: Transaction, job: Job) -> None:
    """Release the steps that need this one, and end the composite with its last step or with one that did not complete."""
    if job.status != COMPLETED:
        facts = dict(job.error or {"code": job.status.lower(), "message": f"Step {job.step!r} ended as {job.status}."})
        end(transaction, str(job.parent), job.status, error={**facts, "step": job.step})
        return
    dependants = sa.select(needs.c.job_id).where(needs.c.needed == job.job_id)
    transaction.execute(jobs.update().where(jobs.c.job_id.in_(dependants)).values(waits_for=jobs.c.waits_for - 1))
    left = transaction.execute(
        jobs.update().where(jobs.c.job_id == job.parent).values(waits_for=jobs.c.waits_for - 1).returning(jobs.c.waits_for)
    ).scalar()
    if left == 0:
        rows = transaction.execute(
            sa.select(jobs.c.step, jobs.c.place, bodies.c.output)
            .join_from(jobs, bodies, bodies.c.job_id == jobs.c.job_id)
            .where(jobs.c.parent == job.parent)
        ).all()
        outputs = {step: {**json.loads(output), "endpoint": place} for step, place, output in rows}
        try:
            output = compose(request_of(transaction, str(job.parent)), outputs)
        except YggdrasillError as error:
            end(transaction, str(job.parent), FAILED, error={"code": "output", "message": error.message})
        else:
            end(transaction, str(job.parent), COMPLETED, output=output)


def give_back(
    transaction: Transaction, job: Job, *conditions: Any, delay: float = 0.0, error: Mapping[str, Any] | None = None, counted: bool = True
) -> Job | None:
    """Return a running job to the queue, or fail it with ``error`` if it has had all its attempts. Return as `transition`.

    Without ``counted`` the attempt does not count, because the endpoint did not accept the job.
    """
    if counted and job.attempts >= job.max_attempts:
        return end(transaction, job.job_id, FAILED, *conditions, error=error)
    found = transition(
        transaction,
        job.job_id,
        IN_QUEUE,
        jobs.c.status == IN_PROGRESS,
        *conditions,
        queued=transaction.now,
        not_before=transaction.now + delay,
        started=None,
        owner=None,
        lease_until=None,
        place=None,
        progress=None,
        attempts=jobs.c.attempts - (0 if counted else 1),
        retries=jobs.c.retries + (1 if counted else 0),
    )
    if found is not None:
        reason = {} if error is None else {"reason": error.get("message")}
        add_event(transaction, found, STATUS, {"status": IN_QUEUE, **reason})
    return found


def add_event(transaction: Transaction, job: Job, kind: str, data: Mapping[str, Any]) -> None:
    """Append an event to those of a job."""
    values = {"job_id": job.job_id, "principal": job.principal, "kind": kind, "data": to_text(data), "created": transaction.now}
    transaction.execute(_INSERT_EVENT, values)
    transaction.wrote_events = True


def event_of(row: Any) -> Event:
    """Return the event of a row with ``seq, job_id, principal, kind, data, created``."""
    seq, job_id, principal, kind, data, created = row
    return Event(int(seq), job_id, principal, kind, json.loads(data), created)
