"""The one loop that runs programs: buffer, cycles, hooks, and the boundary around user code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from yggdrasill.errors import BlockFailed, Cancelled, InvalidArgument, MissingInput, RemoteError, RunError, TimedOut, unknown_name
from yggdrasill.executor.context import RunContext, enter_run
from yggdrasill.executor.hooks import Callbacks, Emit, as_emit
from yggdrasill.executor.program import (
    MISSING,
    AggregatedInput,
    Buffer,
    Call,
    CompiledCall,
    CompiledLoop,
    Executable,
    InputBinding,
    Key,
    Program,
)

__all__ = ["collect_inputs", "loop_count", "run"]


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
        _run_steps(program.compiled, times, buffer, context, emit, dry_run)
    return {name: buffer[key] for name, key in program.outputs if key in buffer}


def loop_count(argument: int | None, metadata: Mapping[str, Any]) -> int:
    """How often cycles run: the argument, else ``metadata["num_loop_steps"]``, else 1."""
    count = metadata.get("num_loop_steps", 1) if argument is None else argument
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InvalidArgument(f"num_loop_steps must be an integer of at least 0, got {count!r}")
    return count


def _fill(program: Program, inputs: Mapping[Any, Any]) -> Buffer:
    buffer = Buffer(program.slots)
    for name, value in inputs.items():
        keys = program.inputs.get(name) if isinstance(name, str) else None
        if keys is not None:
            for key in keys:
                if key in program.slots:
                    buffer[key] = value
        elif name in program.slots:
            buffer[name] = value
        else:
            raise unknown_name("input", name, program.inputs, "An input is named by its external key or by (node_id, port).")
    return buffer


def _run_steps(  # noqa: C901, PLR0912 - the hot loop is written out
    steps: Sequence[CompiledCall | CompiledLoop], times: int, buffer: Buffer, context: RunContext, emit: Emit | None, dry_run: bool
) -> None:
    """Run steps in order. Every node of every graph passes here, so nothing is called that could be written out."""
    token, values = context.token, buffer.values_by_slot
    for step in steps:
        if type(step) is CompiledLoop:
            _run_cycle(step, times, buffer, context, emit, dry_run)
            continue
        node_id, forward, lock, bindings, aggregated, wanted, call = cast(CompiledCall, step)
        context.node = node_id
        if token.cancelled:
            context.check_cancelled()
        if emit:
            emit(node_id, "before", buffer=buffer)
        if dry_run:
            inputs = _known_inputs(call, buffer)
            outputs: Mapping[str, Any] = dict.fromkeys(port for port, _ in wanted)
        else:
            inputs = {}
            for port, slot, others, default in bindings:
                value = values[slot]
                if value is MISSING:
                    for other in others:
                        value = values[other]
                        if value is not MISSING:
                            break
                    else:
                        value = default
                        if value is MISSING:
                            continue
                inputs[port] = value
            for gather, slots, own in aggregated:
                _join(gather, slots, own, values, inputs, context)
            lock.acquire()
            try:
                outputs = forward(inputs)
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
        for port, slot in wanted:
            if port in outputs:
                values[slot] = outputs[port]
                written += 1
        if written != len(outputs):
            raise _stray_output(call, outputs, context)
        if emit:
            emit(node_id, "after", buffer=buffer, inputs=inputs, outputs=outputs)


def _run_cycle(step: CompiledLoop, times: int, buffer: Buffer, context: RunContext, emit: Emit | None, dry_run: bool) -> None:
    loop = step.loop
    if emit:
        emit(loop.representative, "loop_start", num_steps=times, node_ids=[call.node_id for call in loop.calls])
    for iteration in range(times):
        context.call = iteration
        _run_steps(step.calls, times, buffer, context, emit, dry_run)
        if emit:
            emit(loop.representative, "loop_end", iteration=iteration + 1, num_steps=times)
    context.call = 0


def _join(
    gather: AggregatedInput, slots: Sequence[int], own: int, values: Sequence[Any], inputs: dict[str, Any], context: RunContext
) -> None:
    found = [values[slot] for slot in slots]
    present = [value for value in found if value is not MISSING]
    if present:
        keys = (
            gather.keys if len(present) == len(found) else [k for k, value in zip(gather.keys, found, strict=True) if value is not MISSING]
        )
        try:
            inputs[gather.port] = gather.join(keys, present)
        except Exception as error:
            message = f"node {context.place!r}, input {gather.port!r}: {error}"
            raise BlockFailed(message, node=context.place, port=gather.port) from error
    else:
        value = gather.default if values[own] is MISSING else values[own]
        if value is not MISSING:
            inputs[gather.port] = value


def collect_inputs(
    bindings: Iterable[InputBinding], aggregated: Iterable[AggregatedInput], buffer: Mapping[Key, Any], context: RunContext
) -> dict[str, Any]:
    """A child's inputs by port: what its edges carry, else what was given from outside, else defaults; absent ones left out.

    Raises:
        BlockFailed: the values of one port cannot be joined.
    """
    inputs = _pick(bindings, buffer)
    for gather in aggregated:
        found = [buffer.get(key, MISSING) for key in (*gather.keys, gather.own)]
        _join(gather, range(len(gather.keys)), len(gather.keys), found, inputs, context)
    return inputs


def _pick(bindings: Iterable[InputBinding], buffer: Mapping[Key, Any]) -> dict[str, Any]:
    inputs = {}
    for pick in bindings:
        value = next((buffer[key] for key in pick.keys if key in buffer), pick.default)
        if value is not MISSING:
            inputs[pick.port] = value
    return inputs


def _known_inputs(call: Call, buffer: Mapping[Key, Any]) -> dict[str, Any]:
    """The inputs of a call in a dry run: nothing is joined, since nothing was computed."""
    inputs = _pick(call.bindings, buffer)
    for gather in call.aggregated:
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
