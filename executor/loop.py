"""The scheduler: one loop runs the programs of graphs, pipelines and stages, in one thread or in several."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import (
    BlockFailed,
    Cancelled,
    InvalidArgument,
    MissingInput,
    RemoteError,
    RunError,
    TimedOut,
    format_options,
    unknown_name,
)
from yggdrasill.executor.context import CancelToken, RunContext, enter_context, enter_run
from yggdrasill.executor.hooks import Callbacks, Emit, as_emit
from yggdrasill.executor.program import MISSING, Call, Executable, Join, Key, Loop, Program, Step
from yggdrasill.executor.workers import WorkerPool, check_workers, run_branches

__all__ = ["Buffer", "Frame", "check_options", "execute", "fill", "loop_count", "read_outputs", "run"]


class Buffer(MutableMapping[Key, Any]):
    """A run's values by key, as hooks see them; the loop works on ``values_by_slot``."""

    __slots__ = ("slots", "values_by_slot")

    def __init__(self, slots: Mapping[Key, int]) -> None:
        self.slots = slots
        self.values_by_slot: list[Any] = [MISSING] * len(slots)

    def __getitem__(self, key: Key) -> Any:
        value = self.values_by_slot[self.slots[key]]
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Key, value: Any) -> None:
        self.values_by_slot[self.slots[key]] = value

    def __delitem__(self, key: Key) -> None:
        self[key]
        self.values_by_slot[self.slots[key]] = MISSING

    def __iter__(self) -> Iterator[Key]:
        return (key for key, slot in self.slots.items() if self.values_by_slot[slot] is not MISSING)

    def __len__(self) -> int:
        return sum(value is not MISSING for value in self.values_by_slot)

    def __repr__(self) -> str:
        return f"Buffer({dict(self)!r})"


@dataclass(slots=True)
class Frame:
    """One run of one program.

    ``times`` is how often cycles run, ``options`` the run options of children, ``load`` a function that replaces handles in
    the inputs of a child (None where no handle can be), ``wanted`` a test by id that a child must pass to run.
    """

    program: Program
    buffer: Buffer
    emit: Emit | None = None
    training: bool = False
    dry_run: bool = False
    times: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[[Any], Any] | None = None
    wanted: Callable[[str], bool] | None = None


def run(
    graph: Executable,
    inputs: Mapping[Any, Any] | None = None,
    *,
    training: bool = False,
    num_loop_steps: int | None = None,
    device: Any = None,
    callbacks: Callbacks = None,
    dry_run: bool = False,
    seed: int | None = None,
    max_workers: int | None = None,
    **unknown: Any,
) -> dict[str, Any]:
    """Run a graph or pipeline and return its exposed outputs by external key; an output that nothing wrote is left out.

    ``inputs`` are keyed by external key or by ``(node_id, port)``. Every cycle runs ``num_loop_steps`` times (default:
    ``metadata["num_loop_steps"]``, else 1). Hooks are called as ``hook(node_id, phase, **facts)`` with phases ``before``
    (buffer), ``after`` (buffer, inputs, outputs), ``loop_start`` (num_steps, node_ids) and ``loop_end`` (iteration from 1,
    num_steps). ``dry_run`` walks everything without calling a block and gives None for every output. With ``max_workers``
    above 1, nodes that do not depend on each other run at the same time, with the same results; a cycle runs in order. The
    bound holds for the outermost run and everything nested in it.

    Raises:
        UnknownName: an input that the graph does not have.
        InvalidArgument: an unknown run option. InvalidEdge: an edge to a port that no longer exists.
        BlockFailed, MissingInput, HookFailed, Cancelled: see `yggdrasill.errors`.
    """
    check_options(unknown, (), run)
    program = graph.program()
    if program.of_runnables:
        given = {"num_loop_steps": num_loop_steps} if num_loop_steps is not None else {}
        options = {"training": training, "device": device, "callbacks": callbacks, "dry_run": dry_run, "seed": seed, **given}
        outputs: dict[str, Any] = graph.run(inputs, max_workers=max_workers, **options)
        return outputs
    times = loop_count(num_loop_steps, graph.metadata)
    emit = None if callbacks is None else as_emit(callbacks)
    buffer = fill(program, inputs or {})
    if device is not None:
        graph.to(device)
    frame = Frame(program, buffer, emit, bool(training), dry_run, times)
    with enter_run(seed=seed) as context:
        execute(frame, context, max_workers)
    return read_outputs(program, buffer)


def check_options(given: Iterable[str], known: Collection[str], method: Callable[..., Any]) -> None:
    """Raise `InvalidArgument` for the first of ``given`` that is not ``known``; the message also lists the options of ``method``."""
    for name in given:
        if name not in known:
            parameters = inspect.signature(method).parameters.values()
            options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
            raise InvalidArgument(f"Unknown run option {name!r}. Available: {format_options([*options, *known], near=name)}.", option=name)


def loop_count(argument: int | None, metadata: Mapping[str, Any]) -> int:
    """Return how often cycles run: the argument, else ``metadata["num_loop_steps"]``, else 1."""
    count = metadata.get("num_loop_steps", 1) if argument is None else argument
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InvalidArgument(f"num_loop_steps must be an integer of at least 0, got {count!r}")
    return count


def fill(program: Program, inputs: Mapping[Any, Any]) -> Buffer:
    """Return a buffer with ``inputs``, which are named by external key or by the key of a slot.

    Raises:
        UnknownName: the program has no such input.
    """
    buffer = Buffer(program.slots)
    values = buffer.values_by_slot
    for name, value in inputs.items():
        slots = program.inputs.get(name) if isinstance(name, str) else None
        if slots is not None:
            for slot in slots:
                values[slot] = value
        elif name in program.slots:
            buffer[name] = value
        else:
            raise unknown_name("input", name, program.inputs, program.hint)
    return buffer


def read_outputs(program: Program, buffer: Buffer) -> dict[str, Any]:
    """Return the external outputs that were written."""
    values = buffer.values_by_slot
    return {name: values[slot] for name, slot in program.outputs if values[slot] is not MISSING}


def execute(frame: Frame, context: RunContext, max_workers: int | None = None) -> None:
    """Run a program in ``context``, which is current.

    The first run with a ``max_workers`` makes the pool. Runs nested in it share the pool, whatever they ask for, except that
    1 keeps them in their thread.
    """
    if max_workers is None:
        _execute(frame, context)
        return
    workers = check_workers(max_workers)
    if context.workers is not None and workers > 1:
        _execute(frame, context)
        return
    outer, context.workers = context.workers, WorkerPool(workers)
    try:
        _execute(frame, context)
    finally:
        context.workers.close()
        context.workers = outer


def _execute(frame: Frame, context: RunContext) -> None:
    pool, program = context.workers, frame.program
    if pool is None or pool.limit == 1 or frame.dry_run or not program.has_branches:
        _run_steps(program.steps, frame, context)
    else:
        _run_branches(frame, context, pool)


def _run_branches(frame: Frame, context: RunContext, pool: WorkerPool) -> None:
    steps, emit = frame.program.steps, frame.emit
    if emit is not None:
        frame.emit = _one_at_a_time(emit)

    def run_step(position: int, token: CancelToken) -> None:
        branch = context.branch(token)
        with enter_context(branch):
            _run_steps(steps[position : position + 1], frame, branch)

    run_branches(pool, frame.program.sources, context.token, run_step)


def _one_at_a_time(emit: Emit) -> Emit:
    lock = threading.Lock()

    def locked(node_id: str, phase: str, **facts: Any) -> None:
        with lock:
            emit(node_id, phase, **facts)

    return locked


def _run_steps(steps: Sequence[Step], frame: Frame, context: RunContext) -> None:  # noqa: C901, PLR0912, PLR0915 - the hot loop is written out
    """Run steps in order. Every node of every graph passes here, so nothing is called that could be written out."""
    token, buffer, emit, training, dry_run = context.token, frame.buffer, frame.emit, frame.training, frame.dry_run
    values = buffer.values_by_slot
    for call in steps:
        if type(call) is Loop:
            _run_cycle(call, frame, context)
            continue
        context.node = call.node_id
        if token.cancelled:
            context.check_cancelled()
        lock = call.lock
        if lock is None:
            if frame.wanted is not None and not frame.wanted(call.node_id):
                if emit:
                    emit(call.node_id, "skipped")
                continue
        elif emit:
            emit(call.node_id, "before", buffer=buffer)
        inputs = {}
        for port, slot, others, default in call.inputs:
            value = values[slot]
            if value is MISSING:
                for other in others:
                    value = values[other]
                    if value is not MISSING:
                        break
                else:
                    if default is MISSING:
                        continue
                    value = _fresh(default) if type(default) in _MUTABLE else default
            inputs[port] = value
        if call.joins:
            for join in call.joins:
                _join(join, values, inputs, context, dry_run)
        if lock is None:
            outputs = _run_child(call, inputs, frame, context)
            for port, slot in call.outputs:
                if port in outputs:
                    values[slot] = outputs[port]
            continue
        if dry_run:
            outputs = dict.fromkeys(port for port, _ in call.outputs)
        else:
            block = call.target
            lock.acquire()
            try:
                if call.set_mode is not None:
                    call.set_mode(training)
                elif block.training is not training:
                    block.training = training
                outputs = block.forward(inputs)
            except Exception as error:
                failure = _failure(call, inputs, context, error)
                if failure is error:
                    raise
                raise failure from error
            finally:
                lock.release()
            if type(outputs) is not dict and not isinstance(outputs, Mapping):
                raise _stray_output(call, outputs, context)
        written = 0
        for port, slot in call.outputs:
            if port in outputs:
                values[slot] = outputs[port]
                written += 1
        if written != len(outputs):
            raise _stray_output(call, outputs, context)
        if emit:
            emit(call.node_id, "after", buffer=buffer, inputs=inputs, outputs=outputs)


def _run_cycle(loop: Loop, frame: Frame, context: RunContext) -> None:
    emit, times = frame.emit, frame.times
    if emit:
        emit(loop.representative, "loop_start", num_steps=times, node_ids=[call.node_id for call in loop.calls])
    for iteration in range(times):
        context.call = iteration
        _run_steps(loop.calls, frame, context)
        if emit:
            emit(loop.representative, "loop_end", iteration=iteration + 1, num_steps=times)
    context.call = 0


def _run_child(call: Call, inputs: dict[str, Any], frame: Frame, context: RunContext) -> Mapping[str, Any]:
    """Run a graph, pipeline or other runnable. Its errors carry their place already."""
    if frame.load is not None and not call.accepts_handles:
        inputs = {port: frame.load(value) for port, value in inputs.items()}
    if frame.emit:
        frame.emit(call.node_id, "before", inputs=inputs)
    outputs = call.target.run(inputs, **frame.options)
    if not isinstance(outputs, Mapping):
        place = context.place
        raise BlockFailed(f"{call.kind} {place!r} returned {type(outputs).__name__}, not a dict by output name", node=place)
    if frame.emit:
        frame.emit(call.node_id, "after", outputs=outputs)
    return outputs


#: The types of a default that a block could change.
_MUTABLE = frozenset({list, dict})


def _fresh(default: Any) -> Any:
    """Return a copy of a default's lists and dicts, so that a block that changes its input does not change the next run."""
    if type(default) is list:
        return [_fresh(item) for item in default]
    if type(default) is dict:
        return {key: _fresh(item) for key, item in default.items()}
    return default


def _join(join: Join, values: Sequence[Any], inputs: dict[str, Any], context: RunContext, dry_run: bool) -> None:
    found = [values[slot] for slot in join.slots]
    present = [value for value in found if value is not MISSING]
    if not present:
        value = _fresh(join.default) if values[join.given] is MISSING else values[join.given]
        if value is not MISSING:
            inputs[join.port] = value
        return
    if dry_run:
        # Nothing was computed, so there are no values to join.
        inputs[join.port] = None
        return
    keys = join.keys if len(present) == len(found) else [key for key, value in zip(join.keys, found, strict=True) if value is not MISSING]
    try:
        inputs[join.port] = join.join(keys, present)
    except Exception as error:
        message = f"node {context.place!r}, input {join.port!r}: {error}"
        raise BlockFailed(message, node=context.place, port=join.port) from error


def _failure(call: Call, inputs: Mapping[str, Any], context: RunContext, error: Exception) -> Exception:
    if isinstance(error, (Cancelled, RemoteError, TimedOut)) or (isinstance(error, RunError) and "node" in error.details):
        return error
    facts = {"node": context.place, "block_type": call.kind, "cause": type(error).__name__}
    absent = sorted(call.required - inputs.keys())
    if absent:
        return MissingInput(
            f"node {context.place!r} ({call.kind}) needs input {', '.join(map(repr, absent))}, which nothing fed "
            f"(it raised {type(error).__name__}: {error}); connect or expose the port, pass a value, or give a default",
            ports=absent,
            **facts,
        )
    return BlockFailed(f"node {context.place!r} ({call.kind}) failed: {type(error).__name__}: {error}", **facts)


def _stray_output(call: Call, outputs: Any, context: RunContext) -> BlockFailed:
    declared = [port for port, _ in call.outputs]
    if isinstance(outputs, Mapping):
        stray = sorted(str(port) for port in outputs if port not in declared)
        what = f"returned {', '.join(map(repr, stray))}, which it does not declare"
    else:
        what = f"returned {type(outputs).__name__}, not a dict by port name"
    return BlockFailed(
        f"node {context.place!r} ({call.kind}) {what}; its output ports are {declared}",
        node=context.place,
        block_type=call.kind,
    )
