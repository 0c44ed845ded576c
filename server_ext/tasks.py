"""One job on its way through a worker thread: inputs out of the wire, the run, the output into the store and the row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from yggdrasill.errors import Cancelled, EndpointFailed, StorageFailed, TimedOut, YggdrasillError
from yggdrasill.executor.context import Host, enter_run
from yggdrasill.remote.observers import observe_waits
from yggdrasill.server_ext.calls import call
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.in_flight import InFlightArtifacts
from yggdrasill.server_ext.job import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, TIMED_OUT, Job
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.redaction import Redactor
from yggdrasill.values.handles import ArtifactHandle, ArtifactRef
from yggdrasill.values.stores.base import ArtifactStore
from yggdrasill.values.wire import StreamingPacker

__all__ = ["RunLog", "Task", "TaskServices", "error_dict", "stop_error"]

_LOG = logging.getLogger("yggdrasill.server")
_PROGRESS_PAUSE = 0.05
_MOST_LOG_LINES = 500
_LONGEST_LOG_LINE = 2000
_PACKERS = 4
_MOST_TOLD = 64

Outside = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TaskServices:
    """What every task of an endpoint works with. ``tell(job, kind, data, slot=None)`` may be called from any thread."""

    jobs: JobStore
    store: ArtifactStore
    redactor: Redactor
    tell: Callable[..., None]
    #: Called from any thread with the job's final form, which is stored by then.
    finished: Callable[[Job, Job], None]
    #: Called from any thread with the calls that a task's run waits for, whenever they change.
    waits: Callable[[Task, list[str]], None]
    #: What is being written to the store.
    in_flight: InFlightArtifacts = field(default_factory=InFlightArtifacts)
    #: Packs outputs while their runs go on.
    packers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_PACKERS, "yggdrasill-pack"))


def error_dict(error: BaseException, redactor: Redactor) -> dict[str, Any]:
    """The JSON form of an error without secrets; a foreign exception becomes `EndpointFailed` with its type and message."""
    if not isinstance(error, YggdrasillError):
        error = EndpointFailed(f"the endpoint failed: {type(error).__name__}: {error}", cause=type(error).__name__)
    cleaned: dict[str, Any] = redactor.value(error.to_dict())
    return cleaned


@dataclass(eq=False)
class Task:
    """A job with the deployment it was made for; a host calls `execute` once, in a thread of its own choice."""

    job: Job
    deployment: Deployment
    services: TaskServices
    _shown: dict[str, float] = field(default_factory=dict)
    _lines: int = 0
    _delivered: int = 0
    _told: set[str] = field(default_factory=set)

    @property
    def exclusive_key(self) -> str | None:
        """Tasks with the same key must not run at the same time; None for those that may."""
        return self.deployment.graph_id if self.deployment.exclusive else None

    def execute(self, release_slot: Outside | None = None) -> None:
        """Run the job, store how it ended and report it. Raises nothing."""
        job = self.job
        try:
            self._begin()
            started = time.perf_counter()
            with _current_task(self), observe_waits(lambda keys: self.services.waits(self, keys)):
                output, artifacts = self._run(release_slot)
            run_s = time.perf_counter() - started
            timing = {**job.timing, "queued_s": (job.started or job.created) - job.created, "run_s": run_s}
            final = self._ended(timing, output, artifacts)
        except BaseException as error:  # noqa: BLE001 - whatever a block raises ends its job and not the endpoint
            final = self._failed(error)
        self._store(final)

    def _begin(self) -> None:
        job = self.job
        if job.token.cancelled:
            raise Cancelled(job.token.reason)
        job.status, job.started, job.attempts = IN_PROGRESS, time.time(), job.attempts + 1
        stored = self.services.jobs.update(job)
        if self.deployment.exclusive:
            # a restart must know that a run which changes something had begun
            stored.result()
        self.services.tell(job, "status", {"status": IN_PROGRESS})

    def _run(self, release_slot: Outside | None) -> tuple[dict[str, Any], list[str]]:
        from yggdrasill.values.wire import pack, unpack

        job, request, kind = self.job, self.job.request, self.deployment.kind
        handles = self._handle if self.deployment.accepts_handles else None
        value = unpack(request["inputs"], self._load, handles=handles)
        run = request["run"]
        packer = StreamingPacker(self.services.store, f"job:{job.job_id}", self._offer)
        try:
            with enter_run(
                seed=run["seed"],
                path=tuple(run["path"]),
                pass_index=run["pass_index"],
                token=job.token,
                progress=self._progress,
                host=Host(release_slot or nullcontext, lambda name, output: self._deliver(packer, name, output)),
            ):
                result = call(kind, self.deployment.runnable, value, request["options"], run["seed"])
            early = self._delivered and isinstance(result, dict)
            packed = packer.finish(result) if early else pack(result, self.services.store, owner=f"job:{job.job_id}")
        finally:
            packer.close()
        return packed.wire, packed.artifacts

    def _deliver(self, packer: StreamingPacker, name: str, output: Any) -> None:
        """Pack an output that is final in a thread of its own; what is not packed by then is packed when the job ends."""
        self._delivered += 1
        # the threads are gone if the endpoint is closing
        with suppress(RuntimeError):
            self.services.packers.submit(self._add, packer, name, output)

    def _add(self, packer: StreamingPacker, name: str, output: Any) -> None:
        self._tell_of(packer.add(name, output))

    @contextmanager
    def _offer(self, ref: ArtifactRef, data: memoryview) -> Iterator[None]:
        """Let others have an artifact of an output while it is being written."""
        with self.services.in_flight.offered(ref.hash, data):
            self._tell_of([ref])
            yield

    def _tell_of(self, refs: list[ArtifactRef]) -> None:
        """Tell who follows the job of artifacts that can be had already, of each once."""
        fresh = [ref for ref in refs if ref.hash not in self._told][: max(0, _MOST_TOLD - len(self._told))]
        if fresh:
            self._told.update(ref.hash for ref in fresh)
            self.services.tell(self.job, "output", {"artifacts": [ref.to_json() for ref in fresh]})

    def _load(self, ref: ArtifactRef) -> memoryview:
        return self.services.store.read(ref.hash)

    def _handle(self, ref: ArtifactRef) -> ArtifactHandle:
        return ArtifactHandle(replace(ref, url=None, store=self.services.store.store_id), self._load)

    def _progress(self, place: str, done: float, total: float, text: str | None) -> None:
        now = time.monotonic()
        if done < total and now - self._shown.get(place, 0.0) < _PROGRESS_PAUSE:
            return
        self._shown[place] = now
        progress = self.services.redactor.value({"place": place, "done": done, "total": total, "text": text})
        self.job.progress = progress
        self.services.tell(self.job, "progress", progress)

    def log(self, level: str, text: str) -> None:
        """Pass a line that a block logged on to whoever follows the job."""
        self._lines += 1
        if self._lines <= _MOST_LOG_LINES:
            self.services.tell(self.job, "log", {"level": level, "text": self.services.redactor.text(text[:_LONGEST_LOG_LINE])})

    # -- endings ------------------------------------------------------------------------------------------------

    def _ended(self, timing: dict[str, float], output: dict[str, Any], artifacts: list[str]) -> Job:
        job = self.job
        if job.token.cancelled:
            return self._failed(Cancelled(job.token.reason))
        return replace(job, status=COMPLETED, finished=time.time(), output=output, timing=timing, artifacts=tuple(artifacts), request={})

    def _failed(self, error: BaseException) -> Job:
        job = self.job
        stopped = job.token.cancelled or isinstance(error, Cancelled)
        status = job.stopped_as if job.token.cancelled else CANCELLED if stopped else FAILED
        if not stopped:
            _LOG.error("job %s of graph %r failed", job.job_id, job.graph_id, exc_info=error)
        return replace(
            job, status=status, finished=time.time(), error=stop_error(job, error, self.services.redactor), artifacts=(), request={}
        )

    def _store(self, final: Job) -> None:
        try:
            self.services.jobs.update(final).result()
        except StorageFailed as error:
            _LOG.error("job %s could not be stored: %s", final.job_id, error)
            final = replace(final, status=FAILED, output=None, artifacts=(), error=error_dict(error, self.services.redactor))
        self.services.finished(self.job, final)


def stop_error(job: Job, error: BaseException, redactor: Redactor) -> dict[str, Any]:
    """The error of a job that ended badly; a stopped one says why it was stopped, whatever came of it."""
    if not job.token.cancelled:
        return error_dict(error, redactor)
    node = error.details.get("node") if isinstance(error, YggdrasillError) else None
    kind = TimedOut if job.stopped_as == TIMED_OUT else Cancelled
    return error_dict(kind(job.token.reason, **({"node": node} if node else {})), redactor)


_task: ContextVar[Task | None] = ContextVar("yggdrasill_task", default=None)


@contextmanager
def _current_task(task: Task) -> Iterator[None]:
    previous = _task.set(task)
    try:
        yield
    finally:
        _task.reset(previous)


class RunLog(logging.Handler):
    """Sends what blocks log to the events of the job they run for."""

    def emit(self, record: logging.LogRecord) -> None:
        task = _task.get()
        if task is not None:
            task.log(record.levelname.lower(), record.getMessage())
