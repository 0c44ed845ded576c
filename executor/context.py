"""What a block may ask about the run it is part of: randomness, cancellation, progress, a logger.

Nothing of a server or a request is visible here. The context is a context variable, so it follows a run into worker
threads (`executor.branches`) and, as `RunContext.to_dict`, across a wire.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import Cancelled

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["CancelToken", "RunContext", "current_run", "derive_seed", "enter_child", "enter_run"]

ProgressSink = Callable[[str, float, float, "str | None"], None]
SlotRelease = Callable[[], AbstractContextManager[None]]
OutputSink = Callable[[str, Any], None]


class CancelToken:
    """A flag that one thread raises and a run looks at between nodes."""

    __slots__ = ("cancelled", "reason")

    def __init__(self) -> None:
        self.cancelled = False
        self.reason = "cancelled"

    def cancel(self, reason: str = "cancelled") -> None:
        """Ask the run to stop at the next node."""
        self.reason = reason
        self.cancelled = True


class RunContext:
    """The narrow view a block has of its run, from `current_run()`.

    ``seed`` is the run's seed; ``path`` the ids from the outermost run down to the container that is running;
    ``node`` the child being called; ``pass_index`` the pass of the world (0 outside one); ``call`` how often this node
    was called before in this run (its loop iteration).
    """

    __slots__ = ("_emit_output", "_progress", "_release_slot", "call", "node", "outermost", "pass_index", "path", "seed", "token")

    def __init__(
        self,
        seed: int,
        path: tuple[str, ...] = (),
        *,
        pass_index: int = 0,
        token: CancelToken | None = None,
        progress: ProgressSink | None = None,
        release_slot: SlotRelease | None = None,
        emit_output: OutputSink | None = None,
    ) -> None:
        self._release_slot = release_slot
        self._emit_output = emit_output
        self.seed = seed
        self.path = path
        self.pass_index = pass_index
        self.token = token or CancelToken()
        self._progress = progress
        self.node = ""
        self.call = 0
        #: True for the run everything else here is part of; it loads the handles in its outputs.
        self.outermost = True

    @property
    def place(self) -> str:
        """The path of the node being called, ``stage/pipeline/graph/node``."""
        return "/".join((*self.path, self.node) if self.node else self.path)

    @property
    def step(self) -> str:
        """The node being called, with the number of the call from the second on: a run nested in a loop has a path per call."""
        return f"{self.node}#{self.call}" if self.call else self.node

    @property
    def cancelled(self) -> bool:
        """True once somebody asked the run to stop; long blocks look at it, or call `check_cancelled`."""
        return self.token.cancelled

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if the run was asked to stop."""
        if self.token.cancelled:
            raise Cancelled(f"{self.place or 'run'}: {self.token.reason}", node=self.place)

    def progress(self, done: float, total: float, text: str | None = None) -> None:
        """Report ``done`` of ``total`` units of this node's work."""
        if self._progress is not None:
            self._progress(self.place, done, total, text)

    @property
    def progress_sink(self) -> ProgressSink | None:
        """Who gets reports of work as ``(place, done, total, text)``; a run that computes elsewhere passes its reports on."""
        return self._progress

    def emit_output(self, name: str, value: Any) -> None:
        """Say that the output ``name`` of this run is final, so that it can leave while the run goes on; nothing in a nested run."""
        if self._emit_output is not None:
            self._emit_output(name, value)

    def release_slot(self) -> AbstractContextManager[None]:
        """To be held while waiting for something that computes elsewhere: a host gives this run's slot to another job."""
        return nullcontext() if self._release_slot is None else self._release_slot()

    @property
    def logger(self) -> logging.Logger:
        """A logger named after the node's path."""
        return logging.getLogger("yggdrasill.run." + self.place.replace("/", "."))

    def derived_seed(self, *labels: object) -> int:
        """A seed in [0, 2**63) of this run, node, pass and call, and of ``labels`` if a block needs several."""
        return derive_seed(self.seed, (*self.path, self.node), self.pass_index, self.call, *labels)

    def generator(self, *labels: object, device: str = "cpu") -> torch.Generator:
        """A torch generator with `derived_seed`: equal for equal (run seed, path, pass, call), wherever it runs."""
        import torch

        return torch.Generator(device=device).manual_seed(self.derived_seed(*labels))

    def rng(self, *labels: object) -> numpy.random.Generator:
        """The same as `generator` for numpy (PCG64)."""
        import numpy

        return numpy.random.Generator(numpy.random.PCG64(self.derived_seed(*labels)))

    def child(self, name: str, *, seed: int | None = None, pass_index: int | None = None) -> RunContext:
        """The context of a run nested under ``name``: same seed, token and progress, longer path."""
        context = RunContext(
            self.seed if seed is None else seed,
            (*self.path, name) if name else self.path,
            pass_index=self.pass_index if pass_index is None else pass_index,
            token=self.token,
            progress=self._progress,
            release_slot=self._release_slot,
            # what is nested under a name has outputs of its own
            emit_output=None if name else self._emit_output,
        )
        context.outermost = False
        return context

    def to_dict(self) -> dict[str, Any]:
        """What a remote run needs to draw the same random numbers: seed, path, pass."""
        return {"seed": self.seed, "path": list(self.path), "pass_index": self.pass_index}


def derive_seed(seed: int, path: tuple[str, ...], pass_index: int, call: int, *labels: object) -> int:
    """A seed in [0, 2**63): blake2b over the parts, so near seeds give unrelated generators."""
    text = "\x1f".join((str(seed), "\x1e".join(path), str(pass_index), str(call), *map(str, labels)))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


_current: ContextVar[RunContext | None] = ContextVar("yggdrasill_run", default=None)


def current_run() -> RunContext:
    """The context of the run this code is part of; outside a run a fresh one with a random seed."""
    context = _current.get()
    return context if context is not None else RunContext(secrets.randbits(63))


@contextmanager
def enter_run(
    *,
    seed: int | None = None,
    path: tuple[str, ...] | None = None,
    pass_index: int | None = None,
    token: CancelToken | None = None,
    progress: ProgressSink | None = None,
    release_slot: SlotRelease | None = None,
    emit_output: OutputSink | None = None,
) -> Iterator[RunContext]:
    """Make a run current: the outermost one draws a seed if none is given, a nested one inherits what is not given."""
    outer = _current.get()
    if outer is None:
        context = RunContext(
            secrets.randbits(63) if seed is None else seed,
            path or (),
            pass_index=pass_index or 0,
            token=token,
            progress=progress,
            release_slot=release_slot,
            emit_output=emit_output,
        )
    else:
        context = outer.child(outer.step, seed=seed, pass_index=pass_index)
        if path is not None:
            context.path = path
        if token is not None:
            context.token = token
        if progress is not None:
            context._progress = progress
        if release_slot is not None:
            context._release_slot = release_slot
        if emit_output is not None:
            context._emit_output = emit_output
    previous = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(previous)


@contextmanager
def enter_child(context: RunContext, name: str) -> Iterator[None]:
    """Make ``context`` current in this thread with ``name`` as the child being called, so its run gets ``path + name``."""
    here = context.child("")
    here.node = name
    previous = _current.set(here)
    try:
        yield
    finally:
        _current.reset(previous)
