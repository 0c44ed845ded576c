"""Edges and exposed ports of a container's children: the data, its indexes, and the rules for connecting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from yggdrasill.errors import DuplicateName, InvalidArgument, InvalidEdge, format_options, unknown_message
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.ports import Port, PortAggregation, PortDirection, PortType

__all__ = ["Edge", "EdgeTable", "ExposedPort", "Interface", "check_edge", "spec_entries"]


@dataclass(frozen=True, slots=True)
class Edge:
    """A link from an output port to an input port; prints as ``a.x -> b.y``, as in every error."""

    source_node: str
    source_port: str
    target_node: str
    target_port: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not value.strip():
                raise InvalidArgument(f"edge field {field.name} must be a non-empty string, got {value!r}")

    def __str__(self) -> str:
        return f"{self.source_node}.{self.source_port} -> {self.target_node}.{self.target_port}"


@dataclass(frozen=True, slots=True)
class ExposedPort:
    """A child's port that is an input or output of its container; ``key`` is its external name."""

    node_id: str
    port_name: str
    name: str | None = None

    @property
    def key(self) -> str:
        """``name``, else ``node_id:port_name``."""
        return self.name or f"{self.node_id}:{self.port_name}"

    def to_config(self, id_field: str) -> dict[str, str]:
        """Return ``{id_field, port_name, name?}``."""
        entry = {id_field: self.node_id, "port_name": self.port_name}
        return {**entry, "name": self.name} if self.name else entry


class EdgeTable:
    """The edges in insertion order with indexes per child, and the two lists of exposed ports."""

    def __init__(self) -> None:
        self.edges: dict[Edge, None] = {}
        self.into: dict[str, list[Edge]] = {}
        self.out_of: dict[str, list[Edge]] = {}
        self.inputs: list[ExposedPort] = []
        self.outputs: list[ExposedPort] = []

    def add_child(self, child: str) -> None:
        """Add a child without edges."""
        self.into[child] = []
        self.out_of[child] = []

    def add(self, edge: Edge) -> bool:
        """Add an edge and return True; return False if the table has it already."""
        if edge in self.edges:
            return False
        self.edges[edge] = None
        self.into[edge.target_node].append(edge)
        self.out_of[edge.source_node].append(edge)
        return True

    def remove(self, edge: Edge) -> None:
        """Remove an edge."""
        del self.edges[edge]
        self.into[edge.target_node].remove(edge)
        self.out_of[edge.source_node].remove(edge)

    def remove_child(self, child: str) -> None:
        """Remove a child with its edges and exposed ports."""
        for edge in [*self.into[child], *self.out_of[child]]:
            if edge in self.edges:
                self.remove(edge)
        del self.into[child], self.out_of[child]
        self.inputs = [entry for entry in self.inputs if entry.node_id != child]
        self.outputs = [entry for entry in self.outputs if entry.node_id != child]

    def sources(self, child: str, port: str) -> list[Edge]:
        """Return the edges into one port, in insertion order."""
        return [edge for edge in self.into[child] if edge.target_port == port]

    def expose(self, entry: ExposedPort, *, output: bool) -> None:
        """Add an exposed port; a duplicate changes nothing. An output name is unique, an input name may feed several ports.

        Raises:
            DuplicateName: another port has that output name.
        """
        entries = self.outputs if output else self.inputs
        if entry in entries:
            return
        if entry.name is not None and not entry.name.strip():
            raise InvalidArgument(f"the external name of {entry.node_id}.{entry.port_name} must be a non-empty string, got {entry.name!r}")
        if output:
            for other in entries:
                if other.key == entry.key:
                    raise DuplicateName(
                        f"output {entry.key!r} already comes from {other.node_id}.{other.port_name}; give this one another name"
                    )
        entries.append(entry)

    def keys(self, *, output: bool) -> dict[str, list[ExposedPort]]:
        """Return the exposed ports by external key, in order."""
        grouped: dict[str, list[ExposedPort]] = {}
        for entry in self.outputs if output else self.inputs:
            grouped.setdefault(entry.key, []).append(entry)
        return grouped


@dataclass(frozen=True, slots=True)
class Interface:
    """A child's ports as its container sees them. An input and an output may share a name (image in, image out)."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]

    @classmethod
    def of_block(cls, block: AbstractBaseBlock) -> Interface:
        """Return the interface of a block: its declared ports."""
        ports = block.ports
        return cls({n: p for n, p in ports.items() if p.is_input}, {n: p for n, p in ports.items() if p.is_output})

    @classmethod
    def of_runnable(cls, runnable: Runnable) -> Interface:
        """Return the interface of a runnable: its two specs by external key.

        A key that feeds several ports has the narrowest of their dtypes and is optional if all of them are.
        """
        return cls(
            _ports_of_spec(runnable.get_input_spec(include_dtype=True), PortDirection.IN),
            _ports_of_spec(runnable.get_output_spec(include_dtype=True), PortDirection.OUT),
        )

    def side(self, direction: PortDirection) -> Mapping[str, Port]:
        """Return the ports of one direction."""
        return self.inputs if direction is PortDirection.IN else self.outputs


def _ports_of_spec(entries: Iterable[Mapping[str, Any]], direction: PortDirection) -> dict[str, Port]:
    ports: dict[str, Port] = {}
    for entry in entries:
        name, dtype, optional = entry["name"], entry.get("dtype", PortType.ANY.value), bool(entry.get("optional", False))
        aggregation = PortAggregation(entry.get("aggregation", PortAggregation.SINGLE.value))
        other = ports.get(name)
        if other is not None:
            dtype = other.dtype if dtype == PortType.ANY.value else dtype
            optional, aggregation = optional and other.optional, other.aggregation
        ports[name] = Port(name, direction, dtype, optional, aggregation)
    return ports


def check_edge(edge: Edge, word: str, children: Mapping[str, Interface]) -> None:
    """Raise `InvalidEdge` unless both ends exist, have the right direction and fitting types; ``word`` names the children."""
    source = _end(edge, edge.source_node, edge.source_port, PortDirection.OUT, word, children)
    target = _end(edge, edge.target_node, edge.target_port, PortDirection.IN, word, children)
    if not source.compatible_with(target):
        raise InvalidEdge(
            f"edge {edge}: {source.dtype!r} does not fit {target.dtype!r}; types must be equal, or one of them 'any'", edge=str(edge)
        )


def _end(edge: Edge, child: str, name: str, direction: PortDirection, word: str, children: Mapping[str, Interface]) -> Port:
    if child not in children:
        raise InvalidEdge(f"edge {edge}: {unknown_message(word, child, children)}", edge=str(edge))
    side = children[child].side(direction)
    port = side.get(name)
    if port is not None:
        return port
    kind, other = ("output", "input") if direction is PortDirection.OUT else ("input", "output")
    opposite = children[child].inputs if direction is PortDirection.OUT else children[child].outputs
    if name in opposite:
        wrong = f"{name!r} is an {other} of {word} {child!r}, not an {kind}. Available: {format_options(side, near=name)}."
    else:
        wrong = f"{word} {child!r}: {unknown_message(kind, name, side)}"
    raise InvalidEdge(f"edge {edge}: {wrong}", edge=str(edge))


def spec_entries(
    exposures: Iterable[ExposedPort], side: Callable[[str], Mapping[str, Port]], id_field: str, with_dtype: bool
) -> list[dict[str, Any]]:
    """Return spec entries ``{id_field, port_name, name, dtype?, optional?, aggregation?}`` with ``name`` the external key."""
    entries = []
    for exposure in exposures:
        entry: dict[str, Any] = {id_field: exposure.node_id, "port_name": exposure.port_name, "name": exposure.key}
        if with_dtype:
            port = side(exposure.node_id).get(exposure.port_name)
            entry["dtype"] = port.dtype if port else PortType.ANY.value
            entry["optional"] = bool(port and port.optional)
            if port and port.aggregation is not PortAggregation.SINGLE:
                entry["aggregation"] = port.aggregation.value
        entries.append(entry)
    return entries
