"""The program: a plan with everything the loop needs already looked up. Built once per version of a graph.

The executor knows nothing of graphs: whatever offers `Executable` can be run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

__all__ = [
    "MISSING",
    "AggregatedInput",
    "Buffer",
    "Call",
    "CompiledCall",
    "CompiledLoop",
    "Executable",
    "InputBinding",
    "Key",
    "Lock",
    "Loop",
    "Program",
]

#: ``(node_id, port)``; a level whose children have an input and an output of one name marks the input with a third part.
Key = tuple[str, ...]

#: Stands for "no value": None is a value.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING", "__slots__": ()})()


@dataclass(frozen=True, slots=True)
class InputBinding:
    """An input that takes the first present of ``keys``, else ``default``."""

    port: str
    keys: tuple[Key, ...]
    default: Any = MISSING


@dataclass(frozen=True, slots=True)
class AggregatedInput:
    """An input that joins every present of ``keys`` by ``join(sources, values)``, else takes ``own``, else ``default``."""

    port: str
    keys: tuple[Key, ...]
    join: Callable[[Sequence[Key], Sequence[Any]], Any]
    own: Key
    default: Any = MISSING


class Lock(Protocol):
    """Held while a block computes, so that a block shared by several nodes computes one call at a time."""

    def acquire(self) -> bool:
        """Wait until the lock is free, and take it."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One node ready to be called."""

    node_id: str
    block_type: str
    forward: Callable[[dict[str, Any]], Mapping[str, Any]]
    lock: Lock
    bindings: tuple[InputBinding, ...]
    aggregated: tuple[AggregatedInput, ...]
    outputs: tuple[tuple[str, Key], ...]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class Loop:
    """A cycle: its calls run in order, as many times as the run asks for."""

    representative: str
    calls: tuple[Call, ...]


#: A call as the loop takes it apart: node id, forward, lock, inputs as (port, slot, other slots, default), aggregated as
#: (gather, slots, own slot), outputs as (port, slot), and the call itself.
CompiledCall = tuple[
    str,
    Callable[[dict[str, Any]], Mapping[str, Any]],
    Lock,
    tuple[tuple[str, int, tuple[int, ...], Any], ...],
    tuple[tuple[AggregatedInput, tuple[int, ...], int], ...],
    tuple[tuple[str, int], ...],
    Call,
]


class CompiledLoop(NamedTuple):
    """A cycle of packed calls."""

    loop: Loop
    calls: tuple[CompiledCall, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Steps, where external inputs go, where external outputs are read, and how to set the mode of all blocks.

    Values lie in a list with a slot per port, in the order of ``ports``, because hashing a key for every value would cost
    more than the rest of a call.
    """

    steps: tuple[Call | Loop, ...]
    inputs: Mapping[str, tuple[Key, ...]]
    outputs: tuple[tuple[str, Key], ...]
    ports: tuple[Key, ...]
    set_mode: Callable[[bool], None]
    slots: Mapping[Key, int] = field(init=False)
    compiled: tuple[CompiledCall | CompiledLoop, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", {key: slot for slot, key in enumerate(self.ports)})
        object.__setattr__(self, "compiled", tuple(map(self._pack, self.steps)))

    def _pack(self, step: Call | Loop) -> CompiledCall | CompiledLoop:
        if isinstance(step, Loop):
            return CompiledLoop(step, tuple(map(self._pack_call, step.calls)))
        return self._pack_call(step)

    def _pack_call(self, call: Call) -> CompiledCall:
        slots = self.slots
        bindings = tuple(
            (pick.port, slots[pick.keys[0]], tuple(slots[key] for key in pick.keys[1:]), pick.default) for pick in call.bindings
        )
        aggregated = tuple((gather, tuple(slots[key] for key in gather.keys), slots[gather.own]) for gather in call.aggregated)
        outputs = tuple((port, slots[key]) for port, key in call.outputs)
        return call.node_id, call.forward, call.lock, bindings, aggregated, outputs, call


class Buffer(MutableMapping[Key, Any]):
    """A run's values by key, as hooks see them; the loop works on ``values`` by slot."""

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


class Executable(Protocol):
    """What `executor.run` runs."""

    metadata: dict[str, Any]

    def program(self) -> Program:
        """The program of the current structure."""
        ...

    def to(self, device: Any) -> Any:
        """Move blocks to a device."""
        ...
