"""The result of `validate`, and the checks of a container's structure. Messages name child and port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from yggdrasill.errors import InvalidStructure, unknown_message
from yggdrasill.foundation.edges import Edge, ExposedPort
from yggdrasill.foundation.ports import Port, PortAggregation

if TYPE_CHECKING:
    from yggdrasill.foundation.container import ConnectedContainer

__all__ = ["ValidationResult", "check_edges", "check_exposures", "check_inputs", "check_reachability"]


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
        """Add another result's messages, prefixed."""
        self.errors += [f"{prefix}: {message}" for message in other.errors]
        self.warnings += [f"{prefix}: {message}" for message in other.warnings]

    def raise_if_invalid(self, what: str, kind: type[InvalidStructure] = InvalidStructure) -> None:
        """Raise `InvalidStructure` (a ValueError) listing every error."""
        if self.errors:
            raise kind(f"{what} is not valid: " + "; ".join(self.errors), errors=list(self.errors))


def check_edges(container: ConnectedContainer) -> Iterator[str]:
    """Yield an error for each edge that no longer fits the ports of its children, as after a child changed its ports."""
    for error in container.check_edges():
        yield error.message


def check_exposures(container: ConnectedContainer) -> Iterator[str]:
    """Yield errors for exposed entries without a port (possible in configs) and for names that feed ports of different types."""
    kinds: tuple[tuple[Literal["input", "output"], Sequence[ExposedPort]], ...] = (
        ("input", container.exposed_inputs),
        ("output", container.exposed_outputs),
    )
    for kind, entries in kinds:
        for entry in entries:
            side = container.ports(entry.node_id, kind)
            if entry.port_name not in side:
                if entry.node_id in container.children:
                    wrong = f"{container.child_word} {entry.node_id!r}: {unknown_message(kind, entry.port_name, side)}"
                else:
                    wrong = unknown_message(container.child_word, entry.node_id, container.children)
                yield f"exposed {kind} {entry.key!r}: {wrong}"
    by_key: dict[str, list[ExposedPort]] = {}
    for entry in container.exposed_inputs:
        by_key.setdefault(entry.key, []).append(entry)
    for key, exposures in by_key.items():
        ports = [container.ports(e.node_id, "input").get(e.port_name) for e in exposures]
        dtypes = {port.dtype for port in ports if port} - {"any"}
        if len(dtypes) > 1:
            yield f"exposed input {key!r} feeds ports of different types {sorted(dtypes)}; give them different names"


def check_inputs(container: ConnectedContainer, defaults: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield errors for inputs without a value, with too many values, or without a value when a cycle first runs.

    ``defaults`` names the ports with a default, per child.
    """
    exposed = {(entry.node_id, entry.port_name) for entry in container.exposed_inputs}
    position = {child_id: (frozenset(ids), place) for ids in container.cycles() for place, child_id in enumerate(ids)}
    for child in container.children:
        ring, place = position.get(child, (frozenset[str](), 0))
        having = set(defaults.get(child, ()))
        for port in container.ports(child, "input").values():
            edges = container.edges_into(child, port.name)
            where = f"{container.child_word} {child!r}, input {port.name!r}"
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


def check_reachability(container: ConnectedContainer) -> Iterator[str]:
    """Yield warnings for children that no exposed input leads to, and for those that lead to no exposed output."""
    children = container.children
    starts = [child for child in children if not container.ports(child, "input")]
    starts += [entry.node_id for entry in container.exposed_inputs]
    ends = [entry.node_id for entry in container.exposed_outputs]
    forward: dict[str, list[str]] = {child: [] for child in children}
    backward: dict[str, list[str]] = {child: [] for child in children}
    for edge in container.get_edges():
        forward[edge.source_node].append(edge.target_node)
        backward[edge.target_node].append(edge.source_node)
    for todo, links, message in (
        (starts, forward, "is not reached from any exposed input"),
        (ends, backward, "leads to no exposed output"),
    ):
        reached = _reach(todo, links)
        for child in children:
            if child not in reached:
                yield f"{container.child_word} {child!r} {message}"


def _reach(todo: list[str], links: Mapping[str, list[str]]) -> set[str]:
    reached: set[str] = set()
    while todo:
        child = todo.pop()
        if child not in reached and child in links:
            reached.add(child)
            todo += links[child]
    return reached
