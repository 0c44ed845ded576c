"""The dispatcher of a gateway: takes queued jobs for endpoints that have room, follows them, and does what leases and times demand.

Several gateways on one database do the same; claims and leases decide which one has a job. A gateway that is killed leaves jobs with
leases, which it resumes itself when it is started again with its data folder, and which another one resumes when they expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from yggdrasill.errors import EndpointUnreachable, QueueFull, StorageFailed, TimedOut, UnknownEndpoint, UnknownGraph, YggdrasillError
from yggdrasill.gateway.endpoints import Fleet, classes_of, on_loop_thread
from yggdrasill.gateway.execution import execute
from yggdrasill.gateway.files import Files
from yggdrasill.gateway.hub import Hub
from yggdrasill.gateway.models import GRAPH, Event, Job
from yggdrasill.gateway.store import JobStore
from yggdrasill.gateway.work import Claim, Group, Work
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, IN_QUEUE, TIMED_OUT
from yggdrasill.remote.retry import RetryBudget
from yggdrasill.server_ext.logs import Redactor

__all__ = ["Dispatcher", "Pace", "error_of"]

Result = TypeVar("Result")
_LOG = logging.getLogger("yggdrasill.gateway")
_PROGRESS_SECONDS = 0.5
_STORE_DELAY = 0.2
_MAX_STORE_DELAY = 5.0
_MAX_AVOIDED = 10_000
_MAX_TAKEN = 64
_MAX_MESSAGE = 4000


@dataclass(frozen=True)
class Pace:
    """How often a dispatcher looks after its jobs, and for how long it promises to, in seconds."""

    lease: float = 15.0
    tend: float = 0.5
    poll: float = 0.5
    refresh: float = 2.0
    retry_delay: float = 0.5


def error_of(error: Exception, redactor: Redactor) -> dict[str, Any]:
    """Return an error for a row: code, message and the facts that a client can use, without secrets."""
    if not isinstance(error, YggdrasillError):
        return {"code": "internal", "type": type(error).__name__, "message": "The gateway failed to run this job. Its log has the reason."}
    facts: dict[str, Any] = {"code": str(error.details.get("code") or _code(error)), "type": type(error).__name__}
    facts["message"] = error.message[:_MAX_MESSAGE]
    for name in ("node", "node_id", "node_type", "exception_type", "exception_message", "errors", "node_errors", "missing", "endpoint"):
        if error.details.get(name):
            facts[name] = error.details[name]
    cleaned: dict[str, Any] = redactor.value(facts)
    return cleaned


def _code(error: YggdrasillError) -> str:
    """Return the class of an error in snake case: ``block_failed``."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() and index else letter.lower() for index, letter in enumerate(name))


class Dispatcher:
    """Runs the jobs of ``work`` on the endpoints of ``fleet``. ``owner`` names this start of this gateway, ``node`` all its starts.
    ``files`` moves their files.

    ``redactor`` removes secrets from errors and events. A job that has to run again after its endpoint was lost takes from ``budget``.
    """

    def __init__(
        self,
        store: JobStore,
        work: Work,
        fleet: Fleet,
        hub: Hub,
        redactor: Redactor,
        files: Files,
        *,
        owner: str,
        node: str | None,
        pace: Pace,
        budget: RetryBudget,
    ) -> None:
        self._store, self._work, self._fleet, self._hub, self._redactor = store, work, fleet, hub, redactor
        self._owner, self._node, self._pace, self._budget, self._files = owner, node, pace, budget, files
        self._running: dict[str, asyncio.Task[None]] = {}
        #: Jobs whose result is being stored; they are not cancelled any more.
        self._ending: set[str] = set()
        #: Endpoints at which a job was lost, by its id.
        self._avoided: dict[str, set[str]] = {}
        self._wake = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._is_closing = False

    @property
    def running(self) -> int:
        """The number of jobs that this gateway follows."""
        return len(self._running)

    def wake(self) -> None:
        """Look for queued jobs now."""
        self._wake.set()

    async def start(self) -> None:
        """Resume the jobs of earlier starts, and begin to take jobs."""
        await self._fleet.refresh()
        await self._resume(self._node)
        self._loops = [asyncio.create_task(self._forever(act)) for act in (self._dispatch_once, self._tend_once, self._refresh_once)]

    async def close(self, grace: float) -> None:
        """Take no more jobs, wait ``grace`` seconds for those that run, and give back the others."""
        self._is_closing = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=grace)
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_event(self, event: Event) -> None:
        """Stop following a job that was cancelled or whose time is over, and look for jobs that became free."""
        status = event.data.get("status")
        task = self._running.get(event.job_id)
        if status in (CANCELLED, TIMED_OUT) and task is not None and event.job_id not in self._ending:
            task.cancel()
        # the end of a job of this gateway wakes it by itself
        if status == IN_QUEUE or (status in FINAL and task is None):
            self.wake()

    # -- the loops ------------------------------------------------------------------------------------------------

    async def _forever(self, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await act()
            except StorageFailed as error:
                _LOG.warning("The store does not answer: %s", error.message)
                await asyncio.sleep(_MAX_STORE_DELAY / 5)
            except YggdrasillError as error:
                _LOG.warning("The gateway could not look after its jobs: %s", error.message)
                await asyncio.sleep(self._pace.poll)
            except Exception:  # noqa: BLE001 - logged; the loop must survive every error
                _LOG.exception("The gateway could not look after its jobs")
                await asyncio.sleep(self._pace.poll)

    async def _refresh_once(self) -> None:
        problem = self._fleet.read_again()
        if problem is not None:
            _LOG.warning("The endpoints read before stay in use: %s", problem)
        await self._fleet.refresh(load=self._pace.refresh)
        self.wake()
        await asyncio.sleep(self._pace.refresh)

    async def _tend_once(self) -> None:
        """Extend leases, stop jobs that another gateway has taken, and let the store end what is overdue."""
        known = set(self._running) - self._ending
        held = await asyncio.wrap_future(self._work.renew(self._owner, self._pace.lease))
        for job_id in known - held - self._ending:
            if job_id in self._running:
                self._running[job_id].cancel()
        if await asyncio.wrap_future(self._work.sweep()):
            self.wake()
        await self._resume(None)
        await asyncio.sleep(self._pace.tend)

    async def _resume(self, dead: str | None) -> None:
        for job, request, needed in await asyncio.wrap_future(self._work.take_over(self._owner, dead, self._pace.lease)):
            if job.job_id not in self._running:
                _LOG.info("Resuming job %s at %s", job.job_id, job.place)
                self._begin(job, request, needed)

    async def _dispatch_once(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._pace.poll)
        self._wake.clear()
        is_more = True
        while is_more:
            claims, is_more = await self._choose()
            if not claims:
                return
            for job, request, needed in await asyncio.wrap_future(self._work.claim(claims)):
                self._budget.requested()
                self._begin(job, request, needed)

    # -- placing ----------------------------------------------------------------------------------------------------

    async def _choose(self) -> tuple[list[Claim], bool]:
        """Return the jobs to be taken, in the order of the queue, each with the least busy endpoint that has room for it, and whether there may be more."""
        taken: Counter[str] = Counter()
        candidates: list[tuple[Job, list[str]]] = []
        is_more = False
        groups, running = await asyncio.wrap_future(self._work.groups())
        self._fleet.count(running)
        for group in groups:
            names = await self._names_for(group)
            if self._fleet.room(names, taken) is not None:
                found = await asyncio.wrap_future(self._work.candidates(group, _MAX_TAKEN))
                candidates += [(job, names) for job in found]
                is_more = is_more or len(found) == _MAX_TAKEN
        candidates.sort(key=lambda item: (-item[0].priority, item[0].position, item[0].job_id))
        claims = []
        for job, names in candidates:
            place = self._fleet.room(self._allowed(job, names), taken)
            if place is not None:
                taken[place] += 1
                claims.append(Claim(job, place, self._owner, self._pace.lease))
        return claims, is_more

    async def _names_for(self, group: Group) -> list[str]:
        classes = self._fleet.classes_of_target(group.target)
        if group.kind != GRAPH and classes is None:
            first = await asyncio.wrap_future(self._work.candidates(group, 1))
            if not first:
                return []
            request = await asyncio.wrap_future(self._store.request(first[0].job_id))
            classes = classes_of(request.get("prompt") or {})
            self._fleet.remember_classes(group.target, classes)
        return await self._fleet.names_for(group.kind, group.target, classes or ())

    def _allowed(self, job: Job, names: list[str]) -> list[str]:
        """Return the endpoints for a job: the one that it names, and not one at which it was lost if there are others."""
        wanted = job.extra.get("endpoint")
        allowed = names if wanted is None else [name for name in names if name == wanted]
        keeper = job.extra.get("credentials_at")
        if keeper is not None and keeper != self._owner and not (self._node and keeper.startswith(self._node)):
            # another gateway has the credentials of the job
            return []
        return [name for name in allowed if name not in self._avoided.get(job.job_id, ())] or allowed

    # -- one job ------------------------------------------------------------------------------------------------------

    def _begin(self, job: Job, request: dict[str, Any], needed: dict[str, Any]) -> None:
        task = asyncio.create_task(self._run(job, request, needed))
        self._running[job.job_id] = task

        def ended(_: asyncio.Task[None]) -> None:
            if self._running.get(job.job_id) is task:
                del self._running[job.job_id]
            self._ending.discard(job.job_id)
            self.wake()

        task.add_done_callback(ended)

    async def _run(self, job: Job, request: dict[str, Any], needed: dict[str, Any]) -> None:
        reporter = _Reporter(self, job)
        try:
            output = await on_loop_thread(execute(self._fleet, job, request, needed, reporter.report, self._files))
        except asyncio.CancelledError:
            if self._is_closing:
                await self._persist(job, lambda: self._work.give_back(job, counted=False))
            raise
        except (QueueFull, EndpointUnreachable, UnknownEndpoint) as error:
            await self._lost(job, error)
        except UnknownGraph as error:
            # it was removed since the list of graphs was read
            state = self._fleet.states.get(str(job.place))
            if state is not None and state.graphs.pop(job.target, None) is not None:
                facts = error_of(error, self._redactor)
                await self._persist(job, lambda: self._work.give_back(job, error=facts))
            else:
                await self._end(job, FAILED, error)
        except TimedOut as error:
            await self._end(job, TIMED_OUT, error)
        except YggdrasillError as error:
            await self._end(job, FAILED, error)
        except Exception as error:  # noqa: BLE001 - logged, and reported in the row
            _LOG.exception("Job %s could not be run", job.job_id)
            await self._end(job, FAILED, error)
        else:
            self._avoided.pop(job.job_id, None)
            await self._persist(job, lambda: self._work.finish(job, COMPLETED, output=output))

    async def _end(self, job: Job, status: str, error: Exception) -> None:
        self._avoided.pop(job.job_id, None)
        facts = error_of(error, self._redactor)
        await self._persist(job, lambda: self._work.finish(job, status, error=facts))

    async def _lost(self, job: Job, error: YggdrasillError) -> None:
        """Give back a job whose endpoint is full or lost, unless it keeps state there or may not run again."""
        place, facts = str(job.place), error_of(error, self._redactor)
        if isinstance(error, QueueFull):
            delay = float(error.details.get("retry_after") or 1.0)
            self._fleet.full(place, delay)
            await self._persist(job, lambda: self._work.give_back(job, counted=False, error=facts))
            return
        self._fleet.lost(place, error.message)
        begun = error.details.get("reached") is True
        if begun and job.kind == GRAPH and self._fleet.is_stateful(job.target, place):
            facts["message"] = f"{facts['message']} The graph keeps state there, so the job does not run at another endpoint."
            await self._persist(job, lambda: self._work.finish(job, FAILED, error=facts))
            return
        if begun and self._budget.take() > 0:
            facts = {"code": "retry_budget", "message": f"The budget of retries is used up. The last failure: {facts['message']}"}
            await self._persist(job, lambda: self._work.finish(job, FAILED, error=facts))
            return
        if len(self._avoided) < _MAX_AVOIDED:
            self._avoided.setdefault(job.job_id, set()).add(place)
        delay = self._pace.retry_delay
        await self._persist(job, lambda: self._work.give_back(job, delay=delay, error=facts, counted=begun))

    async def _persist(self, job: Job, write: Callable[[], Future[Job | None]]) -> None:
        """Store the outcome of a job, and try again while the store does not answer."""
        self._ending.add(job.job_id)
        delay = _STORE_DELAY
        while True:
            try:
                if await asyncio.wrap_future(write()) is None:
                    _LOG.info("The result of job %s does not count: it was cancelled, or is another gateway's", job.job_id)
            except StorageFailed as error:
                if self._is_closing:
                    _LOG.error("The outcome of job %s could not be stored: %s", job.job_id, error.message)
                    return
                _LOG.warning("The outcome of job %s cannot be stored yet: %s", job.job_id, error.message)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _MAX_STORE_DELAY)
            else:
                return

    async def record(self, job: Job, kind: str, data: Mapping[str, Any]) -> None:
        """Store the progress of a job. A failure is not reported: the next one replaces it."""
        facts = self._redactor.value(data)
        with contextlib.suppress(StorageFailed):
            await asyncio.wrap_future(self._work.report(job, kind, facts, progress=facts))

    def show(self, job: Job, kind: str, data: dict[str, Any]) -> None:
        """Pass an event to the listeners of this gateway without storing it."""
        self._hub.pass_on(Event(0, job.job_id, job.principal, kind, self._redactor.value(data), time.time()))


class _Reporter:
    """Carries the events of one job from the loop thread to the gateway's. Of its progress, what comes twice a second is stored."""

    def __init__(self, dispatcher: Dispatcher, job: Job) -> None:
        self._dispatcher, self._job = dispatcher, job
        self._loop = asyncio.get_running_loop()
        self._stored_at = -1e9
        self._storing: asyncio.Task[None] | None = None

    def report(self, kind: str, data: dict[str, Any]) -> None:
        """Receive an event on the loop thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, kind, data)

    def _receive(self, kind: str, data: dict[str, Any]) -> None:
        now = time.monotonic()
        busy = self._storing is not None and not self._storing.done()
        if kind != "progress" or busy or now - self._stored_at < _PROGRESS_SECONDS:
            self._dispatcher.show(self._job, kind, data)
            return
        self._stored_at = now
        self._storing = self._loop.create_task(self._dispatcher.record(self._job, kind, data))
