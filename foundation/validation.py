"""What `validate` returns, and the checks of a graph's structure. Messages name node and port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yggdrasill.errors import InvalidStructure, unknown_message
from yggdrasill.foundation.edges import Edge, ExposedPort
from yggdrasill.foundation.ports import Port, PortAggregation

if TYPE_CHECKING:
    from yggdrasill.foundation.container import ConnectedContainer

__all__ = ["ValidationResult", "check_exposures", "check_inputs", "check_reachability"]


@dataclass
class ValidationResult:
    """Errors make a structure unusable, warnings do not."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """True without errors."""
        return not self.errors

    def add(self, other: ValidationResult, prefix: str) -> None:
        """Take over another result's messages, prefixed."""
        self.errors += [f"{prefix}: {message}" for message in other.errors]
        self.warnings += [f"{prefix}: {message}" for message in other.warnings]

    def raise_if_invalid(self, what: str, kind: type[InvalidStructure] = InvalidStructure) -> None:
        """Raise `InvalidStructure` (a ValueError) listing every error."""
        if self.errors:
            raise kind(f"{what} is not valid: " + "; ".join(self.errors), errors=list(self.errors))


def check_exposures(wired: ConnectedContainer) -> Iterator[str]:
    """Errors for exposed entries that name no real port (possible in configs) and for names that feed unlike ports."""
    for kind, entries in (("input", wired._edge_table.inputs), ("output", wired._edge_table.outputs)):
        for entry in entries:
            side = wired._side(entry.node_id, "inputs" if kind == "input" else "outputs")
            if entry.port_name not in side:
                if entry.node_id in wired._children:
                    wrong = f"{wired.child_word} {entry.node_id!r}: {unknown_message(kind, entry.port_name, side)}"
                else:
                    wrong = unknown_message(wired.child_word, entry.node_id, wired._children)
                yield f"exposed {kind} {entry.key!r}: {wrong}"
    for key, exposures in wired._edge_table.keys(output=False).items():
        ports = [wired._side(e.node_id, "inputs").get(e.port_name) for e in exposures]
        dtypes = {port.dtype for port in ports if port} - {"any"}
        if len(dtypes) > 1:
            yield f"exposed input {key!r} feeds ports of different types {sorted(dtypes)}; give them different names"


def check_inputs(
    wired: ConnectedContainer, defaults: Mapping[str, Iterable[str]], position: Mapping[str, tuple[frozenset[str], int]]
) -> Iterator[str]:
    """Errors for inputs that get nothing, too much, or nothing in time.

    ``defaults`` names the ports with a default per child; ``position`` gives, for each child in a cycle, the cycle's
    members and its place in their order.
    """
    exposed = {(entry.node_id, entry.port_name) for entry in wired._edge_table.inputs}
    for child in wired._children:
        ring, place = position.get(child, (frozenset(), 0))
        having = set(defaults.get(child, ()))
        for port in wired._side(child, "inputs").values():
            edges = wired._edge_table.sources(child, port.name)
            where = f"{wired.child_word} {child!r}, input {port.name!r}"
            yield from _check_several(port, edges, ring, where)
            if port.optional or (child, port.name) in exposed or port.name in having:
                continue
            if not edges:
                yield f"{where} is required and nothing feeds it; connect it, expose it, or give a default"
            elif all(e.source_node in ring and position[e.source_node][1] >= place for e in edges):
                yield (
                    f"{where} has no value when the cycle first runs, since {', '.join(map(str, edges))} comes later; "
                    "expose the port, add an edge from outside the cycle, or give a default"
                )


def _check_several(port: Port, edges: list[Edge], ring: frozenset[str], where: str) -> Iterator[str]:
    if port.aggregation is not PortAggregation.SINGLE or len(edges) < 2:
        return
    carried = [edge for edge in edges if edge.source_node in ring]
    if len(carried) == 1 and len(edges) == 2:
        return
    yield (
        f"{where} takes one value but has {len(edges)} edges ({', '.join(map(str, edges))}); remove some, give the port an "
        "aggregation policy, or use one edge from outside a cycle and one inside it"
    )


def check_reachability(wired: ConnectedContainer) -> Iterator[str]:
    """Warnings for children no exposed input leads to, and for those that lead to no exposed output."""
    table = wired._edge_table
    for entries, links, message in (
        (table.inputs, table.out_of, "is not reached from any exposed input"),
        (table.outputs, table.into, "leads to no exposed output"),
    ):
        sources = [child for child in wired._children if not wired._side(child, "inputs")] if entries is table.inputs else []
        reached = _reach(entries, sources, links, forward=entries is table.inputs)
        for child in wired._children:
            if child not in reached:
                yield f"{wired.child_word} {child!r} {message}"


def _reach(entries: list[ExposedPort], sources: list[str], links: Mapping[str, list[Edge]], *, forward: bool) -> set[str]:
    todo = [*sources, *(entry.node_id for entry in entries)]
    reached: set[str] = set()
    while todo:
        child = todo.pop()
        if child in reached or child not in links:
            continue
        reached.add(child)
        todo += [edge.target_node if forward else edge.source_node for edge in links[child]]
    return reached
