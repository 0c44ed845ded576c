"""The jobs that a queue channel has in the queue of a serverless endpoint: their submission, their progress, their end, and what they may cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from yggdrasill.errors import (
    BudgetSpent,
    Cancelled,
    EndpointFailed,
    EndpointUnreachable,
    ProtocolMismatch,
    QueueFull,
    TimedOut,
    UnknownArtifact,
    UnknownJob,
    YggdrasillError,
    error_from_dict,
)
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, IN_PROGRESS, IN_QUEUE, TIMED_OUT, WAITING_INPUTS
from yggdrasill.remote.serverless.channel_artifacts import ChannelArtifacts
from yggdrasill.remote.serverless.messages import ENVELOPE, EVENTS, check_protocol
from yggdrasill.remote.serverless.options import ServerlessOptions
from yggdrasill.remote.serverless.queue_job import QueueJob
from yggdrasill.remote.serverless.runpod_api import RunPodApi, error_text

__all__ = ["QueueJobs"]

_LOG = logging.getLogger("yggdrasill.remote")
_FIRST_POLL, _MOST_POLL, _POLL_GROWTH = 0.05, 1.0, 1.3
_HEALTH_AFTER, _HEALTH_EVERY = 1.0, 5.0
_LOST_SECONDS = 300.0
"""How long the API may be silent while a job runs."""
_ABANDON_SECONDS = 2.0
_LEAST_TIMEOUT, _LEAST_TTL, _MOST_TTL = 5.0, 10.0, 7 * 86400.0
_JOB_COUNTS = ("completed", "failed", "inProgress", "inQueue", "retried")
_WORKER_COUNTS = ("idle", "running", "ready", "initializing", "throttled", "unhealthy")
#: Codes of failures in which the host of the worker ended, not the run.
_LOST_HOSTS = frozenset({"comfy_crashed", "host_crashed"})


class QueueJobs:
    """The jobs of one endpoint. ``key`` is the API key of the newest request."""

    def __init__(self, url: str, ca: str | None, options: ServerlessOptions) -> None:
        self.url, self.options = url, options
        self.api = RunPodApi(url, ca)
        self.artifacts = ChannelArtifacts(url, options.store)
        self.key: str | None = None
        #: Seconds that workers have worked for this process.
        self.spent_seconds = 0.0
        #: Whether a worker has ever answered in the form of these messages.
        self._is_proven = False

    async def health(self) -> dict[str, dict[str, int]]:
        """Return the counts of jobs and of workers by state; RunPod's API answers without waking a worker."""
        found = await self.api.health(self.key)
        return {side: _counts(found.get(side), names) for side, names in (("jobs", _JOB_COUNTS), ("workers", _WORKER_COUNTS))}

    async def begin(self, job: QueueJob) -> None:
        """Queue a job whose artifacts are present. A cancellation of the caller does not end the submission, whose id would be lost.

        Raises:
            BudgetSpent, PayloadTooLarge, StorageFailed, EndpointUnreachable, QueueFull, AccessDenied, UnknownEndpoint
        """
        if job.submission is None or job.submission.done():
            job.submission = asyncio.ensure_future(self._submit(job))
            job.submission.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.shield(job.submission)

    async def finish(self, job: QueueJob) -> Mapping[str, Any]:
        """Queue a job, wait for its end, and return the worker's result. Cancelling the coroutine cancels the job.

        Raises:
            YggdrasillError: the error of the job.
            UnknownArtifact: artifacts are no longer in the store.
        """
        try:
            await self.begin(job)
            while not job.is_final and not job.missing:
                await job.ended(60.0)
        except asyncio.CancelledError:
            with contextlib.suppress(YggdrasillError, asyncio.TimeoutError):
                await asyncio.wait_for(self.cancel(job), _ABANDON_SECONDS)
            raise
        if job.missing:
            raise UnknownArtifact("Artifacts are no longer in the artifact store.", missing=job.missing)
        if job.error is not None:
            raise error_from_dict(job.error)
        return job.envelope

    async def cancel(self, job: QueueJob) -> None:
        """Cancel a job, also one that is being submitted. Raise as a request of the API; the job is then not cancelled."""
        if job.is_final:
            return
        job.is_cancelled = True
        if job.submission is not None and not job.submission.done():
            await asyncio.wait([job.submission])
        if job.run_id is not None and not job.is_final:
            with contextlib.suppress(UnknownJob):
                await self.api.cancel(self.key, job.run_id)
        self.cancelled(job)

    def cancelled(self, job: QueueJob) -> None:
        """End a job as cancelled."""
        self._end(job, CANCELLED, error=Cancelled("Cancelled by request."))

    async def abandon(self, jobs: Iterable[QueueJob]) -> None:
        """Cancel jobs when this process ends, as far as the API answers in time."""
        wanted = [self.api.cancel(self.key, job.run_id) for job in jobs if job.run_id is not None]
        if wanted:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.gather(*wanted, return_exceptions=True), _ABANDON_SECONDS)

    # -- submission ---------------------------------------------------------------------------------------------

    async def _submit(self, job: QueueJob) -> None:
        if job.is_cancelled or job.is_final:
            self.cancelled(job)
            return
        budget = self.options.budget
        try:
            self._check_budget(job)
        except BudgetSpent as error:
            self._end(job, FAILED, error=error)
            raise
        self.artifacts.keep(job.job_id, job.sizes)
        seconds = self._seconds(job)
        ttl = min(max(budget.max_queue_seconds + seconds, _LEAST_TTL), _MOST_TTL)
        body, sync = await self.artifacts.body(
            job.message, job.sizes, {"executionTimeout": round(1000 * seconds), "ttl": round(1000 * ttl)}
        )
        job.attempts += 1
        try:
            answer = await self.api.run(self.key, body, f"{job.key or job.job_id}-{job.attempts}", sync=sync)
        except EndpointUnreachable as error:
            # a request that was cut off may have queued a job
            job.attempts -= error.details.get("broken") is not True
            raise
        except YggdrasillError:
            job.attempts -= 1
            raise
        run_id = answer.get("id")
        if not isinstance(run_id, str):
            raise ProtocolMismatch(f"The API of {self.url!r} returned no id for a job.")
        job.run_id = run_id
        job.begin_attempt()
        if job.is_cancelled:
            await self.api.cancel(self.key, run_id)
            self.cancelled(job)
            return
        job.task = asyncio.ensure_future(self._follow(job, answer))

    def _seconds(self, job: QueueJob) -> float:
        """Return how long a job may run."""
        return max(_LEAST_TIMEOUT, min(self.options.budget.max_seconds, job.seconds or float("inf")))

    def _check_budget(self, job: QueueJob) -> None:
        budget = self.options.budget
        if job.attempts >= budget.max_attempts:
            spent = f"the call was queued {job.attempts} times (budget.max_attempts)"
        elif budget.max_total_seconds is not None and self.spent_seconds >= budget.max_total_seconds:
            spent = f"its workers have run for {self.spent_seconds:.0f} s (budget.max_total_seconds is {budget.max_total_seconds:g})"
        else:
            return
        raise BudgetSpent(
            f"The budget of serverless endpoint {self.url!r} is spent: {spent}. Raise it in endpoints.yaml, or place the part somewhere else.",
            attempts=job.attempts,
            seconds=round(self.spent_seconds, 1),
        )

    # -- progress -----------------------------------------------------------------------------------------------

    async def _follow(self, job: QueueJob, answer: Mapping[str, Any]) -> None:
        """Poll a queued job to its end. Whatever happens, the job ends."""
        try:
            await self._poll(job, answer)
        except asyncio.CancelledError:
            raise
        except YggdrasillError as error:
            self._end(job, FAILED, error=error)
        except Exception as error:  # noqa: BLE001 - a caller waits for the end of the job
            self._end(
                job, FAILED, error=EndpointFailed(f"The answer of {self.url!r} cannot be read ({type(error).__name__}).", endpoint=self.url)
            )

    async def _poll(self, job: QueueJob, answer: Mapping[str, Any]) -> None:
        began = time.monotonic()
        working_since: float | None = None
        asked, pause, run_id = began + _HEALTH_AFTER - _HEALTH_EVERY, _FIRST_POLL, str(job.run_id)
        while not job.is_final:
            status, now = answer.get("status"), time.monotonic()
            if status in FINAL:
                await self._finished(job, str(status), answer)
                return
            if status == IN_PROGRESS:
                if working_since is None:
                    working_since, job.started, pause = now, job.started or time.time(), _FIRST_POLL
                job.set_status(IN_PROGRESS)
                shown = answer.get("output")
                if isinstance(shown, Mapping) and shown.get("type") == EVENTS:
                    job.receive(shown.get("events"))
                if now - working_since > self._seconds(job) + _LEAST_TIMEOUT:
                    await self._give_up(
                        job, run_id, f"it runs for more than {self._seconds(job):g} s (budget.max_seconds, or the timeout of the call)"
                    )
                    return
            else:
                working_since = None
                if job.status == IN_PROGRESS:
                    job.set_status(IN_QUEUE)
                if now - began > self.options.budget.max_queue_seconds:
                    limit = self.options.budget.max_queue_seconds
                    await self._give_up(job, run_id, f"no worker took it within {limit:g} s (budget.max_queue_seconds)")
                    return
                if now - asked >= _HEALTH_EVERY:
                    asked = now
                    await self._show_start(job, now - began)
            await asyncio.sleep(pause)
            pause = min(pause * _POLL_GROWTH, _MOST_POLL)
            answer = await self._status(job, run_id)

    async def _status(self, job: QueueJob, run_id: str) -> Mapping[str, Any]:
        """Return the state of a job, however often the API does not answer in between."""
        lost_since, pause = time.monotonic(), _MOST_POLL
        while True:
            try:
                return await self.api.status(self.key, run_id)
            except (EndpointUnreachable, QueueFull) as error:
                if time.monotonic() - lost_since > _LOST_SECONDS:
                    raise EndpointFailed(
                        f"RunPod's API for {self.url!r} did not answer for {_LOST_SECONDS:g} s while a job ran: {error.message}",
                        endpoint=self.url,
                    ) from error
                await asyncio.sleep(max(pause, float(error.details.get("retry_after", 0.0))))
                pause = min(2 * pause, 10.0)

    async def _show_start(self, job: QueueJob, seconds: float) -> None:
        """Report that a job waits for a worker, and what the workers do."""
        with contextlib.suppress(YggdrasillError):
            found = await self.health()
            workers, queued = found["workers"], found["jobs"]["inQueue"]
            ready = max(workers["ready"], workers["idle"] + workers["running"])
            facts = {"starting": ready == 0, "seconds": round(seconds, 1), "workers": workers, "queued": queued}
            job.waiting = facts
            text = (
                f"starting a worker: {workers['initializing']} initializing, {workers['throttled']} throttled"
                if ready == 0
                else f"waiting for a worker: {workers['running']} running, {workers['idle']} idle, {queued} jobs queued"
            )
            _LOG.info("serverless endpoint %s: %s (%.0f s)", self.url, text, seconds)
            job.set_status(IN_QUEUE, **facts)
            job.add_event("progress", {"place": "", "done": 0, "total": 0, "text": f"{text} ({seconds:.0f} s)"})

    async def _give_up(self, job: QueueJob, run_id: str, why: str) -> None:
        with contextlib.suppress(UnknownJob):
            await self.api.cancel(self.key, run_id)
        self._end(job, TIMED_OUT, error=TimedOut(f"The call at serverless endpoint {self.url!r} was cancelled: {why}."))

    # -- the end ------------------------------------------------------------------------------------------------

    async def _finished(self, job: QueueJob, status: str, answer: Mapping[str, Any]) -> None:
        """End the job by the answer about the queue's finished job, or queue it again if its worker was lost."""
        seconds, delay = _milliseconds(answer, "executionTime"), _milliseconds(answer, "delayTime")
        self.spent_seconds += seconds
        job.timing = {"queued_s": delay, "run_s": seconds}
        output = answer.get("output")
        envelope = output.get(ENVELOPE) if isinstance(output, Mapping) else None
        if status == COMPLETED and isinstance(envelope, Mapping):
            await self._received(job, envelope)
        elif status == COMPLETED:
            self._end(job, FAILED, error=self._foreign("its worker returned a result of another form"))
        elif status == CANCELLED:
            self._end(job, CANCELLED, error=Cancelled(f"The call was cancelled at {self.url!r}."))
        elif status == TIMED_OUT:
            why = f"it ran for {seconds:.0f} s and waited for {delay:.0f} s"
            self._end(
                job,
                TIMED_OUT,
                error=TimedOut(f"RunPod stopped the call at {self.url!r}: {why}. Raise 'budget' of the endpoint, or the timeout."),
            )
        elif not self._is_proven:
            self._end(job, FAILED, error=self._foreign(error_text(answer.get("error") or output or "its job failed")))
        else:
            await self._again(job, error_text(answer.get("error") or "its worker was lost"))

    def _foreign(self, why: str) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"Serverless endpoint {self.url!r} did not answer as a worker of Yggdrasill ({why}). Start its workers with 'yggdrasill worker serverless', in the "
            "version that this process has.",
            endpoint=self.url,
        )

    async def _received(self, job: QueueJob, envelope: Mapping[str, Any]) -> None:
        check_protocol(envelope.get("protocol"), "worker")
        self._is_proven = True
        await self.artifacts.receive(envelope)
        job.receive(await self._events_of(envelope))
        job.envelope = {name: value for name, value in envelope.items() if name not in ("artifacts", "events")}
        row, error = envelope.get("row"), envelope.get("error")
        if isinstance(error, Mapping):
            await self._failed(job, error)
        elif isinstance(row, Mapping):
            timing = row.get("timing")
            facts = (
                {str(name): float(value) for name, value in timing.items() if isinstance(value, (int, float))}
                if isinstance(timing, Mapping)
                else {}
            )
            job.timing = {**facts, "queued_s": job.timing["queued_s"] + facts.get("queued_s", 0.0)}
            failure = row.get("error")
            if row.get("status") == COMPLETED and isinstance(row.get("output"), Mapping):
                self._end(job, COMPLETED, output=row["output"])
            else:
                status = str(row.get("status"))
                self._end(
                    job,
                    status if status in FINAL and status != COMPLETED else FAILED,
                    error=failure if isinstance(failure, Mapping) else None,
                )
        else:
            self._end(job, COMPLETED, output={})

    async def _events_of(self, envelope: Mapping[str, Any]) -> Any:
        events = envelope.get("events")
        if isinstance(events, str):
            return json.loads(bytes(await self.artifacts.read(events)))
        return events

    async def _failed(self, job: QueueJob, error: Mapping[str, Any]) -> None:
        """Handle an error of the worker itself: send lost artifacts again, queue the job again if its host ended, or end it."""
        details = error.get("details")
        facts = details if isinstance(details, Mapping) else {}
        missing = facts.get("missing")
        if error.get("type") == UnknownArtifact.__name__ and isinstance(missing, list) and set(missing) & job.sizes.keys():
            self.artifacts.forget_stored([str(name) for name in missing])
            absent = await self.artifacts.missing({str(name): 0 for name in missing})
            if absent:
                job.run_id = None
                job.wait_for(absent, WAITING_INPUTS)
            else:
                await self._again(job, str(error.get("message")))
        elif facts.get("code") in _LOST_HOSTS:
            await self._again(job, str(error.get("message")))
        else:
            self._end(job, FAILED, error=error)

    async def _again(self, job: QueueJob, why: str) -> None:
        """Queue a job again after its worker was lost, as far as the budget allows."""
        job.run_id = None
        try:
            self._check_budget(job)
            job.set_status(IN_QUEUE, reason=why)
            await self._submit(job)
        except YggdrasillError as error:
            self._end(
                job,
                FAILED,
                error=EndpointFailed(
                    f"Serverless endpoint {self.url!r} lost the worker of the call: {why.rstrip('.')}. It is not queued again: {error.message}",
                    endpoint=self.url,
                    attempts=job.attempts,
                    reason="budget" if isinstance(error, BudgetSpent) else "lost",
                ),
            )

    def _end(self, job: QueueJob, status: str, *, output: Any = None, error: YggdrasillError | Mapping[str, Any] | None = None) -> None:
        job.end(status, output=output, error=error)
        self.artifacts.release(job.job_id)


def _counts(found: object, names: Iterable[str]) -> dict[str, int]:
    given = found if isinstance(found, Mapping) else {}
    return {name: int(given[name]) if isinstance(given.get(name), int) else 0 for name in names}


def _milliseconds(answer: Mapping[str, Any], name: str) -> float:
    value = answer.get(name)
    return float(value) / 1000 if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
