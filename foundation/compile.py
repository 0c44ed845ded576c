"""Compilation of a container to the program that the executor runs, and the joining of several values at one port."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.program import MISSING, Call, Input, Join, Key, Loop, Program, Step
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.edges import Interface
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.ports import Port, PortAggregation

if TYPE_CHECKING:
    from yggdrasill.foundation.container import ConnectedContainer

__all__ = ["compile_program"]


def compile_program(container: ConnectedContainer) -> Program:
    """Return the program of a container's current structure.

    Raises:
        The errors of `ConnectedContainer.interfaces_for_run`.
    """
    interfaces = container.interfaces_for_run()
    # A block's ports have unique names; a runnable may have an input and an output of one name.
    separate = not all(isinstance(child, Node) for child in container.children.values())
    calls = _CallBuilder(container, interfaces, separate=separate)
    steps: list[Step] = []
    for step in container.plan().steps:
        if step[0] == "node":
            steps.append(calls.calls[step[1]])
        else:
            steps.append(Loop(step[1][0], tuple(calls.calls[child_id] for child_id in step[1][1])))
    slots = calls.slots
    inputs: dict[str, tuple[int, ...]] = {}
    for entry in container.exposed_inputs:
        slot = slots.get(calls.given(entry.node_id, entry.port_name))
        inputs[entry.key] = inputs.get(entry.key, ()) + (() if slot is None else (slot,))
    outputs = [(entry.key, slots.get(calls.written(entry.node_id, entry.port_name))) for entry in container.exposed_outputs]
    children = container.children.values()
    return Program(
        tuple(steps),
        inputs,
        tuple((key, slot) for key, slot in outputs if slot is not None),
        slots,
        ordered=_shares_state([list(_blocks_below(child)) for child in children], container.cycles(), list(container.children)),
        of_runnables=separate,
        foreign=any(_is_foreign(child) for child in children),
        hint=container.input_hint,
    )


class _CallBuilder:
    """The calls of a container's children, and the slots of their values."""

    def __init__(self, container: ConnectedContainer, interfaces: Mapping[str, Interface], *, separate: bool) -> None:
        self._container = container
        self._separate = separate
        keys = [
            key
            for child_id, interface in interfaces.items()
            for key in (
                *(self.given(child_id, port) for port in interface.inputs),
                *(self.written(child_id, port) for port in interface.outputs),
            )
        ]
        self.slots = {key: slot for slot, key in enumerate(keys)}
        rings = {child_id: frozenset(ids) for ids in container.cycles() for child_id in ids}
        self.calls = {child_id: self._call(child_id, interface, rings.get(child_id, ())) for child_id, interface in interfaces.items()}

    def given(self, child_id: str, port: str) -> Key:
        """The key of a value given from outside."""
        return (child_id, port, "in") if self._separate else (child_id, port)

    def written(self, child_id: str, port: str) -> Key:
        """The key of an output."""
        return (child_id, port, "out") if self._separate else (child_id, port)

    def _call(self, child_id: str, interface: Interface, ring: Collection[str]) -> Call:
        child = self._container.children[child_id]
        defaults: Mapping[str, Any] = child.defaults if isinstance(child, Node) else {}
        inputs: list[Input] = []
        joins: list[Join] = []
        for port in interface.inputs.values():
            self._add_input(child_id, port, ring, defaults.get(port.name, MISSING), inputs, joins)
        outputs = tuple((name, self.slots[self.written(child_id, name)]) for name in interface.outputs)
        if isinstance(child, Node):
            required = frozenset(name for name, port in interface.inputs.items() if not port.optional)
            block = child.block
            return Call(child_id, child.block_type, block, block.lock, tuple(inputs), tuple(joins), outputs, required, _mode_setter(block))
        handles = bool(getattr(child, "accepts_handles", False))
        return Call(child_id, self._container.child_word, child, None, tuple(inputs), tuple(joins), outputs, accepts_handles=handles)

    def _add_input(self, child_id: str, port: Port, ring: Collection[str], default: Any, inputs: list[Input], joins: list[Join]) -> None:
        edges = self._container.edges_into(child_id, port.name)
        join = _JOINS.get(port.aggregation)
        if port.aggregation is PortAggregation.SINGLE:
            # A value carried by an edge within the cycle goes before an initialiser from outside.
            edges.sort(key=lambda edge: edge.source_node not in ring)
        slots = [self.slots[self.written(edge.source_node, edge.source_port)] for edge in edges]
        given = self.slots[self.given(child_id, port.name)]
        if join is None:
            first, *others = (*slots, given)
            inputs.append((port.name, first, tuple(others), default))
        else:
            keys = tuple((edge.source_node, edge.source_port) for edge in edges)
            joins.append(Join(port.name, keys, tuple(slots), given, join, default))


def _is_foreign(child: Any) -> bool:
    if isinstance(child, Node):
        return False
    program = getattr(child, "program", None)
    return not callable(program) or bool(program().foreign)


def _blocks_below(child: Any) -> Iterator[AbstractBaseBlock]:
    """The blocks that a child computes with, sub-blocks included."""
    for block in (child.block,) if isinstance(child, Node) else getattr(child, "blocks", tuple)():
        todo = [block]
        while todo:
            found = todo.pop()
            yield found
            todo += found.get_sub_blocks().values()


def _shares_state(blocks: Sequence[Sequence[AbstractBaseBlock]], cycles: Sequence[Sequence[str]], ids: Sequence[str]) -> bool:
    """Return whether two steps share a block that keeps state between calls: then their order is part of the result."""
    step_of = {child_id: f"cycle {number}" for number, members in enumerate(cycles) for child_id in members}
    users: dict[int, str] = {}
    for child_id, below in zip(ids, blocks, strict=True):
        step = step_of.get(child_id, f"child {child_id}")
        for block in below:
            if block.stateful and users.setdefault(id(block), step) != step:
                return True
    return False


def _mode_setter(block: AbstractBaseBlock) -> Callable[[bool], None] | None:
    """Return a function that puts a block into training or inference mode; None if setting its ``training`` flag suffices."""
    kind, base = type(block), AbstractBaseBlock
    if kind.train is base.train and kind.eval is base.eval and kind.get_sub_blocks is base.get_sub_blocks:
        return None

    def set_mode(training: bool) -> None:
        # The flag alone does not show the mode of a block whose own `train` leaves it alone.
        if block.__dict__.get("_mode_set") is not training or not _has_mode(block, training):
            if training:
                block.train(True)
            else:
                block.eval()
            block.__dict__["_mode_set"] = training

    return set_mode


def _has_mode(block: AbstractBaseBlock, training: bool) -> bool:
    return block.training is training and all(_has_mode(part, training) for part in block.get_sub_blocks().values())


JoinValues = Callable[[Sequence[Key], Sequence[Any]], Any]


def _concat(sources: Sequence[Key], values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, (list, str, tuple, bytes)):
        if any(type(value) is not type(first) for value in values):
            raise _cannot("concatenate", sources, values)
        return reduce(add, values)
    for module, join in (("torch", "cat"), ("numpy", "concatenate")):
        library = sys.modules.get(module)
        kind = getattr(library, "Tensor" if module == "torch" else "ndarray", None)
        if kind is not None and all(isinstance(value, kind) for value in values):
            return getattr(library, join)(tuple(values))
    raise _cannot("concatenate", sources, values)


def _sum(sources: Sequence[Key], values: Sequence[Any]) -> Any:
    try:
        return reduce(add, values)
    except TypeError:
        raise _cannot("add", sources, values) from None


def _dict(sources: Sequence[Key], values: Sequence[Any]) -> dict[str, Any]:
    return {f"{node}:{port}": value for (node, port), value in zip(sources, values, strict=True)}


def _cannot(verb: str, sources: Sequence[Key], values: Sequence[Any]) -> InvalidArgument:
    parts = ", ".join(f"{type(value).__name__} from {node}.{port}" for (node, port), value in zip(sources, values, strict=True))
    return InvalidArgument(f"cannot {verb} {parts}; the values of one port must be of one kind (lists, tuples, strings, tensors)")


_JOINS: dict[PortAggregation, JoinValues] = {PortAggregation.CONCAT: _concat, PortAggregation.SUM: _sum, PortAggregation.DICT: _dict}
