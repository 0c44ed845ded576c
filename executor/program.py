"""The program: a plan with everything the loop needs already looked up. Built once per version of a graph.

The executor knows nothing of graphs: whatever offers `Executable` can be run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["MISSING", "Call", "Executable", "Gather", "Key", "Lock", "Loop", "Pick", "Program"]

#: ``(node_id, port)``; a level whose children have an input and an output of one name marks the input with a third part.
Key = tuple[str, ...]

#: Stands for "no value": None is a value.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING", "__slots__": ()})()


@dataclass(frozen=True, slots=True)
class Pick:
    """An input that takes the first present of ``keys``, else ``default``."""

    port: str
    keys: tuple[Key, ...]
    default: Any = MISSING


@dataclass(frozen=True, slots=True)
class Gather:
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
    picks: tuple[Pick, ...]
    gathers: tuple[Gather, ...]
    outputs: tuple[tuple[str, Key], ...]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class Loop:
    """A cycle: its calls run in order, as many times as the run asks for."""

    representative: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Steps, where external inputs go, where external outputs are read, and how to set the mode of all blocks."""

    steps: tuple[Call | Loop, ...]
    inputs: Mapping[str, tuple[Key, ...]]
    outputs: tuple[tuple[str, Key], ...]
    ports: frozenset[Key]
    set_mode: Callable[[bool], None]


class Executable(Protocol):
    """What `executor.run` runs."""

    metadata: dict[str, Any]

    def program(self) -> Program:
        """The program of the current structure."""
        ...

    def to(self, device: Any) -> Any:
        """Move blocks to a device."""
        ...
