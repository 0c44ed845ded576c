"""The run context: a block's access to the run it is part of (randomness, cancellation, progress, a logger).

The context is a context variable. It follows a run into worker threads (`executor.workers`) and, as `RunContext.to_dict`,
to other machines. The services of a host are a separate object, `Host`, which blocks do not need. Beside the context are the keys
of the remote calls that a run waits for.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from yggdrasill.errors import Cancelled

if TYPE_CHECKING:
    import numpy
    import torch

    from yggdrasill.executor.workers import WorkerPool

__all__ = [
    "CancelToken",
    "Host",
    "RunContext",
    "WaitCallback",
    "WaitedCalls",
    "current_run",
    "derive_seed",
    "enter_child",
    "enter_context",
    "enter_run",
    "observe_waits",
    "waiting",
]

ProgressSink = Callable[[str, float, float, "str | None"], None]

#: Re-entrant, because a signal handler may cancel while its thread derives a token.
_deriving = threading.RLock()


class CancelToken:
    """A flag that one thread sets and a run checks between steps. Cancelling it cancels the tokens derived from it."""

    __slots__ = ("__weakref__", "_derived", "cancelled", "reason")

    def __init__(self) -> None:
        self.cancelled = False
        self.reason = "cancelled"
        self._derived: WeakSet[CancelToken] | None = None

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop the run before its next step."""
        self.reason = reason
        self.cancelled = True
        if self._derived is not None:
            with _deriving:
                derived = list(self._derived)
            for token in derived:
                token.cancel(reason)

    def derive(self) -> CancelToken:
        """Return a token for a part of the run; it is cancelled with this one, and can be cancelled without it."""
        token = CancelToken()
        with _deriving:
            if self._derived is None:
                self._derived = WeakSet()
            self._derived.add(token)
        if self.cancelled:
            token.cancel(self.reason)
        return token


def _discard(name: str, value: Any) -> None:
    """Ignore an output."""


@dataclass(frozen=True, slots=True)
class Host:
    """The services of the host that executes a run: a job server, or ComfyUI's queue.

    ``release_slot()`` is a context manager that is held while the run waits for another machine, so that the run's slot
    can serve another job. ``emit_output(name, value)`` publishes an output of the run before the run finishes.
    """

    release_slot: Callable[[], AbstractContextManager[None]] = nullcontext
    emit_output: Callable[[str, Any], None] = _discard

    def for_nested(self) -> Host:
        """Return the services of a nested run. Its outputs are not those of the job, so they are not published."""
        return self if self.emit_output is _discard else Host(self.release_slot)


_NO_HOST = Host()


class RunContext:
    """A block's view of its run, from `current_run()`.

    ``seed`` is the run's seed; ``path`` the ids from the outermost run down to the container that is running; ``node`` the
    child being called; ``pass_index`` the pass of the world (0 outside a world); ``call`` the number of earlier calls of
    this node in this run (its loop iteration); ``outermost`` is False in nested runs. ``host`` holds the services of the
    host. ``workers`` bounds the threads of the outermost run, None for one thread. ``handles`` says that values given to a
    nested run may be handles.
    """

    __slots__ = (
        "_nested",
        "_progress",
        "call",
        "handles",
        "host",
        "node",
        "outermost",
        "pass_index",
        "path",
        "seed",
        "token",
        "workers",
    )

    def __init__(
        self,
        seed: int,
        path: tuple[str, ...] = (),
        *,
        pass_index: int = 0,
        token: CancelToken | None = None,
        progress: ProgressSink | None = None,
        host: Host | None = None,
    ) -> None:
        self.seed = seed
        self.path = path
        self.pass_index = pass_index
        self.token = token or CancelToken()
        self._progress = progress
        self.host = host or _NO_HOST
        self.node = ""
        self.call = 0
        self.outermost = True
        self.workers: WorkerPool | None = None
        self.handles = True
        #: The node, its call, and the number of runs nested in that call so far.
        self._nested = ("", 0, 0)

    @property
    def place(self) -> str:
        """The path of the node being called, ``stage/pipeline/graph/node``."""
        return "/".join((*self.path, self.node) if self.node else self.path)

    def _next_step(self) -> str:
        """Return the path element of the next nested run: ``node``, ``node#1`` in the second call, ``node+1`` for the second run.

        Without a node (the context of a host) it is empty: such a run has the path of the context itself.
        """
        if not self.node:
            return ""
        node, call, runs = self._nested
        runs = runs + 1 if (node, call) == (self.node, self.call) else 0
        self._nested = (self.node, self.call, runs)
        step = f"{self.node}#{self.call}" if self.call else self.node
        return f"{step}+{runs}" if runs else step

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled. A block that computes for long checks it, or calls `check_cancelled`."""
        return self.token.cancelled

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if the run was cancelled."""
        if self.token.cancelled:
            raise Cancelled(f"{self.place or 'run'}: {self.token.reason}", node=self.place)

    def progress(self, done: float, total: float, text: str | None = None) -> None:
        """Report ``done`` of ``total`` units of this node's work."""
        if self._progress is not None:
            self._progress(self.place, done, total, text)

    @property
    def progress_sink(self) -> ProgressSink | None:
        """The function that receives progress as ``(place, done, total, text)``; a remote run passes its reports to it."""
        return self._progress

    @property
    def logger(self) -> logging.Logger:
        """A logger named after the node's path."""
        return logging.getLogger("yggdrasill.run." + self.place.replace("/", "."))

    def derived_seed(self, *labels: object) -> int:
        """Return a seed in [0, 2**63) of this run, node, pass and call, and of ``labels`` if a block needs several."""
        return derive_seed(self.seed, (*self.path, self.node), self.pass_index, self.call, *labels)

    def generator(self, *labels: object, device: str = "cpu") -> torch.Generator:
        """Return a torch generator with `derived_seed`: equal for equal (run seed, path, pass, call), on any machine."""
        import torch

        return torch.Generator(device=device).manual_seed(self.derived_seed(*labels))

    def rng(self, *labels: object) -> numpy.random.Generator:
        """Return the equivalent of `generator` for numpy (PCG64)."""
        import numpy

        return numpy.random.Generator(numpy.random.PCG64(self.derived_seed(*labels)))

    def child(self, name: str, *, seed: int | None = None, pass_index: int | None = None) -> RunContext:
        """Return the context of a run nested under ``name``: same seed, token, progress and workers, longer path."""
        context = RunContext(
            self.seed if seed is None else seed,
            (*self.path, name) if name else self.path,
            pass_index=self.pass_index if pass_index is None else pass_index,
            token=self.token,
            progress=self._progress,
            host=self.host.for_nested() if name else self.host,
        )
        context.outermost = False
        context.workers, context.handles = self.workers, self.handles
        return context

    def branch(self, token: CancelToken) -> RunContext:
        """Return a context for one step of this run in another thread: the same run with ``token`` and a node of its own."""
        context = self.child("")
        context.outermost, context.token = self.outermost, token
        return context

    def to_dict(self) -> dict[str, Any]:
        """Return the facts with which a remote run draws the same random numbers: seed, path, pass."""
        return {"seed": self.seed, "path": list(self.path), "pass_index": self.pass_index}


def derive_seed(seed: int, path: tuple[str, ...], pass_index: int, call: int, *labels: object) -> int:
    """Return a seed in [0, 2**63): blake2b over the parts, so that near seeds give unrelated generators."""
    text = "\x1f".join((str(seed), "\x1e".join(path), str(pass_index), str(call), *map(str, labels)))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


_current: ContextVar[RunContext | None] = ContextVar("yggdrasill_run", default=None)


class enter_context:  # noqa: N801 - used like a function; a generator would double the time of a small run
    """A context manager that makes ``context`` current in this thread and returns it."""

    __slots__ = ("_context", "_previous")

    _previous: Token[RunContext | None]

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def __enter__(self) -> RunContext:
        self._previous = _current.set(self._context)
        return self._context

    def __exit__(self, *failure: object) -> None:
        _current.reset(self._previous)


def current_run() -> RunContext:
    """Return the context of the current run; outside a run a new one with a random seed."""
    context = _current.get()
    return context if context is not None else RunContext(secrets.randbits(63))


def enter_run(
    *,
    seed: int | None = None,
    path: tuple[str, ...] | None = None,
    pass_index: int | None = None,
    token: CancelToken | None = None,
    progress: ProgressSink | None = None,
    host: Host | None = None,
) -> enter_context:
    """Return a context manager that makes a run current. The outermost run draws a seed if none is given; a nested run inherits the rest."""
    outer = _current.get()
    if outer is None:
        seed = secrets.randbits(63) if seed is None else seed
        context = RunContext(seed, path or (), pass_index=pass_index or 0, token=token, progress=progress, host=host)
    else:
        context = outer.child(outer._next_step(), seed=seed, pass_index=pass_index)
        if path is not None:
            context.path = path
        if token is not None:
            context.token = token
        if progress is not None:
            context._progress = progress
        if host is not None:
            context.host = host
    return enter_context(context)


def enter_child(context: RunContext, name: str) -> enter_context:
    """Make ``context`` current in this thread with ``name`` as the child being called: a nested run has ``path + name``."""
    nested = context.child("")
    nested.node = name
    return enter_context(nested)


# -- calls that a run waits for ---------------------------------------------------------------------------------------
#
# Their keys let the caller of a run detect that both wait for each other: waiting code uses `waiting` and passes on the keys that the
# other side reports; a host observes the runs it starts and reports their keys to the callers. The host breaks such deadlocks.

WaitCallback = Callable[[Iterable[str]], None]
"""Receives the keys of all calls that one location waits for."""
MOST_KEYS = 64


class WaitedCalls:
    """The keys of the calls that one run waits for, in all its threads.

    ``on_change(keys)`` receives them sorted, at most 64, whenever they change: from any thread, but never concurrently.
    """

    def __init__(self, on_change: Callable[[list[str]], None]) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._open: dict[object, frozenset[str]] = {}
        self._reported: list[str] = []

    @contextmanager
    def waiting(self) -> Iterator[WaitCallback]:
        """Register one more waiting location for this block. Its keys are those that the yielded function was last called with."""
        location = object()
        with self._lock:
            self._open[location] = frozenset()
        try:
            yield lambda keys: self._set_keys(location, keys)
        finally:
            with self._lock:
                del self._open[location]
                self._changed()

    def _set_keys(self, location: object, keys: Iterable[str]) -> None:
        with self._lock:
            # Another thread may call this after the block has ended.
            if location in self._open:
                self._open[location] = frozenset(keys)
                self._changed()

    def _changed(self) -> None:
        keys = sorted(frozenset().union(*self._open.values()))[:MOST_KEYS]
        if keys != self._reported:
            self._reported = keys
            self._on_change(keys)


_waits: ContextVar[WaitedCalls | None] = ContextVar("yggdrasill_waits", default=None)


@contextmanager
def observe_waits(on_change: Callable[[list[str]], None]) -> Iterator[None]:
    """Call ``on_change`` with the keys of the calls that are waited for within this block or in branches it starts; see `WaitedCalls`."""
    before = _waits.set(WaitedCalls(on_change))
    try:
        yield
    finally:
        _waits.reset(before)


@contextmanager
def waiting() -> Iterator[WaitCallback | None]:
    """Yield a function that sets the calls the current run waits for within this block, or None without an observer."""
    waits = _waits.get()
    if waits is None:
        yield None
        return
    with waits.waiting() as learn:
        yield learn
