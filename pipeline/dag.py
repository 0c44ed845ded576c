"""The edge between two graphs of a pipeline, or two pipelines of a stage: external key to external key.

A flow: runnables linked into a DAG. What a pipeline (of graphs) and a stage (of pipelines) have in common.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import BlockFailed, CycleFound, InvalidArgument
from yggdrasill.executor.branches import run_branches
from yggdrasill.executor.context import RunContext, current_run, enter_child
from yggdrasill.executor.hooks import Emit
from yggdrasill.executor.loop import collect_inputs
from yggdrasill.executor.program import Key
from yggdrasill.foundation.container import ConnectedContainer, Container, check_name
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.edges import Edge, EdgeTable, Interface
from yggdrasill.foundation.kinds import find_kind
from yggdrasill.foundation.saving import Persistent
from yggdrasill.foundation.validation import ValidationResult, check_exposures, check_inputs, check_reachability
from yggdrasill.values.handles import load_handles

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Dag", "PipelineEdge"]


@dataclass(frozen=True)
class PipelineEdge(Edge):
    """Like `Edge`, the ports being external keys of the children's specs."""


class Dag(ConnectedContainer, Persistent):
    """Children are runnables, edges link their external ports, cycles are refused."""

    def interface(self, child_id: str) -> Interface:
        """The child's external ports."""
        return Interface.of_runnable(self._child(child_id))

    def new_edge(self, source: str, source_port: str, target: str, target_port: str) -> PipelineEdge:
        """An edge between children."""
        return PipelineEdge(source, source_port, target, target_port)

    def add_edge(self, source: str, source_port: str, target: str, target_port: str) -> None:
        """Link an output of one child to an input of another, by external keys; the same again changes nothing.

        Raises:
            InvalidArgument: a blank field. InvalidEdge: an unknown child or port, or types that do not fit.
        """
        self._add_edge(self.new_edge(source, source_port, target, target_port))

    def _adopt(self, child: Any, child_id: str | None, trainable: bool) -> str:
        if not isinstance(child, Runnable):
            raise InvalidArgument(f"{self.level} {self.id!r} takes {self.child_word}s, configs or paths, got {type(child).__name__}")
        if isinstance(child, Container) and find_kind(child.level).boundary != "ports":
            raise InvalidArgument(f"{self.level} {self.id!r} takes {self.child_word}s, not a {child.level}: it runs a state, not ports")
        if child is self or (isinstance(child, Dag) and any(below is self for _, below in child.walk())):
            raise InvalidArgument(f"{self.level} {self.id!r} cannot contain itself")
        own = next((found for key in ("graph_id", "id") if isinstance(found := getattr(child, key, None), str)), None)
        name = child_id if child_id is not None else own if own is not None else self._free_id(self.child_word)
        check_name(f"{self.child_id_field}", name, self._children)
        self._add_child(name, child)
        self._trainable[name] = trainable
        return name

    def with_children(self, children: Mapping[str, Any]) -> Self:
        """A copy in which ``children`` stand in place of the own ones of their ids; every edge must fit their ports.

        Raises:
            InvalidEdge
        """
        changed = copy.copy(self)
        changed._children, changed._trainable, changed._edge_table, changed._plan = {}, dict(self._trainable), EdgeTable(), None
        for child_id, child in self._children.items():
            changed._add_child(child_id, children.get(child_id, child))
        for edge in self.get_edges():
            changed._add_edge(edge)
        for entries, output in ((self._edge_table.inputs, False), (self._edge_table.outputs, True)):
            for exposed in entries:
                changed._edge_table.expose(exposed, output=output)
        return changed

    def walk(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Every runnable below with its path, outermost first; pipelines are entered, graphs are not."""
        for child_id, child in self._children.items():
            yield (child_id,), child
            if isinstance(child, Dag):
                for path, below in child.walk():
                    yield (child_id, *path), below

    # -- validation ---------------------------------------------------------------------------------------------

    def _check_acyclic(self) -> None:
        for ids in self.plan().cycles:
            ring = [edge for edge in self.get_edges() if edge.source_node in ids and edge.target_node in ids]
            raise CycleFound(
                f"{self.level} {self.id!r} has a cycle: {', '.join(map(str, ring))}; a {self.level} is acyclic. "
                "Put what must repeat into one graph.",
                nodes=list(ids),
            )

    def _structure(self) -> ValidationResult:
        result = ValidationResult()
        try:
            self._check_acyclic()
        except CycleFound as error:
            result.errors.append(error.message)
        return result

    def _inputs_and_reach(self, result: ValidationResult) -> None:
        result.errors += check_exposures(self)
        result.errors += check_inputs(self, {}, {})
        result.warnings += check_reachability(self)

    def _validate_children(self, result: ValidationResult) -> None:
        for child_id, child in self._children.items():
            validate = getattr(child, "validate", None)
            if validate is not None:
                result.add(validate(strict=False, deep=True), child_id)

    # -- running ------------------------------------------------------------------------------------------------

    def _run_children(
        self,
        given: dict[Key, Any],
        context: RunContext,
        emit: Emit | None,
        options: Mapping[str, Any],
        max_workers: int | None,
        wanted: Callable[[str], bool] = lambda child_id: True,
    ) -> dict[Key, Any]:
        """Run every wanted child in order and return the buffer: outputs by ``(child, key)``, added to what was given."""
        self._check_acyclic()
        order = [step[1] for step in self.plan().steps if step[0] == "node"]
        sources = {child_id: {edge.source_node for edge in self._edge_table.into[child_id]} for child_id in order}
        buffer = given
        hook_lock = threading.Lock()

        def tell(child_id: str, phase: str, **facts: Any) -> None:
            if emit is not None:
                with hook_lock:
                    emit(child_id, phase, **facts)

        def call(child_id: str) -> None:
            child = self._children[child_id]
            if not wanted(child_id):
                tell(child_id, "skipped")
                return
            with enter_child(context, child_id):
                context.check_cancelled()
                bindings, aggregated = self._input_rules(child_id, (), {})
                inputs = collect_inputs(bindings, aggregated, buffer, context)
                if not getattr(child, "accepts_handles", False):
                    inputs = {key: load_handles(value) for key, value in inputs.items()}
                tell(child_id, "before", inputs=inputs)
                outputs = child.run(inputs, **options, **self._child_options(child, max_workers))
                if not isinstance(outputs, Mapping):
                    place = current_run().place
                    raise BlockFailed(
                        f"{self.child_word} {place!r} returned {type(outputs).__name__}, not a dict by output name", node=place
                    )
                for key, value in outputs.items():
                    buffer[(child_id, key)] = value
                tell(child_id, "after", outputs=outputs)

        run_branches(order, sources, call, 1 if self._shares_state() else max_workers)
        return buffer

    def _child_options(self, child: Any, max_workers: int | None) -> dict[str, Any]:
        return {"max_workers": max_workers} if isinstance(child, Dag) and max_workers is not None else {}

    def _shares_state(self) -> bool:
        """Whether children share a block that keeps state between calls: then their order is part of the result."""
        seen: dict[int, str] = {}
        for child_id, child in self._children.items():
            if isinstance(child, Container):
                for block in child.blocks():
                    if block.stateful and seen.setdefault(id(block), child_id) != child_id:
                        return True
        return False
