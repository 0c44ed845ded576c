"""Acyclic containers: the common part of a pipeline (of graphs) and a stage (of pipelines), and the edge between their children."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CycleFound, InvalidArgument, RemoteError
from yggdrasill.executor.context import RunContext
from yggdrasill.executor.loop import Frame, check_options, execute
from yggdrasill.executor.program import MISSING, Program
from yggdrasill.foundation.container import ConnectedContainer, Container, check_name
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.edges import Edge, EdgeTable, Interface
from yggdrasill.foundation.kinds import find_kind
from yggdrasill.foundation.ports import Port, PortDirection
from yggdrasill.foundation.saving import Persistent
from yggdrasill.foundation.validation import ValidationResult, check_edges, check_exposures, check_inputs, check_reachability
from yggdrasill.values.handles import load_handles

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CHILD_OPTIONS", "Dag", "PipelineEdge", "check_child_options", "execute_program"]

#: The run options that a pipeline or stage passes on to its children.
CHILD_OPTIONS = ("num_loop_steps",)


@dataclass(frozen=True)
class PipelineEdge(Edge):
    """Like `Edge`, the ports being external keys of the children's specs."""


class Dag(ConnectedContainer, Persistent):
    """An acyclic container of runnables, linked by their external ports."""

    def __init__(self) -> None:
        super().__init__()
        #: The interfaces of containers, each with the `structure_key` it belongs to.
        self._interfaces: dict[str, tuple[Any, Interface]] = {}

    def interface(self, child_id: str) -> Interface:
        """Return the child's external ports."""
        child = self._child(child_id)
        if not isinstance(child, ConnectedContainer):
            return Interface.of_runnable(child)
        key = (child, child.structure_key())
        known = self._interfaces.get(child_id)
        if known is None or known[0] != key:
            known = self._interfaces[child_id] = (key, Interface.of_runnable(self._child(child_id)))
        return known[1]

    def structure_key(self) -> Any:
        """Return the version with the structure of each child: the key of a container, the ports of another runnable."""
        return self.execution_version, [
            child.structure_key() if isinstance(child, ConnectedContainer) else _known_ports(child) for child in self._children.values()
        ]

    def new_edge(self, source: str, source_port: str, target: str, target_port: str) -> PipelineEdge:
        """Return an edge between children."""
        return PipelineEdge(source, source_port, target, target_port)

    def add_edge(self, source: str, source_port: str, target: str, target_port: str) -> None:
        """Link an output of one child to an input of another, by external keys; a duplicate changes nothing.

        Raises:
            InvalidArgument: a blank field. InvalidEdge: an unknown child or port, or types that do not fit.
        """
        self._add_edge(self.new_edge(source, source_port, target, target_port))

    def _adopt(self, child: Any, child_id: str | None, trainable: bool) -> str:
        if not isinstance(child, Runnable):
            raise InvalidArgument(f"{self.level} {self.id!r} takes {self.child_word}s, configs or paths, got {type(child).__name__}")
        if isinstance(child, Container) and find_kind(child.level).boundary != "ports":
            raise InvalidArgument(
                f"{self.level} {self.id!r} takes {self.child_word}s, not a {child.level}, which runs a state instead of ports"
            )
        if child is self or (isinstance(child, Dag) and any(below is self for _, below in child.walk())):
            raise InvalidArgument(f"{self.level} {self.id!r} cannot contain itself")
        known = next((found for key in ("graph_id", "id") if isinstance(found := getattr(child, key, None), str)), None)
        name = child_id if child_id is not None else known if known is not None else self._free_id(self.child_word)
        check_name(f"{self.child_id_field}", name, self._children)
        self._add_child(name, child)
        self._trainable[name] = trainable
        return name

    def _remove_child(self, child_id: str) -> None:
        super()._remove_child(child_id)
        self._interfaces.pop(child_id, None)

    def with_children(self, children: Mapping[str, Any]) -> Self:
        """Return a copy in which ``children`` replace the children of their ids; every edge must fit their ports.

        Raises:
            InvalidEdge
        """
        changed = copy.copy(self)
        changed._children, changed._trainable, changed._edge_table = {}, dict(self._trainable), EdgeTable()
        changed._plan, changed._program, changed._interfaces = None, None, {}
        for child_id, child in self._children.items():
            changed._add_child(child_id, children.get(child_id, child))
        for edge in self.get_edges():
            changed._add_edge(edge)
        for entries, output in ((self._edge_table.inputs, False), (self._edge_table.outputs, True)):
            for exposed in entries:
                changed._edge_table.expose(exposed, output=output)
        return changed

    def walk(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yield every runnable below with its path, outermost first; pipelines are entered, graphs are not."""
        for child_id, child in self._children.items():
            yield (child_id,), child
            if isinstance(child, Dag):
                for path, below in child.walk():
                    yield (child_id, *path), below

    # -- validation ---------------------------------------------------------------------------------------------

    def interfaces_for_run(self) -> dict[str, Interface]:
        """Return the ports of every child, for the program. A child whose endpoint is not reachable has the ports that this
        container uses: it may not be called in this run, and if it is called, its own run reports the endpoint.

        Raises:
            CycleFound: a cycle. InvalidEdge: an edge no longer fits the ports.
        """
        self._check_acyclic()
        interfaces = {}
        for child_id in self._children:
            try:
                interfaces[child_id] = self.interface(child_id)
            except RemoteError:
                interfaces[child_id] = self._assumed_interface(child_id)
        self._refuse_misfits(interfaces)
        return interfaces

    def _used_ports(self, child_id: str) -> tuple[set[str], set[str]]:
        """Return the names of the inputs and outputs that edges and exposed ports of this container name."""
        inputs = {edge.target_port for edge in self.get_edges_in(child_id)}
        outputs = {edge.source_port for edge in self.get_edges_out(child_id)}
        inputs |= {entry.port_name for entry in self.exposed_inputs if entry.node_id == child_id}
        outputs |= {entry.port_name for entry in self.exposed_outputs if entry.node_id == child_id}
        return inputs, outputs

    def _assumed_interface(self, child_id: str) -> Interface:
        inputs, outputs = self._used_ports(child_id)
        return Interface(
            {name: Port(name, PortDirection.IN, optional=True) for name in sorted(inputs)},
            {name: Port(name, PortDirection.OUT) for name in sorted(outputs)},
        )

    def _check_acyclic(self) -> None:
        for ids in self.cycles():
            ring = [edge for edge in self.get_edges() if edge.source_node in ids and edge.target_node in ids]
            raise CycleFound(
                f"{self.level} {self.id!r} has a cycle: {', '.join(map(str, ring))}; a {self.level} is acyclic. "
                "Put the repeated part into one graph.",
                nodes=list(ids),
            )

    def _structure(self) -> ValidationResult:
        result = ValidationResult()
        try:
            self._check_acyclic()
        except CycleFound as error:
            result.errors.append(error.message)
        result.errors += check_edges(self)
        return result

    def _inputs_and_reach(self, result: ValidationResult) -> None:
        result.errors += check_exposures(self)
        result.errors += check_inputs(self, {})
        result.warnings += check_reachability(self)

    def _validate_children(self, result: ValidationResult) -> None:
        for child_id, child in self._children.items():
            if isinstance(child, ConnectedContainer):
                result.add(child.validate(strict=False, deep=True), child_id)


def check_child_options(program: Program, given: Mapping[str, Any], method: Callable[..., Any]) -> None:
    """Raise `InvalidArgument` for an option that no child can take; children of other kinds have options of their own."""
    if given and not program.foreign:
        check_options(given, CHILD_OPTIONS, method)


def execute_program(frame: Frame, context: RunContext, max_workers: int | None) -> None:
    """Run a program of runnables on a buffer with the given inputs.

    Handles are loaded where the inputs come in if every child computes in this process. Otherwise each child that takes no
    handles has its inputs loaded.
    """
    if frame.program.foreign:
        frame.load = load_handles
    elif context.handles:
        values = frame.buffer.values_by_slot
        for slot, value in enumerate(values):
            if value is not MISSING:
                values[slot] = load_handles(value)
    context.handles = frame.program.foreign
    execute(frame, context, max_workers)


def _known_ports(child: Any) -> Interface | None:
    """Return the ports of a runnable that is not a container; None until its endpoint has sent them."""
    if not getattr(child, "knows_ports", True):
        return None
    try:
        return Interface.of_runnable(child)
    except RemoteError:
        return None
