"""The pipeline: graphs linked into a DAG by their external ports. To the levels above it is used like a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.executor.loop import Frame, fill, read_outputs
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import check_name
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.kinds import ChildKeys, Kind, build_given, register_kind
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.foundation.validation import ValidationResult
from yggdrasill.pipeline.dag import Dag, check_child_options, execute_program
from yggdrasill.values.handles import load_handles

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Pipeline"]


class Pipeline(Dag):
    """A DAG of graphs. A child may be any runnable, also a remote one."""

    level: ClassVar[str] = "pipeline"
    child_word: ClassVar[str] = "graph"
    child_id_field: ClassVar[str] = "pipeline_node_id"
    schema_version: ClassVar[str] = "1.0"

    #: Inputs may be handles; a child that takes no handles receives the loaded values.
    accepts_handles: ClassVar[bool] = True

    def __init__(self, pipeline_id: str = "pipeline", *, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.pipeline_id = check_name("pipeline_id", pipeline_id)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.input_hint = f"These are the inputs of pipeline {self.pipeline_id!r}."

    def __repr__(self) -> str:
        return f"<Pipeline {self.pipeline_id!r}: {len(self.graphs)} graphs>"

    @property
    def id(self) -> str:
        """The pipeline id."""
        return self.pipeline_id

    @property
    def graphs(self) -> dict[str, Any]:
        """The graphs by pipeline_node_id."""
        return self._children

    @property
    def node_ids(self) -> list[str]:
        """The pipeline_node_ids in insertion order."""
        return list(self._children)

    def get_graph(self, pipeline_node_id: str) -> Any:
        """Return the graph of that id.

        Raises:
            UnknownName: (a KeyError) the pipeline does not have it.
        """
        return self._child(pipeline_node_id)

    def add_graph(
        self,
        graph: Runnable | Mapping[str, Any] | str | Path,
        pipeline_node_id: str | None = None,
        *,
        registry: BlockRegistry | None = None,
        pool: ReusePool | None = None,
        trainable: bool = True,
    ) -> str:
        """Add a graph (an object, a config, or a config file) and return its id: the given one, else its graph_id, else
        ``graph_<n>``.

        Raises:
            DuplicateName, InvalidArgument, InvalidConfig, MissingFile, UnknownBlockType
        """
        return self._adopt(build_given(graph, "graph", registry, pool), pipeline_node_id, trainable)

    def remove_graph(self, pipeline_node_id: str) -> None:
        """Remove a graph with its edges and exposed ports."""
        self._remove_child(pipeline_node_id)

    def validate(self, strict: bool = True, deep: bool = False, *, validate_graphs: bool = False) -> ValidationResult:
        """Check for cycles, edges to missing ports, unfed inputs and unreachable graphs.

        With ``deep`` (or ``validate_graphs``, its older name) each graph is checked too, its messages prefixed by its id.

        Raises:
            InvalidStructure: (a ValueError) ``strict`` and there are errors.
        """
        result = self._structure()
        self._inputs_and_reach(result)
        if deep or validate_graphs:
            self._validate_children(result)
        if strict:
            result.raise_if_invalid(f"pipeline {self.pipeline_id!r}")
        return result

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        dry_run: bool = False,
        seed: int | None = None,
        max_workers: int | None = None,
        **graph_kwargs: Any,
    ) -> dict[str, Any]:
        """Run the graphs in order and return the exposed outputs by external key.

        Hooks get phases ``before`` (inputs) and ``after`` (outputs) per graph. ``graph_kwargs`` such as ``num_loop_steps``
        go to every graph. With ``max_workers`` above 1, graphs and nodes that do not depend on each other run at the same
        time, with the same results; it bounds the computing threads of the whole run, however deep it is nested.

        Raises:
            CycleFound, InvalidEdge (an edge to a port that no longer exists), UnknownName (an input that the pipeline does
            not have), InvalidArgument (an unknown run option), BlockFailed, HookFailed, Cancelled
        """
        emit = as_emit(callbacks)
        program = self.program()
        check_child_options(program, graph_kwargs, Pipeline.run)
        buffer = fill(program, inputs or {})
        options = {"training": training, "device": device, "dry_run": dry_run, **graph_kwargs}
        with enter_run(seed=seed) as context:
            execute_program(Frame(program, buffer, emit, dry_run=dry_run, options=options), context, max_workers)
        outputs = read_outputs(program, buffer)
        if context.outermost and program.foreign:
            return {key: load_handles(value) for key, value in outputs.items()}
        return outputs

    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values, `from_config`'s inverse."""
        from yggdrasill.pipeline.pipeline_config import pipeline_to_config

        return pipeline_to_config(self)

    @classmethod
    def _build(cls, config: Mapping[str, Any], options: BuildOptions, validate: bool = False) -> Self:
        from yggdrasill.pipeline.pipeline_config import pipeline_from_config

        return pipeline_from_config(cls, config, options, validate)


register_kind(
    Kind(
        "pipeline",
        load_class=lambda: Pipeline,
        build=Pipeline._build,
        id_key="pipeline_id",
        marks=("graphs",),
        children=ChildKeys("graphs", "pipeline_node_id", "graph_config", "graph"),
        drawing="network",
        run_options=frozenset({"num_loop_steps", "dry_run", "max_workers"}),
    )
)
