"""Containers: children with ids, trainable flags and state; edges and exposed ports between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from yggdrasill.errors import CheckpointMismatch, DuplicateName, InvalidArgument, InvalidEdge, format_options, unknown_message, unknown_name
from yggdrasill.executor.plan import Plan, make_plan
from yggdrasill.executor.program import Program
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.compile import compile_program
from yggdrasill.foundation.edges import Edge, EdgeTable, ExposedPort, Interface, check_edge, spec_entries
from yggdrasill.foundation.loading import StateLoader, collect_states, move_block
from yggdrasill.foundation.ports import Port
from yggdrasill.foundation.validation import ValidationResult

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.foundation.graph import Graph
    from yggdrasill.foundation.node import Node

__all__ = ["ConnectedContainer", "Container", "Placer", "check_name"]


class Placer(Protocol):
    """The part of a registry of endpoints that `Container.place` uses."""

    def place(self, project: Any) -> Any:
        """Return ``project`` with its placed parts remote."""
        ...


def check_name(kind: str, name: object, taken: Mapping[str, Any] | None = None) -> str:
    """Return ``name`` if it is a non-empty string that ``taken`` does not have.

    Raises:
        InvalidArgument, DuplicateName
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgument(f"{kind} must be a non-empty string, got {name!r}")
    if taken is not None and name in taken:
        raise DuplicateName(f"{kind} {name!r} is taken. Existing: {format_options(taken, near=name)}. Choose another id.")
    return name


class Container(ABC):
    """Children by id, with trainable flags, states and parameters. A graph keeps the flags in its nodes."""

    #: ``graph``, ``pipeline``, ``stage`` or ``world``.
    level: ClassVar[str]
    #: What a child is called in messages, and the name of its id in configs.
    child_word: ClassVar[str]
    child_id_field: ClassVar[str]

    def __init__(self) -> None:
        self._children: dict[str, Any] = {}
        self._trainable: dict[str, bool] = {}

    @property
    @abstractmethod
    def id(self) -> str:
        """The container's own id."""

    @property
    def children(self) -> Mapping[str, Any]:
        """The children by id, in insertion order; a read-only view."""
        return MappingProxyType(self._children)

    def _child(self, child_id: str) -> Any:
        try:
            return self._children[child_id]
        except KeyError:
            raise unknown_name(self.child_word, child_id, self._children) from None

    # -- training -----------------------------------------------------------------------------------------------

    def set_trainable(self, child_id: str, trainable: bool) -> None:
        """Set whether `trainable_parameters` covers a child."""
        self._child(child_id)
        self._trainable[child_id] = bool(trainable)

    def is_trainable(self, child_id: str) -> bool:
        """Return the child's trainable flag (default: True)."""
        self._child(child_id)
        return self._trainable.get(child_id, True)

    def trainable_parameters(self) -> Iterator[Any]:
        """Yield the parameters of all trainable children, each once, however many nodes share its block."""
        seen: set[int] = set()
        for block in self._blocks(trainable_only=True):
            if not block.frozen:
                for parameter in block.trainable_parameters():
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield parameter

    def blocks(self) -> Iterator[AbstractBaseBlock]:
        """Yield every block below, in order, a shared block once."""
        seen: set[int] = set()
        for block in self._blocks(trainable_only=False):
            if id(block) not in seen:
                seen.add(id(block))
                yield block

    def _blocks(self, *, trainable_only: bool) -> Iterator[AbstractBaseBlock]:
        for child_id, child in self._children.items():
            if isinstance(child, Container) and (not trainable_only or self.is_trainable(child_id)):
                yield from child._blocks(trainable_only=trainable_only)

    def to(self, device: Any) -> Self:
        """Move every block that has a ``to`` method; None changes nothing."""
        if device is not None:
            for block in self.blocks():
                move_block(block, device)
        return self

    # -- placing ------------------------------------------------------------------------------------------------

    def place(self, endpoints: Placer) -> Any:
        """Return a copy whose parts that ``endpoints`` (an `EndpointRegistry`) places on endpoints are remote; the rest is shared."""
        return endpoints.place(self)

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states by child id, empty ones left out; see `collect_states` for blocks that several nodes use."""
        return collect_states(self)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load what `state_dict` returned. Keys are checked first: a mismatch changes nothing.

        Blocks that a graph outside this container uses as well are replaced here and keep their weights there; take
        parameters for an optimiser after loading.

        Raises:
            CheckpointMismatch: (a KeyError) ``strict`` and the state names unknown children, other keys than a block's, or
                lacks a node that has weights.
        """
        self._load_states(state, strict=strict)

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Load strictly, except that nodes whose config names a model may be absent: their weights come from there."""
        self._load_states(state, strict=True, models_optional=True)

    def _load_states(self, state: Mapping[str, Any] | None, *, strict: bool, models_optional: bool = False) -> None:
        load = StateLoader(strict=strict, models_optional=models_optional)
        self._assign_state(state, (), load, strict)
        load.apply()

    def walk_nodes(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Graph, Node]]:
        """Yield every node below with its path and its graph; children that run on another endpoint have none."""
        for child_id, child in self._children.items():
            if isinstance(child, Container):
                yield from child.walk_nodes((*path, child_id))

    def _assign_state(self, state: Any, path: tuple[str, ...], load: StateLoader, strict: bool) -> None:
        missing: dict[str, Any] | None = None if state is None else {}
        state = {} if state is None else state
        self._check_state_ids(state, path, strict)
        for child_id, child in self._children.items():
            if isinstance(child, Container):
                child._assign_state(state.get(child_id, missing), (*path, child_id), load, strict)

    def _check_state_ids(self, state: Any, path: tuple[str, ...], strict: bool) -> None:
        where = "/".join(path) or self.id
        if not isinstance(state, Mapping):
            raise CheckpointMismatch(f"{self.level} {where!r}: a state maps {self.child_word} ids to states, got {type(state).__name__}")
        stray = sorted(str(key) for key in state if key not in self._children)
        if stray and strict:
            raise CheckpointMismatch(
                f"{self.level} {where!r} has no {self.child_word} {', '.join(map(repr, stray))}. Available: {format_options(self._children)}. "
                f"This state belongs to another {self.level}.",
                unexpected=stray,
            )


class ConnectedContainer(Container):
    """A container with edges between its children. Its plan and program are kept until `structure_key` changes."""

    metadata: dict[str, Any]

    #: The end of the message about an unknown input of a run.
    input_hint: str = ""

    def __init__(self) -> None:
        super().__init__()
        self._edge_table = EdgeTable()
        self._plan: tuple[Any, Plan] | None = None
        self._program: tuple[Any, Program] | None = None
        #: The number of changes of the structure so far.
        self.execution_version = 0

    @abstractmethod
    def interface(self, child_id: str) -> Interface:
        """The ports of a child as its container sees them."""

    @abstractmethod
    def structure_key(self) -> Any:
        """Return a value that differs whenever an earlier plan or program of this container no longer holds."""

    @abstractmethod
    def validate(self, strict: bool = True, deep: bool = False) -> ValidationResult:
        """Check the structure; with ``deep`` also that of the containers in it.

        Raises:
            InvalidStructure: (a ValueError) ``strict`` and there are errors.
        """

    @abstractmethod
    def new_edge(self, source: str, source_port: str, target: str, target_port: str) -> Edge:
        """Return an edge of this level's class."""

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
        check_edge(edge, self.child_word, _Interfaces(self.children, self.interface))
        if self._edge_table.add(edge):
            self.execution_version += 1

    def remove_edge(self, edge: Edge) -> None:
        """Remove an edge.

        Raises:
            UnknownName: the container does not have it.
        """
        if edge not in self._edge_table.edges:
            raise unknown_name("edge", str(edge), map(str, self._edge_table.edges))
        self._edge_table.remove(edge)
        self.execution_version += 1

    def get_edges(self) -> list[Edge]:
        """Return all edges in the order in which they were added."""
        return list(self._edge_table.edges)

    def get_edges_in(self, child_id: str) -> list[Edge]:
        """Return the edges into a child."""
        self._child(child_id)
        return list(self._edge_table.into[child_id])

    def edges_into(self, child_id: str, port: str) -> list[Edge]:
        """Return the edges into one port of a child, in the order in which they were added."""
        self._child(child_id)
        return self._edge_table.sources(child_id, port)

    def get_edges_out(self, child_id: str) -> list[Edge]:
        """Return the edges out of a child."""
        self._child(child_id)
        return list(self._edge_table.out_of[child_id])

    # -- exposed ports ------------------------------------------------------------------------------------------

    def expose_input(self, child_id: str, port: str, name: str | None = None) -> None:
        """Make a child's input an input of the container, under ``name`` or ``child_id:port``; one name may feed several ports."""
        self._expose(child_id, port, name, "input")

    def expose_output(self, child_id: str, port: str, name: str | None = None) -> None:
        """Make a child's output an output of the container, under ``name`` or ``child_id:port``."""
        self._expose(child_id, port, name, "output")

    def _expose(self, child_id: str, port: str, name: str | None, kind: Literal["input", "output"]) -> None:
        self._child(child_id)
        interface = self.interface(child_id)
        side = interface.inputs if kind == "input" else interface.outputs
        if port not in side:
            raise InvalidArgument(f"{self.child_word} {child_id!r}: {unknown_message(kind, port, side)}")
        self.add_exposed_port(ExposedPort(child_id, port, name), output=kind == "output")

    def add_exposed_port(self, entry: ExposedPort, *, output: bool) -> None:
        """Expose a port without checking that its child has it, as an entry of a config; `validate` reports a missing port.

        Raises:
            DuplicateName: another port has that output name.
        """
        self._edge_table.expose(entry, output=output)
        self.execution_version += 1

    @property
    def exposed_inputs(self) -> Sequence[ExposedPort]:
        """The exposed inputs in order; one external key may occur several times."""
        return tuple(self._edge_table.inputs)

    @property
    def exposed_outputs(self) -> Sequence[ExposedPort]:
        """The exposed outputs in order."""
        return tuple(self._edge_table.outputs)

    def infer_exposed_ports(self) -> None:
        """Expose exactly the inputs without an incoming edge and the outputs without an outgoing edge."""
        table = self._edge_table
        fed = {(edge.target_node, edge.target_port) for edge in table.edges}
        used = {(edge.source_node, edge.source_port) for edge in table.edges}
        interfaces = {child_id: self.interface(child_id) for child_id in self._children}
        table.inputs = [ExposedPort(c, p) for c, interface in interfaces.items() for p in interface.inputs if (c, p) not in fed]
        table.outputs = [ExposedPort(c, p) for c, interface in interfaces.items() for p in interface.outputs if (c, p) not in used]
        self.execution_version += 1

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the exposed inputs, ``name`` being the external key; with ``include_dtype`` also dtype and optional."""
        return spec_entries(self._edge_table.inputs, lambda child: self.ports(child, "input"), self.child_id_field, include_dtype)

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the exposed outputs, as `get_input_spec`."""
        return spec_entries(self._edge_table.outputs, lambda child: self.ports(child, "output"), self.child_id_field, include_dtype)

    def ports(self, child_id: str, kind: Literal["input", "output"]) -> Mapping[str, Port]:
        """Return the inputs or outputs of a child by name; empty for an unknown child, which a config may expose."""
        if child_id not in self._children:
            return {}
        interface = self.interface(child_id)
        return interface.inputs if kind == "input" else interface.outputs

    # -- running ------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Return the order of the children, kept until the structure changes."""
        key = self.structure_key()
        if self._plan is None or self._plan[0] != key:
            edges = ((edge.source_node, edge.target_node) for edge in self._edge_table.edges)
            self._plan = (key, make_plan(list(self._children), edges, self._order_cycle))
        return self._plan[1]

    def program(self) -> Program:
        """Return the program that the executor runs, kept until the structure changes.

        Raises:
            InvalidEdge: an edge no longer fits the ports of its children. CycleFound: a cycle in an acyclic container.
        """
        return self.keyed_program()[1]

    def keyed_program(self) -> tuple[Any, Program]:
        """Return `structure_key` and the program that belongs to it; errors as `program`."""
        key = self.structure_key()
        if self._program is None or self._program[0] != key:
            self._program = (key, compile_program(self))
        return self._program

    def cycles(self) -> list[tuple[str, ...]]:
        """Return the children of each cycle, in the order in which they run."""
        return self.plan().cycles

    def check_edges(self) -> Iterator[InvalidEdge]:
        """Yield an error for each edge that no longer fits the ports of its children."""
        yield from self._misfits(_Interfaces(self.children, self.interface))

    def _misfits(self, interfaces: Mapping[str, Interface]) -> Iterator[InvalidEdge]:
        for edge in self._edge_table.edges:
            try:
                check_edge(edge, self.child_word, interfaces)
            except InvalidEdge as error:
                yield error

    def interfaces_for_run(self) -> dict[str, Interface]:
        """Return the ports of every child, for the program.

        Raises:
            InvalidEdge: an edge no longer fits them.
        """
        interfaces = {child_id: self.interface(child_id) for child_id in self._children}
        self._refuse_misfits(interfaces)
        return interfaces

    def _refuse_misfits(self, interfaces: Mapping[str, Interface]) -> None:
        for error in self._misfits(interfaces):
            raise InvalidEdge(f"{self.level} {self.id!r}: {error.message}", **error.details)

    def _order_cycle(self, ids: list[str]) -> list[str]:
        return sorted(ids)


class _Interfaces(Mapping[str, Interface]):
    """The children's interfaces, made only for those that are looked up."""

    def __init__(self, children: Mapping[str, Any], interface: Callable[[str], Interface]) -> None:
        self._children = children
        self._interface = interface

    def __getitem__(self, child_id: str) -> Interface:
        return self._interface(child_id)

    def __contains__(self, child_id: object) -> bool:
        return child_id in self._children

    def __iter__(self) -> Iterator[str]:
        return iter(self._children)

    def __len__(self) -> int:
        return len(self._children)
