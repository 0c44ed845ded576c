"""The one loop that runs programs: buffer, cycles, hooks, and the boundary around user code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from yggdrasill.errors import BlockFailed, Cancelled, InvalidArgument, MissingInput, RemoteError, RunError, TimedOut, unknown
from yggdrasill.executor.context import RunContext, enter_run
from yggdrasill.executor.hooks import Callbacks, Emit, as_emit
from yggdrasill.executor.program import MISSING, Call, Executable, Gather, Key, Loop, Pick, Program

__all__ = ["Buffer", "collect_inputs", "loop_count", "run"]

Buffer = dict[Key, Any]


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
) -> dict[str, Any]:
    """Run a graph and return its exposed outputs by external key; an output nothing wrote is left out.

    ``inputs`` are keyed by external key or by ``(node_id, port)``. Every cycle runs ``num_loop_steps`` times (default:
    ``metadata["num_loop_steps"]``, else 1). Hooks are called as ``hook(node_id, phase, **facts)`` with phases ``before``
    (buffer), ``after`` (buffer, inputs, outputs), ``loop_start`` (num_steps, node_ids) and ``loop_end`` (iteration from 1,
    num_steps). ``dry_run`` walks everything without calling a block and gives None for every output.

    Raises:
        UnknownName: an input nothing takes.
        BlockFailed, MissingInput, HookFailed, Cancelled: see `yggdrasill.errors`.
    """
    program = graph.program()
    times = loop_count(num_loop_steps, graph.metadata)
    emit = as_emit(callbacks)
    buffer = _fill(program, inputs or {})
    if device is not None:
        graph.to(device)
    program.set_mode(training)
    with enter_run(seed=seed) as context:
        _run_steps(program.steps, times, buffer, context, emit, dry_run)
    return {name: buffer[key] for name, key in program.outputs if key in buffer}


def loop_count(argument: int | None, metadata: Mapping[str, Any]) -> int:
    """How often cycles run: the argument, else ``metadata["num_loop_steps"]``, else 1."""
    count = metadata.get("num_loop_steps", 1) if argument is None else argument
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InvalidArgument(f"num_loop_steps must be an integer of at least 0, got {count!r}")
    return count


def _fill(program: Program, inputs: Mapping[Any, Any]) -> Buffer:
    buffer: Buffer = {}
    for name, value in inputs.items():
        keys = program.inputs.get(name) if isinstance(name, str) else None
        if keys is not None:
            for key in keys:
                buffer[key] = value
        elif name in program.ports:
            buffer[name] = value
        else:
            raise unknown("input", name, program.inputs, "An input is named by its external key or by (node_id, port).")
    return buffer


def _run_steps(  # noqa: C901, PLR0912 - the hot loop is written out
    steps: Sequence[Call | Loop], times: int, buffer: Buffer, context: RunContext, emit: Emit | None, dry_run: bool
) -> None:
    """Run steps in order. Every node of every graph passes here, so nothing is called that could be written out."""
    token = context.token
    for step in steps:
        if type(step) is not Call:
            _run_cycle(cast(Loop, step), times, buffer, context, emit, dry_run)
            continue
        context.node = step.node_id
        if token.cancelled:
            context.check_cancelled()
        if emit:
            emit(step.node_id, "before", buffer=buffer)
        if dry_run:
            inputs = _known_inputs(step, buffer)
            outputs: Mapping[str, Any] = dict.fromkeys(port for port, _ in step.outputs)
        else:
            inputs = {}
            for pick in step.picks:
                for key in pick.keys:
                    if key in buffer:
                        inputs[pick.port] = buffer[key]
                        break
                else:
                    if pick.default is not MISSING:
                        inputs[pick.port] = pick.default
            if step.gathers:
                _gather(step.gathers, buffer, inputs, context)
            step.lock.acquire()
            try:
                outputs = step.forward(inputs)
            except Exception as error:
                failure = _failure(step, inputs, context, error)
                if failure is error:
                    raise
                raise failure from error
            finally:
                step.lock.release()
            if type(outputs) is not dict and not isinstance(outputs, Mapping):
                raise _stray_output(step, outputs, context)
        written = 0
        for port, key in step.outputs:
            if port in outputs:
                buffer[key] = outputs[port]
                written += 1
        if written != len(outputs):
            raise _stray_output(step, outputs, context)
        if emit:
            emit(step.node_id, "after", buffer=buffer, inputs=inputs, outputs=outputs)


def _run_cycle(loop: Loop, times: int, buffer: Buffer, context: RunContext, emit: Emit | None, dry_run: bool) -> None:
    if emit:
        emit(loop.representative, "loop_start", num_steps=times, node_ids=[call.node_id for call in loop.calls])
    for iteration in range(times):
        context.call = iteration
        _run_steps(loop.calls, times, buffer, context, emit, dry_run)
        if emit:
            emit(loop.representative, "loop_end", iteration=iteration + 1, num_steps=times)
    context.call = 0


def collect_inputs(picks: Iterable[Pick], gathers: Iterable[Gather], buffer: Buffer, context: RunContext) -> dict[str, Any]:
    """A child's inputs by port: what its edges carry, else what was given from outside, else defaults; absent ones left out.

    Raises:
        BlockFailed: the values of one port cannot be joined.
    """
    inputs = _pick(picks, buffer)
    _gather(gathers, buffer, inputs, context)
    return inputs


def _pick(picks: Iterable[Pick], buffer: Buffer) -> dict[str, Any]:
    inputs = {}
    for pick in picks:
        value = next((buffer[key] for key in pick.keys if key in buffer), pick.default)
        if value is not MISSING:
            inputs[pick.port] = value
    return inputs


def _gather(gathers: Iterable[Gather], buffer: Buffer, inputs: dict[str, Any], context: RunContext) -> None:
    for gather in gathers:
        present = [key for key in gather.keys if key in buffer]
        if present:
            try:
                inputs[gather.port] = gather.join(present, [buffer[key] for key in present])
            except Exception as error:
                message = f"node {context.place!r}, input {gather.port!r}: {error}"
                raise BlockFailed(message, node=context.place, port=gather.port) from error
        elif (value := buffer.get(gather.own, gather.default)) is not MISSING:
            inputs[gather.port] = value


def _known_inputs(call: Call, buffer: Buffer) -> dict[str, Any]:
    """The inputs of a call in a dry run: nothing is joined, since nothing was computed."""
    inputs = _pick(call.picks, buffer)
    for gather in call.gathers:
        if any(key in buffer for key in gather.keys):
            inputs[gather.port] = None
        elif (value := buffer.get(gather.own, gather.default)) is not MISSING:
            inputs[gather.port] = value
    return inputs


def _failure(call: Call, inputs: Mapping[str, Any], context: RunContext, error: Exception) -> Exception:
    if isinstance(error, (Cancelled, RemoteError, TimedOut)) or (isinstance(error, RunError) and "node" in error.details):
        return error
    facts = {"node": context.place, "block_type": call.block_type, "cause": type(error).__name__}
    absent = sorted(call.required - inputs.keys())
    if absent:
        return MissingInput(
            f"node {context.place!r} ({call.block_type}) needs input {', '.join(map(repr, absent))}, which nothing fed "
            f"(it raised {type(error).__name__}: {error}); connect or expose the port, pass a value, or give a default",
            ports=absent,
            **facts,
        )
    return BlockFailed(f"node {context.place!r} ({call.block_type}) failed: {type(error).__name__}: {error}", **facts)


def _stray_output(call: Call, outputs: Any, context: RunContext) -> BlockFailed:
    declared = [port for port, _ in call.outputs]
    if isinstance(outputs, Mapping):
        stray = sorted(str(port) for port in outputs if port not in declared)
        what = f"returned {', '.join(map(repr, stray))}, which it does not declare"
    else:
        what = f"returned {type(outputs).__name__}, not a dict by port name"
    return BlockFailed(
        f"node {context.place!r} ({call.block_type}) {what}; its output ports are {declared}",
        node=context.place,
        block_type=call.block_type,
    )
