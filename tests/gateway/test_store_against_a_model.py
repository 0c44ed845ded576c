"""Any sequence of submissions, claims, results, commands and expired leases leaves the store as a simple model says, on both databases."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from yggdrasill.errors import InvalidArgument, JobConflict, QueueFull, UnknownJob
from yggdrasill.gateway.database import Database
from yggdrasill.gateway.models import GRAPH, POOL, PREDECESSORS, Job, NewJob
from yggdrasill.gateway.store import Bounds, JobStore
from yggdrasill.gateway.work import WORKER, Claim, Work

MAX_QUEUE = 8
OWNERS = st.sampled_from(["forge.1", "mill.1"])
PICK = st.integers(0, 30)
COMMON = settings(
    phases=[Phase.explicit, Phase.generate], deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@dataclass
class Known:
    """A job as the model knows it. ``claims`` are those of gateways and workers, of which only the last counts."""

    job_id: str
    target: str
    status: str = "IN_QUEUE"
    priority: int = 0
    paused: bool = False
    attempts: int = 0
    holder: str | None = None
    lease_is_over: bool = False
    output: Any = None
    claims: list[Job] = field(default_factory=list)


class Jobs(RuleBasedStateMachine):
    """Two gateways and two workers on one store, each operation of which ends before the next one."""

    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        self.store, self.work = JobStore(self.database, Bounds(MAX_QUEUE, 2)), Work(self.database)
        self.run = uuid.uuid4().hex
        self.principal, self.graph, self.pool = f"p-{self.run[:8]}", f"graph-{self.run}", f"pool-{self.run}"
        self.jobs: dict[str, Known] = {}
        self.queue: list[str] = []
        self.keys: dict[str, tuple[str, int]] = {}
        self.numbers = itertools.count()

    def teardown(self) -> None:
        for job in self.jobs.values():
            self.store.cancel(job.job_id).result()

    def in_order(self) -> list[Known]:
        return sorted((self.jobs[job_id] for job_id in self.queue), key=lambda job: -job.priority)

    def some(self, pick: int) -> Known:
        return list(self.jobs.values())[pick % len(self.jobs)]

    def new(self, kind: str, key: str | None = None, x: int = 0, priority: int = 0) -> NewJob:
        target = self.graph if kind == GRAPH else self.pool
        return NewJob(kind, target, {"x": x}, "bare", self.principal, key=key, priority=priority)

    def ended(self, job: Known, status: str) -> None:
        job.status, job.holder = status, None
        if job.job_id in self.queue:
            self.queue.remove(job.job_id)

    # -- clients ------------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from([GRAPH, POOL]), priority=st.sampled_from([0, 0, 5]))
    def submit(self, kind: str, priority: int) -> None:
        submitted = self.store.submit(self.new(kind, priority=priority))
        if len(self.queue) >= MAX_QUEUE:
            assert isinstance(submitted.exception(), QueueFull)
            return
        job, created = submitted.result()
        assert created
        self.jobs[job.job_id] = Known(job.job_id, job.target, priority=priority)
        self.queue.append(job.job_id)

    @rule(key=st.sampled_from("ab"), x=st.integers(0, 1))
    def submit_with_a_key(self, key: str, x: int) -> None:
        submitted = self.store.submit(self.new(GRAPH, key=f"{key}-{self.run}", x=x))
        if key in self.keys:
            job_id, first = self.keys[key]
            if first == x:
                assert (submitted.result()[0].job_id, submitted.result()[1]) == (job_id, False)
            else:
                assert isinstance(submitted.exception(), JobConflict)
        elif len(self.queue) >= MAX_QUEUE:
            assert isinstance(submitted.exception(), QueueFull)
        else:
            job, _ = submitted.result()
            self.keys[key] = job.job_id, x
            self.jobs[job.job_id] = Known(job.job_id, job.target)
            self.queue.append(job.job_id)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        job = self.some(pick)
        found = self.store.cancel(job.job_id, self.principal).result()
        if job.status in ("IN_QUEUE", "IN_PROGRESS"):
            self.ended(job, "CANCELLED")
        assert found.status == job.status

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        job = self.some(pick)
        retried = self.store.retry(job.job_id)
        if job.status in ("FAILED", "TIMED_OUT"):
            assert retried.result().status == "IN_QUEUE"
            job.status, job.attempts = "IN_QUEUE", 0
            job.output = None
            self.requeue(job)
        else:
            assert isinstance(retried.exception(), InvalidArgument)

    def requeue(self, job: Known) -> None:
        """A job returns to its place, which its position remembers."""
        found = [entry.job_id for entry in self.store.queue(principal=self.principal).result()]
        self.queue = [entry for entry in found if entry in self.queue or entry == job.job_id] if job.job_id in found else self.queue
        self.queue = sorted(self.queue, key=lambda job_id: self.positions()[job_id])

    def positions(self) -> dict[str, int]:
        return {entry.job_id: entry.position for entry in self.store.queue(principal=self.principal).result()}

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, paused=st.booleans())
    def pause_or_resume(self, pick: int, paused: bool) -> None:
        job = self.some(pick)
        changed = self.store.change(job.job_id, paused=paused)
        if job.status == "IN_QUEUE":
            changed.result()
            job.paused = paused
        else:
            assert isinstance(changed.exception(), InvalidArgument)

    @precondition(lambda self: self.queue)
    @rule(pick=PICK, priority=st.sampled_from([-5, 0, 5]))
    def prioritise(self, pick: int, priority: int) -> None:
        job = self.jobs[self.queue[pick % len(self.queue)]]
        self.store.change(job.job_id, priority=priority).result()
        job.priority = priority

    @precondition(lambda self: self.queue)
    @rule(pick=PICK)
    def move_to_the_front(self, pick: int) -> None:
        job_id = self.queue[pick % len(self.queue)]
        self.store.move(job_id).result()
        same = [other for other in self.queue if self.jobs[other].priority == self.jobs[job_id].priority]
        if same[0] != job_id:
            self.queue.remove(job_id)
            self.queue.insert(self.queue.index(same[0]), job_id)

    @precondition(lambda self: len(self.queue) > 1)
    @rule(pick=PICK, before=PICK)
    def move_before_another(self, pick: int, before: int) -> None:
        job_id, other = self.queue[pick % len(self.queue)], self.queue[before % len(self.queue)]
        moved = self.store.move(job_id, before=other)
        if job_id == other:
            assert isinstance(moved.exception(), InvalidArgument)
            return
        moved.result()
        self.jobs[job_id].priority = self.jobs[other].priority
        self.queue.remove(job_id)
        self.queue.insert(self.queue.index(other), job_id)

    @rule()
    def purge(self) -> None:
        waiting = [self.jobs[job_id] for job_id in self.queue if self.jobs[job_id].target == self.pool]
        assert self.store.purge(self.pool, self.principal).result() == len(waiting)
        for job in waiting:
            self.ended(job, "CANCELLED")

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def look_for_a_job_of_another(self, pick: int) -> None:
        for future in (self.store.get(self.some(pick).job_id, "other"), self.store.cancel(self.some(pick).job_id, "other")):
            assert isinstance(future.exception(), UnknownJob)

    # -- those who work -----------------------------------------------------------------------------------------

    def free(self, target: str) -> list[Known]:
        return [job for job in self.in_order() if job.target == target and not job.paused]

    def took(self, job: Known, claim: Job, holder: str) -> None:
        self.queue.remove(job.job_id)
        job.status, job.holder, job.lease_is_over = "IN_PROGRESS", holder, False
        job.attempts += 1
        job.claims.append(claim)
        assert claim.attempts == job.attempts

    @rule(owner=OWNERS, over=st.booleans())
    def both_gateways_claim(self, owner: str, over: bool) -> None:
        groups = [group for group in self.work.groups().result()[0] if group.target == self.graph]
        free = self.free(self.graph)
        assert [group.count for group in groups] == ([len(free)] if free else [])
        if not groups:
            return
        candidates = self.work.candidates(groups[0], 2).result()
        assert [job.job_id for job in candidates] == [job.job_id for job in free[:2]]
        lease = -1.0 if over else 60.0
        other = "mill.1" if owner == "forge.1" else "forge.1"
        taken = [self.work.claim([Claim(job, f"at-{name}", name, lease) for job in candidates]) for name in (owner, other)]
        assert taken[1].result() == []
        for claimed, request, _ in taken[0].result():
            assert set(request) == {"x"}
            self.took(self.jobs[claimed.job_id], claimed, owner)
            self.jobs[claimed.job_id].lease_is_over = over

    @rule(name=st.sampled_from(["w1", "w2"]), count=st.integers(1, 3), over=st.booleans())
    def a_worker_takes(self, name: str, count: int, over: bool) -> None:
        expected = [job.job_id for job in self.free(self.pool)[:count]]
        taken = self.work.claim_for_worker(self.pool, name, count, -1.0 if over else 60.0).result()
        assert [job.job_id for job, _ in taken] == expected
        for claimed, _ in taken:
            self.took(self.jobs[claimed.job_id], claimed, WORKER)
            self.jobs[claimed.job_id].lease_is_over = over

    def some_claim(self, pick: int) -> tuple[Known, Job, bool] | None:
        claims = [
            (job, claim, claim is job.claims[-1] and job.status == "IN_PROGRESS") for job in self.jobs.values() for claim in job.claims
        ]
        return claims[pick % len(claims)] if claims else None

    @rule(pick=PICK, completed=st.booleans())
    def a_result_arrives(self, pick: int, completed: bool) -> None:
        found = self.some_claim(pick)
        if found is None:
            return
        job, claim, counts = found
        number = next(self.numbers)
        status = "COMPLETED" if completed else "FAILED"
        ended = self.work.finish(claim, status, output={"n": number} if completed else None, error=None if completed else {"code": "x"})
        assert (ended.result() is not None) == counts
        if counts:
            job.output = {"n": number} if completed else None
            self.ended(job, status)

    @rule(pick=PICK, counted=st.booleans())
    def a_job_is_given_back(self, pick: int, counted: bool) -> None:
        found = self.some_claim(pick)
        if found is None:
            return
        job, claim, counts = found
        given = self.work.give_back(claim, counted=counted, error={"code": "lost", "message": "lost"}).result()
        assert (given is not None) == counts
        if given is not None:
            self.came_back(job, given.status, counted)

    def came_back(self, job: Known, status: str, counted: bool) -> None:
        assert status == ("FAILED" if counted and job.attempts >= 2 else "IN_QUEUE")
        if status == "FAILED":
            self.ended(job, "FAILED")
            return
        job.status, job.holder = "IN_QUEUE", None
        job.attempts -= not counted
        self.queue.append(job.job_id)
        self.requeue(job)

    @rule(pick=PICK)
    def progress_is_reported(self, pick: int) -> None:
        found = self.some_claim(pick)
        if found is not None:
            assert self.work.report(found[1], "progress", {"n": pick}, progress={"n": pick}).result() == found[2]

    @rule(owner=OWNERS)
    def leases_are_renewed(self, owner: str) -> None:
        held = self.work.renew(owner, 60.0).result()
        mine = {job.job_id for job in self.jobs.values() if job.status == "IN_PROGRESS" and job.holder == owner}
        assert held & self.jobs.keys() == mine
        for job_id in mine:
            self.jobs[job_id].lease_is_over = False

    @rule(owner=OWNERS, restarted=st.booleans())
    def expired_claims_are_taken_over(self, owner: str, restarted: bool) -> None:
        node = owner.partition(".")[0] + "." if restarted else None
        new = f"{owner}-new" if restarted else owner
        taken = {job.job_id for job, _, _ in self.work.take_over(new, node, 60.0).result()}
        running = [job for job in self.jobs.values() if job.status == "IN_PROGRESS" and job.holder != WORKER]
        expected = [
            job for job in running if job.lease_is_over or (node is not None and str(job.holder).startswith(node) and job.holder != new)
        ]
        assert taken & self.jobs.keys() == {job.job_id for job in expected}
        for job in expected:
            job.holder, job.lease_is_over = new, False
            job.claims.append(replace(job.claims[-1], owner=new))

    @rule()
    def time_passes(self) -> None:
        changed = {job.job_id: job.status for job in self.work.sweep().result()}
        lost = [job for job in self.jobs.values() if job.status == "IN_PROGRESS" and job.holder == WORKER and job.lease_is_over]
        assert changed.keys() & self.jobs.keys() == {job.job_id for job in lost}
        for job in lost:
            self.came_back(job, changed[job.job_id], counted=True)

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def the_rows_are_those_of_the_model(self) -> None:
        rows = {row.job_id: row for row in self.store.newest(principal=self.principal, limit=10_000).result()}
        assert {job_id: (row.status, row.attempts) for job_id, row in rows.items()} == {
            job.job_id: (job.status, job.attempts) for job in self.jobs.values()
        }
        assert [row.job_id for row in self.store.queue(principal=self.principal).result()] == [job.job_id for job in self.in_order()]
        assert all((row.owner is not None) == (row.status == "IN_PROGRESS") for row in rows.values())

    @invariant()
    def events_are_legal_transitions(self) -> None:
        found: dict[str, list[str]] = {}
        for event in self.store.events(0, principal=self.principal, kind="status", limit=10_000).result():
            found.setdefault(event.job_id, []).append(event.data["status"])
        for job_id, states in found.items():
            assert states[0] == "IN_QUEUE"
            assert states[-1] == self.jobs[job_id].status
            assert all(earlier in PREDECESSORS[later] for earlier, later in itertools.pairwise(states))

    @invariant()
    def outputs_are_those_of_the_counted_results(self) -> None:
        for job in list(self.jobs.values())[-5:]:
            _, output = self.store.result(job.job_id).result()
            assert json.dumps(output) == json.dumps(job.output)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    found = Database(url)
    yield found
    found.close()


def test_the_store_behaves_as_the_model(database: Database) -> None:
    machine = type("JobsOnADatabase", (Jobs,), {"database": database})
    run_state_machine_as_test(machine, settings=settings(COMMON, max_examples=10, stateful_step_count=25))


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_the_store_behaves_as_the_model_for_long(database: Database) -> None:
    machine = type("JobsOnADatabase", (Jobs,), {"database": database})
    run_state_machine_as_test(machine, settings=settings(COMMON, max_examples=300, stateful_step_count=60))
