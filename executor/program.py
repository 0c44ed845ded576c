"""The program: a plan in which every lookup is done. A graph, a pipeline and a stage compile to the same type.

The executor knows no containers: it runs any object that offers `Executable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, final

__all__ = ["MISSING", "Call", "Executable", "Input", "Join", "Key", "Lock", "Loop", "Program", "Step"]

#: The name of a value. In a graph ``(node_id, port)``; in a pipeline or stage a third part separates inputs from outputs.
Key = tuple[str, ...]

#: The absence of a value; None is a value.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING", "__slots__": ()})()


class Lock(Protocol):
    """A lock held while a block computes, so that a block shared by several nodes computes one call at a time."""

    def acquire(self) -> bool:
        """Wait until the lock is free, and take it."""
        ...

    def release(self) -> None:
        """Release the lock."""
        ...


#: An input as ``(port, slot, other slots, default)``: the first value present in the slots, else the default. A plain tuple,
#: because the loop unpacks one for each value.
Input = tuple[str, int, tuple[int, ...], Any]


class Join(NamedTuple):
    """An input that joins the values present in ``slots`` by ``join(keys, values)``, else takes ``given``, else ``default``."""

    port: str
    keys: tuple[Key, ...]
    slots: tuple[int, ...]
    given: int
    join: Callable[[Sequence[Key], Sequence[Any]], Any]
    default: Any = MISSING


@final
@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One child ready to run: a block (``target.forward``, under its lock) or, without a lock, a runnable (``target.run``).

    ``forward`` and ``run`` are looked up at every call, so a wrapped method takes effect at once. ``kind`` is the block type
    or the level's word for a child. ``set_mode`` puts a block whose mode is more than its ``training`` flag into training or
    inference mode. ``accepts_handles`` is for runnables; ``required`` names the inputs of a block that are not optional.
    """

    node_id: str
    kind: str
    target: Any
    lock: Lock | None
    inputs: tuple[Input, ...]
    joins: tuple[Join, ...]
    outputs: tuple[tuple[str, int], ...]
    required: frozenset[str] = frozenset()
    set_mode: Callable[[bool], None] | None = None
    accepts_handles: bool = False


@final
@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """A cycle: its calls run in order, as many times as the run asks for."""

    representative: str
    calls: tuple[Call, ...]


Step = Call | Loop


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in order, the slots that external inputs fill, and the slots that external outputs are read from.

    Values are in a list with one slot per key, because hashing a key for each value would cost more than the rest of a call.
    ``ordered`` says that the order of the steps is part of the result (children share a block that keeps state), so they
    never run at the same time. ``of_runnables`` says that the calls are those of runnables, not of blocks. ``foreign`` says that a child, at any depth, is neither a graph nor a pipeline of this
    process: its outputs may be handles, and it may take run options that are unknown here. ``hint`` ends the message about
    an unknown input.
    """

    steps: tuple[Step, ...]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[tuple[str, int], ...]
    slots: Mapping[Key, int]
    ordered: bool = False
    of_runnables: bool = False
    foreign: bool = False
    hint: str = ""

    @cached_property
    def sources(self) -> tuple[frozenset[int], ...]:
        """For each step, the positions of the steps whose outputs it reads."""
        writer: dict[int, int] = {}
        for position, step in enumerate(self.steps):
            for call in _calls(step):
                writer.update((slot, position) for _, slot in call.outputs)
        return tuple(
            frozenset(writer[slot] for call in _calls(step) for slot in _read_slots(call) if slot in writer) - {position}
            for position, step in enumerate(self.steps)
        )

    @cached_property
    def has_branches(self) -> bool:
        """Whether any two steps may run at the same time."""
        return not self.ordered and any(position - 1 not in self.sources[position] for position in range(1, len(self.steps)))


def _calls(step: Step) -> tuple[Call, ...]:
    return step.calls if isinstance(step, Loop) else (step,)


def _read_slots(call: Call) -> Iterator[int]:
    for _, slot, others, _ in call.inputs:
        yield slot
        yield from others
    for join in call.joins:
        yield from join.slots


class Executable(Protocol):
    """An object that `executor.run` runs."""

    metadata: dict[str, Any]

    @property
    def run(self) -> Callable[..., Any]:
        """The object's method that prepares its run: handles, a state."""
        ...

    def program(self) -> Program:
        """The program of the current structure."""
        ...

    def to(self, device: Any) -> Any:
        """Move blocks to a device."""
        ...
