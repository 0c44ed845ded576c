"""The work of the executor's benchmark as data: every engine builds a graph from the same list of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["START", "Kind", "Part", "chain", "evaluate", "layered", "wide"]

#: The name of the input value.
START = "start"

#: ``step`` adds one to its source, ``add`` adds its two sources, ``total`` adds all its sources.
Kind = Literal["step", "add", "total"]


@dataclass(frozen=True)
class Part:
    """One node: its operation, and the nodes (or `START`) that it reads."""

    name: str
    kind: Kind
    sources: tuple[str, ...]


def chain(length: int) -> list[Part]:
    """Return ``length`` nodes in a row."""
    return [Part(f"n{i}", "step", (f"n{i - 1}" if i else START,)) for i in range(length)]


def wide(width: int) -> list[Part]:
    """Return one node, ``width`` nodes that read it, one node that reads all of them."""
    rays = [Part(f"n{i}", "step", ("first",)) for i in range(width)]
    return [Part("first", "step", (START,)), *rays, Part("last", "total", tuple(ray.name for ray in rays))]


def layered(layers: int, width: int) -> list[Part]:
    """Return ``layers`` layers of ``width`` nodes, each reading two neighbours in the layer before; one node reads the last layer."""
    parts = [Part(f"n0_{i}", "step", (START,)) for i in range(width)]
    for layer in range(1, layers):
        parts += [Part(f"n{layer}_{i}", "add", (f"n{layer - 1}_{i}", f"n{layer - 1}_{(i + 1) % width}")) for i in range(width)]
    return [*parts, Part("last", "total", tuple(f"n{layers - 1}_{i}" for i in range(width)))]


def evaluate(parts: list[Part], start: int) -> int:
    """Return the value of the last node."""
    values = {START: start}
    for part in parts:
        read = [values[name] for name in part.sources]
        values[part.name] = read[0] + 1 if part.kind == "step" else sum(read)
    return values[parts[-1].name]
