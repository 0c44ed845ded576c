"""Containers whose children are linked by edges: graph, pipeline and stage. Edges, exposed ports, queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from yggdrasill.errors import InvalidArgument, format_options, unknown_name
from yggdrasill.executor.plan import Plan, make_plan
from yggdrasill.executor.program import MISSING, AggregatedInput, InputBinding
from yggdrasill.foundation.aggregation import input_rule
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.edge import Edge
from yggdrasill.foundation.edge_table import EdgeTable, ExposedPort, Interface, check_edge, spec_entries
from yggdrasill.foundation.ports import Port

__all__ = ["ConnectedContainer"]


class ConnectedContainer(Container):
    """A container with `EdgeTable`; ``execution_version`` counts changes of the structure, so plans can be kept."""

    def __init__(self) -> None:
        super().__init__()
        self._edge_table = EdgeTable()
        self._plan: tuple[Any, Plan] | None = None
        self.execution_version = 0

    @abstractmethod
    def interface(self, child_id: str) -> Interface:
        """The child's ports as its neighbours see them."""

    @abstractmethod
    def new_edge(self, source: str, source_port: str, target: str, target_port: str) -> Edge:
        """An edge of this level's own class."""

    # -- children -----------------------------------------------------------------------------------------------

    def _add_child(self, child_id: str, child: Any) -> None:
        self._children[child_id] = child
        self._edge_table.add_child(child_id)
        self.execution_version += 1

    def _remove_child(self, child_id: str) -> None:
        self._child(child_id)
        del self._children[child_id]
        self._trainable.pop(child_id, None)
        self._edge_table.remove_child(child_id)
        self.execution_version += 1

    def _free_id(self, stem: str) -> str:
        number = 1
        while f"{stem}_{number}" in self._children:
            number += 1
        return f"{stem}_{number}"

    # -- edges --------------------------------------------------------------------------------------------------

    def _add_edge(self, edge: Edge) -> None:
        check_edge(edge, self.child_word, _Interfaces(self))
        if self._edge_table.add(edge):
            self.execution_version += 1

    def remove_edge(self, edge: Edge) -> None:
        """Take an edge out.

        Raises:
            UnknownName: it is not there.
        """
        if edge not in self._edge_table.edges:
            raise unknown_name("edge", str(edge), map(str, self._edge_table.edges))
        self._edge_table.remove(edge)
        self.execution_version += 1

    def get_edges(self) -> list[Edge]:
        """All edges in the order in which they were added."""
        return list(self._edge_table.edges)

    def get_edges_in(self, child_id: str) -> list[Edge]:
        """The edges into a child."""
        self._child(child_id)
        return list(self._edge_table.into[child_id])

    def get_edges_out(self, child_id: str) -> list[Edge]:
        """The edges out of a child."""
        self._child(child_id)
        return list(self._edge_table.out_of[child_id])

    # -- exposed ports ------------------------------------------------------------------------------------------

    def expose_input(self, child_id: str, port: str, name: str | None = None) -> None:
        """Make a child's input an input of the whole, under ``name`` or ``child_id:port``; one name may feed several ports."""
        self._expose(child_id, port, name, "input")

    def expose_output(self, child_id: str, port: str, name: str | None = None) -> None:
        """Make a child's output an output of the whole, under ``name`` or ``child_id:port``."""
        self._expose(child_id, port, name, "output")

    def _expose(self, child_id: str, port: str, name: str | None, kind: Literal["input", "output"]) -> None:
        self._child(child_id)
        interface = self.interface(child_id)
        side = interface.inputs if kind == "input" else interface.outputs
        if port not in side:
            raise InvalidArgument(
                f"{self.child_word} {child_id!r} has no {kind} {port!r}; its {kind}s are {format_options(side, near=port)}"
            )
        self._edge_table.expose(ExposedPort(child_id, port, name), output=kind == "output")
        self.execution_version += 1

    def infer_exposed_ports(self) -> None:
        """Replace both lists: every input without an incoming edge, every output without an outgoing one."""
        table = self._edge_table
        fed = {(edge.target_node, edge.target_port) for edge in table.edges}
        used = {(edge.source_node, edge.source_port) for edge in table.edges}
        interfaces = {child_id: self.interface(child_id) for child_id in self._children}
        table.inputs = [ExposedPort(c, p) for c, interface in interfaces.items() for p in interface.inputs if (c, p) not in fed]
        table.outputs = [ExposedPort(c, p) for c, interface in interfaces.items() for p in interface.outputs if (c, p) not in used]
        self.execution_version += 1

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """The exposed inputs, ``name`` being the external key; with ``include_dtype`` also dtype and optional."""
        return spec_entries(self._edge_table.inputs, lambda child: self._side(child, "inputs"), self.child_id_field, include_dtype)

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """The exposed outputs, as `get_input_spec`."""
        return spec_entries(self._edge_table.outputs, lambda child: self._side(child, "outputs"), self.child_id_field, include_dtype)

    def _side(self, child_id: str, side: Literal["inputs", "outputs"]) -> Mapping[str, Port]:
        if child_id not in self._children:
            return {}
        interface = self.interface(child_id)
        return interface.inputs if side == "inputs" else interface.outputs

    # -- running ------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The order of the children, kept until the structure changes."""
        key = self._structure_key()
        if self._plan is None or self._plan[0] != key:
            edges = ((edge.source_node, edge.target_node) for edge in self._edge_table.edges)
            self._plan = (key, make_plan(list(self._children), edges, self._order_cycle))
        return self._plan[1]

    def _structure_key(self) -> Any:
        """Changes whenever a plan made before no longer holds."""
        return self.execution_version

    def _order_cycle(self, ids: list[str]) -> list[str]:
        return sorted(ids)

    def _rings(self) -> dict[str, frozenset[str]]:
        """For each child in a cycle, the cycle's children."""
        return {child_id: frozenset(ids) for ids in self.plan().cycles for child_id in ids}

    def _input_rules(
        self, child_id: str, ring: Collection[str], defaults: Mapping[str, Any]
    ) -> tuple[tuple[InputBinding, ...], tuple[AggregatedInput, ...]]:
        """How each input of a child gets its value; a carried value (an edge within a cycle) goes before an initialiser."""
        rules: list[InputBinding | AggregatedInput] = []
        for port in self.interface(child_id).inputs.values():
            edges = sorted(self._edge_table.sources(child_id, port.name), key=lambda edge: edge.source_node not in ring)
            if port.aggregation.value != "single":
                edges = self._edge_table.sources(child_id, port.name)
            sources = [(edge.source_node, edge.source_port) for edge in edges]
            rules.append(input_rule(port, sources, self._input_key(child_id, port.name), defaults.get(port.name, MISSING)))
        bindings = tuple(rule for rule in rules if isinstance(rule, InputBinding))
        return bindings, tuple(rule for rule in rules if isinstance(rule, AggregatedInput))

    @staticmethod
    def _input_key(child_id: str, port: str) -> tuple[str, ...]:
        """The buffer key of a value given from outside; a third part where inputs and outputs may share names."""
        return (child_id, port, "in")


class _Interfaces(Mapping[str, Interface]):
    """The children's interfaces, made only for those that are looked at."""

    def __init__(self, owner: ConnectedContainer) -> None:
        self._owner = owner

    def __getitem__(self, child_id: str) -> Interface:
        return self._owner.interface(child_id)

    def __contains__(self, child_id: object) -> bool:
        return child_id in self._owner._children

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner._children)

    def __len__(self) -> int:
        return len(self._owner._children)
