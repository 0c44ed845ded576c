"""Execution of a job in a worker thread: decodes inputs, runs, packs the output into the store and stores the result."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from yggdrasill.errors import Cancelled, EndpointFailed, InvalidArgument, InvalidState, TimedOut, YggdrasillError, format_options
from yggdrasill.executor.context import Host, enter_run, observe_waits
from yggdrasill.foundation.kinds import KINDS
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, TIMED_OUT
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.jobs.model import Job
from yggdrasill.server_ext.jobs.store import JobStore
from yggdrasill.server_ext.logs import Redactor
from yggdrasill.stage.state import State
from yggdrasill.values.encoder import SCALAR_ENCODERS
from yggdrasill.values.handles import ArtifactHandle
from yggdrasill.values.payload import ArtifactRef
from yggdrasill.values.stores.base import LocalStore, Writer, writing_as
from yggdrasill.values.stores.threaded import InFlightArtifacts
from yggdrasill.values.tensors import is_tensor
from yggdrasill.values.wire import INLINE_BYTES, StreamingPacker

__all__ = [
    "JOB_LOG",
    "LEASE_SECONDS",
    "PREVIEW_METHODS",
    "RunLog",
    "Task",
    "TaskServices",
    "call",
    "check_options",
    "error_dict",
    "job_error",
    "shorten",
    "stop_error",
]

#: Latent preview methods of ComfyUI; ``default`` keeps the method that the server was started with.
PREVIEW_METHODS = ("auto", "latent2rgb", "taesd", "none", "default")
#: ``max_workers`` changes no result, so every kind accepts it and those without parallel children ignore it.
_FOR_EVERY_KIND = frozenset({"dry_run", "max_workers"})
_MAX_WORKERS = 64


def check_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the validated options without those that are None.

    Raises:
        InvalidArgument: an option that this kind does not accept, or an invalid value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.pop("training", False):
        raise InvalidArgument(
            "Remote training is not supported: gradients do not cross endpoints. Train on the machine that has the weights."
        )
    options_of_kind = KINDS[kind].run_options
    allowed = options_of_kind | _FOR_EVERY_KIND
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise InvalidArgument(f"A remote {kind} does not accept {', '.join(map(repr, unknown))}. Available: {format_options(allowed)}.")
    if given.get("dry_run", False) not in (True, False):
        raise InvalidArgument(f"dry_run must be true or false, got {given['dry_run']!r}")
    if given.get("preview_method", "default") not in PREVIEW_METHODS:
        raise InvalidArgument(
            f"Unknown preview_method {str(given['preview_method'])[:40]!r}. Available: {format_options(PREVIEW_METHODS)}."
        )
    for name in ("num_loop_steps", "max_workers", "num_steps", "seed"):
        if name in given and (not isinstance(given[name], int) or isinstance(given[name], bool)):
            raise InvalidArgument(f"{name} must be an integer, got {given[name]!r}")
    if given.get("max_workers", 1) > _MAX_WORKERS:
        given["max_workers"] = _MAX_WORKERS
    if "max_workers" not in options_of_kind:
        given.pop("max_workers", None)
    return given


def call(kind: str, runnable: Any, value: Any, options: Mapping[str, Any], seed: int | None) -> Any:
    """Run and return the result for the caller: outputs by name, or ``{"state": ...}`` for a stage or world.

    Raises:
        InvalidArgument, InvalidState: ``value`` is invalid for this kind. Otherwise as the runnable's ``run``.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"The inputs of a {kind} must be a dict, got {type(value).__name__}.")
    boundary = KINDS[kind].boundary
    if boundary == "ports":
        return runnable.run(value, **options)
    unknown = sorted(str(key) for key in value if key not in ("state", "action"))
    if unknown:
        raise InvalidArgument(f"Unknown inputs of a {kind}: {format_options(unknown)}. Available: 'state', 'action'.")
    given = value.get("state")
    if given is not None and not isinstance(given, Mapping):
        raise InvalidState(f"The state of a {kind} call must be a serialised state (a dict), got {type(given).__name__}.")
    if boundary == "state":
        result = runnable.run(State.of(given), action=value.get("action"), seed=seed, **options)
    else:
        result = runnable.run(None if given is None else State.of(given), action=value.get("action"), **options)
    return {"state": result.to_dict()}


_LOG = logging.getLogger("yggdrasill.server")
_PROGRESS_INTERVAL = 0.05
_MAX_LOG_LINES = 500
_MAX_LINE_LENGTH = 2000
#: Bounds of an error, which must fit into one event: characters of each text, and bytes of all details of a job's error.
_MAX_TEXT_LENGTH = 16_000
_MAX_DETAILS_BYTES = 64 << 10
_PACK_THREADS = 4
_MAX_STEP = 2.0**53
_MAX_ANNOUNCED = 64

LEASE_SECONDS = 60.0
"""How long a process promises to run a job, unless it renews the lease."""
_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_until": None}

SlotRelease = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TaskServices:
    """The services that all tasks of an endpoint share. ``emit(job, kind, data, slot=None)`` may be called from any thread."""

    jobs: JobStore
    store: LocalStore
    redactor: Redactor
    emit: Callable[..., None]
    #: Called from any thread with a job and its final form, after that was stored.
    finished: Callable[[Job, Job], None]
    #: Called from any thread when the calls that a task's run waits for change.
    set_waits: Callable[[Task, list[str]], None]
    #: A context in which the events of a thread are emitted together, at its end.
    together: Callable[[], AbstractContextManager[None]] = nullcontext
    #: The name of this start of the process in the leases of the jobs that it runs.
    lease_owner: str = field(default_factory=lambda: secrets.token_hex(8))
    #: Artifacts that are being written to the store.
    in_flight: InFlightArtifacts = field(default_factory=InFlightArtifacts)
    #: Threads that pack outputs while runs continue.
    packers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_PACK_THREADS, "yggdrasill-pack"))


def error_dict(error: BaseException, redactor: Redactor) -> dict[str, Any]:
    """Return an error as JSON with secrets redacted and long texts shortened.

    A foreign exception becomes `EndpointFailed` with its type and message.
    """
    if not isinstance(error, YggdrasillError):
        error = EndpointFailed(f"The endpoint failed: {type(error).__name__}: {_message(error)}", cause=type(error).__name__)
    try:
        cleaned: dict[str, Any] = _shorten_texts(redactor.value(error.to_dict()))
    except Exception:  # noqa: BLE001 - details that contain themselves or cannot be printed
        cleaned = {"type": type(error).__name__, "message": shorten(redactor.text(error.message), _MAX_TEXT_LENGTH), "details": {}}
    return cleaned


def job_error(error: BaseException, redactor: Redactor) -> dict[str, Any]:
    """Return the error of a job as JSON. It fits into one event: details beyond 64 KiB are omitted, see `error_dict` for texts."""
    found = error_dict(error, redactor)
    details, room = {}, _MAX_DETAILS_BYTES
    for name, value in found["details"].items():
        # JSON refuses integers of thousands of digits
        with suppress(ValueError):
            nbytes = len(json.dumps([name, value]))
            if nbytes <= room:
                details[name] = value
                room -= nbytes
    return {**found, "details": details}


def shorten(text: str, limit: int) -> str:
    """Return ``text``, or its beginning and end with a note between them if it has more than ``limit`` characters."""
    if len(text) <= limit:
        return text
    note = f" [... {len(text) - limit} characters left out ...] "
    return text[: limit - limit // 3] + note + text[-(limit // 3) :]


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - a foreign exception may be unprintable
        return f"its message cannot be read ({type(failure).__name__})"


def _step(number: float) -> float:
    """Return a number of steps, or 0 if it is not a number that every JSON parser reads."""
    try:
        value = float(number)
    except (TypeError, ValueError, OverflowError):
        return 0
    if not abs(value) <= _MAX_STEP:
        return 0
    return number if isinstance(number, int) else value


def _shorten_texts(value: Any) -> Any:
    if isinstance(value, str):
        return shorten(value, _MAX_TEXT_LENGTH)
    if isinstance(value, dict):
        return {name: _shorten_texts(item) for name, item in value.items()}
    return [_shorten_texts(item) for item in value] if isinstance(value, list) else value


JOB_LOG = logging.getLogger("yggdrasill.jobs")
"""The log of starts and ends of jobs, with their principals."""


@dataclass(eq=False)
class Task:
    """A job with its deployment. The host calls `execute` once, in a worker thread."""

    job: Job
    deployment: Deployment
    services: TaskServices
    _last_progress: dict[str, float] = field(default_factory=dict)
    #: Paths whose last progress reached its total.
    _reached: set[str] = field(default_factory=set)
    _lines: int = 0
    _published: int = 0
    _announced: set[str] = field(default_factory=set)

    @property
    def exclusive_key(self) -> str | None:
        """Tasks with the same key must not run concurrently; None if the task may run at any time."""
        return self.deployment.graph_id if self.deployment.exclusive else None

    def execute(self, release_slot: SlotRelease | None = None) -> None:
        """Run the job, store its result and report it. Never raises."""
        job = self.job
        try:
            began = time.monotonic()
            self._begin()
            started = time.perf_counter()
            with _current_task(self), self._writing(), observe_waits(lambda keys: self.services.set_waits(self, keys)):
                output, artifacts = self._run(release_slot)
            run_s = time.perf_counter() - started
            timing = {**job.timing, "queued_s": max(0.0, began - job.submitted), "run_s": run_s}
            final = self._completed(timing, output, artifacts)
        except BaseException as error:  # noqa: BLE001 - errors of blocks end their job, not the endpoint
            final = self._failed(error)
        self._store(final)

    def _begin(self) -> None:
        job = self.job
        self._check_cancelled()
        job.status, job.started, job.attempts = IN_PROGRESS, time.time(), job.attempts + 1
        job.lease_owner, job.lease_until = self.services.lease_owner, job.started + LEASE_SECONDS
        stored = self.services.jobs.transition(job)
        # a restart must know that a run which changes state has started
        if self.deployment.exclusive and not stored.result():
            raise Cancelled(job.token.reason)
        self.services.emit(job, "status", {"status": IN_PROGRESS})
        JOB_LOG.info("Job %s of %r (%s): started", job.job_id, job.principal, job.graph_id)

    def _check_cancelled(self) -> None:
        if self.job.token.cancelled:
            raise Cancelled(self.job.token.reason)

    def _run(self, release_slot: SlotRelease | None) -> tuple[dict[str, Any], list[str]]:
        from yggdrasill.values.wire import pack, unpack

        job, kind = self.job, self.deployment.kind
        request = job.request if job.request is not None else self.services.jobs.request(job.job_id).result()
        handles = self._handle if self.deployment.accepts_handles else None
        value = unpack(request["inputs"], self._load, handles=handles, checkpoint=self._check_cancelled)
        run = request["run"]
        packer = StreamingPacker(self.services.store, job.pin_owner, self._register_artifact)
        try:
            with enter_run(
                seed=run["seed"],
                path=tuple(run["path"]),
                pass_index=run["pass_index"],
                token=job.token,
                progress=self._progress,
                host=Host(release_slot or nullcontext, lambda name, output: self._publish_output(packer, name, output)),
            ):
                result = call(kind, self.deployment.runnable, value, request["options"], run["seed"])
            early = self._published and isinstance(result, dict)
            packed = packer.finish(result) if early else pack(result, self.services.store, owner=job.pin_owner)
        finally:
            packer.close()
        return packed.wire, packed.artifacts

    def _publish_output(self, packer: StreamingPacker, name: str, output: Any) -> None:
        """Pack a final output in a packer thread, unless it becomes part of the message. Outputs that are not packed in time are packed when
        the job ends.
        """
        if _is_small(output):
            return
        self._published += 1
        # the threads have stopped if the endpoint is shutting down
        with suppress(RuntimeError):
            self.services.packers.submit(self._pack_output, packer, name, output)

    def _pack_output(self, packer: StreamingPacker, name: str, output: Any) -> None:
        with self._writing():
            self._announce(packer.add(name, output))

    def _writing(self) -> AbstractContextManager[None]:
        """Record the job as the writer of what is stored inside the ``with`` block."""
        return writing_as(Writer(self.job.principal, self.job.job_id))

    @contextmanager
    def _register_artifact(self, ref: ArtifactRef, data: memoryview) -> Iterator[None]:
        """Make an output artifact available while it is being written."""
        with self.services.in_flight.register(ref.hash, data):
            self._announce([ref])
            yield

    def _announce(self, refs: list[ArtifactRef]) -> None:
        """Emit an event for artifacts that can already be fetched, once per artifact."""
        fresh = [ref for ref in refs if ref.hash not in self._announced][: max(0, _MAX_ANNOUNCED - len(self._announced))]
        if fresh:
            self._announced.update(ref.hash for ref in fresh)
            self.services.emit(self.job, "output", {"artifacts": [ref.to_json() for ref in fresh]})

    def _load(self, ref: ArtifactRef) -> memoryview:
        return self.services.store.read(ref.hash)

    def _handle(self, ref: ArtifactRef) -> ArtifactHandle:
        return ArtifactHandle(replace(ref, url=None, store=self.services.store.store_id), self._load)

    def _progress(self, path: str, done: float, total: float, text: str | None) -> None:
        now, done, total = time.monotonic(), _step(done), _step(total)
        # beyond the interval, only the first progress that reaches its total is reported: the total may be unknown and always reached
        first = done >= total and path not in self._reached
        (self._reached.discard if done < total else self._reached.add)(path)
        if not first and now - self._last_progress.get(path, 0.0) < _PROGRESS_INTERVAL:
            return
        self._last_progress[path] = now
        redact = self.services.redactor.text
        line = None if text is None else shorten(redact(str(text)), _MAX_LINE_LENGTH)
        progress = {"place": shorten(redact(path), _MAX_LINE_LENGTH), "done": done, "total": total, "text": line}
        self.job.progress = progress
        self.services.emit(self.job, "progress", progress)

    def log(self, level: str, text: str) -> None:
        """Emit a log line of a block as an event of the job."""
        self._lines += 1
        if self._lines <= _MAX_LOG_LINES:
            self.services.emit(self.job, "log", {"level": level, "text": shorten(self.services.redactor.text(text), _MAX_LINE_LENGTH)})

    # -- results ------------------------------------------------------------------------------------------------

    def _completed(self, timing: dict[str, float], output: dict[str, Any], artifacts: list[str]) -> Job:
        job = self.job
        if job.token.cancelled:
            return self._failed(Cancelled(job.token.reason))
        return replace(
            job, status=COMPLETED, finished=time.time(), output=output, timing=timing, artifacts=tuple(artifacts), request={}, **_NO_LEASE
        )

    def _failed(self, error: BaseException) -> Job:
        job = self.job
        stopped = job.token.cancelled or isinstance(error, Cancelled)
        status = job.stopped_as or CANCELLED if stopped else FAILED
        if not stopped:
            _LOG.error("Job %s of graph %r failed.", job.job_id, job.graph_id, exc_info=error)
        return replace(
            job,
            status=status,
            finished=time.time(),
            error=stop_error(job, error, self.services.redactor),
            artifacts=(),
            request={},
            **_NO_LEASE,
        )

    def _store(self, final: Job) -> None:
        """Store and report the end of the job. If its row ended otherwise at the same time, that end counts."""
        jobs = self.services.jobs

        def report(stored: Future[bool]) -> None:
            # in the thread of the store, so that the report does not wait until this thread runs again
            if stored.exception() is None and stored.result():
                self.services.finished(self.job, final)

        try:
            stored = jobs.transition(final)
            stored.add_done_callback(report)
            if stored.result():
                return
            final = _end_of_row(jobs.get(final.job_id).result(), final)
        except Exception as error:  # noqa: BLE001 - any error becomes the result of the job
            _LOG.error("Job %s could not be stored: %s", final.job_id, error)
            final = replace(final, status=FAILED, output=None, artifacts=(), error=job_error(error, self.services.redactor))
            # without this row, the next start would run the job again
            with suppress(Exception):
                jobs.transition(final).result()
        self.services.finished(self.job, final)


def _is_small(output: Any) -> bool:
    """Return whether an output consists of one number, text or tensor that a message contains."""
    if is_tensor(output):
        return bool(output.numel() * output.element_size() <= INLINE_BYTES)
    return type(output) in SCALAR_ENCODERS


def _end_of_row(stored: Job | None, final: Job) -> Job:
    """Return the end that is stored for a job, or ``final`` if its row does not exist."""
    return stored if stored is not None and stored.is_final else final


def stop_error(job: Job, error: BaseException, redactor: Redactor) -> dict[str, Any]:
    """Return the error of a failed or stopped job as JSON. For a stopped job it is the reason of the stop."""
    if not job.token.cancelled:
        return job_error(error, redactor)
    node = error.details.get("node") if isinstance(error, YggdrasillError) else None
    kind = TimedOut if job.stopped_as == TIMED_OUT else Cancelled
    return job_error(kind(job.token.reason, **({"node": node} if node else {})), redactor)


_task: ContextVar[Task | None] = ContextVar("yggdrasill_task", default=None)


@contextmanager
def _current_task(task: Task) -> Iterator[None]:
    previous = _task.set(task)
    try:
        yield
    finally:
        _task.reset(previous)


class RunLog(logging.Handler):
    """A log handler that sends log records of blocks to the events of their job."""

    def emit(self, record: logging.LogRecord) -> None:
        task = _task.get()
        if task is not None:
            task.log(record.levelname.lower(), record.getMessage())
