"""The one loop that runs programs: buffer, cycles, hooks, and the boundary around user code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import BlockFailed, Cancelled, InvalidArgument, MissingInput, RemoteError, RunError, unknown
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
    steps = loop_count(num_loop_steps, graph.metadata)
    emit = as_emit(callbacks)
    buffer = _fill(program, inputs or {})
    if device is not None:
        graph.to(device)
    program.set_mode(training)
    with enter_run(seed=seed) as context:
        for step in program.steps:
            if type(step) is Call:
                _call(step, buffer, context, emit, dry_run)
            else:
                assert isinstance(step, Loop)
                _loop(step, steps, buffer, context, emit, dry_run)
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


def _loop(loop: Loop, steps: int, buffer: Buffer, context: RunContext, emit: Emit | None, dry_run: bool) -> None:
    if emit:
        emit(loop.representative, "loop_start", num_steps=steps, node_ids=[call.node_id for call in loop.calls])
    for iteration in range(steps):
        context.call = iteration
        for call in loop.calls:
            _call(call, buffer, context, emit, dry_run)
        if emit:
            emit(loop.representative, "loop_end", iteration=iteration + 1, num_steps=steps)
    context.call = 0


def _call(call: Call, buffer: Buffer, context: RunContext, emit: Emit | None, dry_run: bool) -> None:
    context.node = call.node_id
    if context.token.cancelled:
        context.check_cancelled()
    if emit:
        emit(call.node_id, "before", buffer=buffer)
    inputs = collect_inputs(call.picks, call.gathers, buffer, context) if call.gathers else _pick(call.picks, buffer)
    if dry_run:
        outputs: Mapping[str, Any] = {port: None for port, _ in call.outputs}
    else:
        try:
            with call.lock:
                outputs = call.forward(inputs)
        except Exception as error:
            raise _failure(call, inputs, context, error) from error
    written = 0
    try:
        for port, key in call.outputs:
            if port in outputs:
                buffer[key] = outputs[port]
                written += 1
        if written != len(outputs):
            raise _stray_output(call, outputs, context)
    except TypeError as error:
        raise _stray_output(call, outputs, context) from error
    if emit:
        emit(call.node_id, "after", buffer=buffer, inputs=inputs, outputs=outputs)


def _pick(picks: tuple[Pick, ...], buffer: Buffer) -> dict[str, Any]:
    inputs = {}
    for pick in picks:
        for key in pick.keys:
            if key in buffer:
                inputs[pick.port] = buffer[key]
                break
        else:
            if pick.default is not MISSING:
                inputs[pick.port] = pick.default
    return inputs


def collect_inputs(picks: tuple[Pick, ...], gathers: tuple[Gather, ...], buffer: Buffer, context: RunContext) -> dict[str, Any]:
    """A child's inputs by port: what its edges carry, else what was given from outside, else defaults; absent ones left out.

    Raises:
        BlockFailed: the values of one port cannot be joined.
    """
    inputs = _pick(picks, buffer)
    for gather in gathers:
        present = [key for key in gather.keys if key in buffer]
        if present:
            try:
                inputs[gather.port] = gather.join(present, [buffer[key] for key in present])
            except Exception as error:
                raise BlockFailed(f"node {context.place!r}, port {gather.port!r}: {error}", node=context.place, port=gather.port) from error
        else:
            value = buffer.get(gather.own, gather.default)
            if value is not MISSING:
                inputs[gather.port] = value
    return inputs


def _failure(call: Call, inputs: Mapping[str, Any], context: RunContext, error: Exception) -> Exception:
    if isinstance(error, (Cancelled, RemoteError)) or (isinstance(error, RunError) and "node" in error.details):
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
    return BlockFailed(f"node {context.place!r} ({call.block_type}) {what}; its output ports are {declared}", node=context.place, block_type=call.block_type)
