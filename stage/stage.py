"""The stage: an acyclic container of pipelines that maps a state to ports, runs, and maps the outputs back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from yggdrasill.errors import InvalidArgument, unknown_message
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.executor.loop import Buffer, Frame
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import check_name
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.kinds import ChildKeys, Kind, build_given, register_kind
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.foundation.validation import ValidationResult
from yggdrasill.pipeline.dag import Dag, check_child_options, execute_program
from yggdrasill.stage.conditions import Condition, ConditionLike, canonical_condition, canonical_guard
from yggdrasill.stage.contract import PortMapping, StateContract, infer_port_mapping, resolve_source
from yggdrasill.stage.state import State
from yggdrasill.values.handles import load_handles

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ROLES", "Stage"]

ROLES = ("philosopher", "author", "environment", "architect", "creator")


class Stage(Dag):
    """Pipelines and a state contract. ``role`` is which of the world's five stages this is, if any.

    A role implies its canonical conditions: the execution condition of Philosopher, Author, Architect and Creator, and the
    guard of Environment's pipeline ``world_update``. Conditions that are set replace them; "always" removes them.
    """

    level: ClassVar[str] = "stage"
    child_word: ClassVar[str] = "pipeline"
    child_id_field: ClassVar[str] = "stage_node_id"
    schema_version: ClassVar[str] = "1.0"

    def __init__(self, stage_id: str = "stage", *, role: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.stage_id = check_name("stage_id", stage_id)
        if role is not None and role not in ROLES:
            raise InvalidArgument(f"stage {stage_id!r}: {unknown_message('role', role, ROLES)}")
        self.role = role
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.contract = StateContract()
        self.execution_condition: Condition | None = None
        self.pipeline_conditions: dict[str, Condition] = {}
        self._mappings: tuple[Any, tuple[list[PortMapping], list[PortMapping]]] | None = None

    def __repr__(self) -> str:
        return f"<Stage {self.stage_id!r}: {len(self.pipelines)} pipelines>"

    @property
    def id(self) -> str:
        """The stage id."""
        return self.stage_id

    @property
    def pipelines(self) -> dict[str, Any]:
        """The pipelines by stage_node_id."""
        return self._children

    def get_pipeline(self, stage_node_id: str) -> Any:
        """Return the pipeline of that id.

        Raises:
            UnknownName: (a KeyError) it does not exist.
        """
        return self._child(stage_node_id)

    def add_pipeline(
        self,
        pipeline: Runnable | Mapping[str, Any] | str | Path,
        stage_node_id: str | None = None,
        *,
        condition: ConditionLike = None,
        registry: BlockRegistry | None = None,
        pool: ReusePool | None = None,
        trainable: bool = True,
    ) -> str:
        """Add a pipeline (an object, a config, or a file) and return its id; with a ``condition`` it runs only if that holds.

        Raises:
            DuplicateName, InvalidArgument, InvalidConfig, MissingFile, UnknownBlockType
        """
        guard = None if condition is None else Condition(condition)
        name = self._adopt(build_given(pipeline, "pipeline", registry, pool), stage_node_id, trainable)
        if guard is not None:
            self.pipeline_conditions[name] = guard
        return name

    def remove_pipeline(self, stage_node_id: str) -> None:
        """Remove a pipeline with its edges."""
        self._remove_child(stage_node_id)
        self.pipeline_conditions.pop(stage_node_id, None)

    def with_children(self, children: Mapping[str, Any]) -> Self:
        """Return a copy in which ``children`` replace the pipelines of their ids; guards and contract are copied."""
        changed = super().with_children(children)
        changed.pipeline_conditions, changed._mappings = dict(self.pipeline_conditions), None
        return changed

    # -- contract -----------------------------------------------------------------------------------------------

    def set_state_contract(
        self,
        input_blocks: Iterable[Any] = (),
        output_blocks: Iterable[Any] = (),
        mapping_input: Iterable[Any] | None = None,
        mapping_output: Iterable[Any] | None = None,
        *,
        carry: bool = True,
    ) -> None:
        """Set which blocks (1 to 5) and extra fields the stage reads and writes, and their ports; see `StateContract`."""
        self.contract = StateContract.of(input_blocks, output_blocks, mapping_input, mapping_output, carry)

    def set_execution_condition(self, condition: ConditionLike) -> None:
        """Set when a world calls this stage: a preset, a list of required blocks, a callable, or None for that of the role."""
        self.execution_condition = None if condition is None else Condition(condition)

    def should_run(self, state: State) -> bool:
        """Return whether the execution condition holds; the caller checks it, `run` does not."""
        condition = self.condition
        return condition is None or condition.holds(state, self.contract.output_blocks)

    @property
    def condition(self) -> Condition | None:
        """The execution condition in force: the one set, else that of the role; None is always."""
        return canonical_condition(self.role) if self.execution_condition is None else self.execution_condition

    def guard(self, stage_node_id: str) -> Condition | None:
        """Return the condition of a pipeline: the one set, else that of the role; None is always."""
        return self.pipeline_conditions.get(stage_node_id) or canonical_guard(self.role, stage_node_id)

    def input_mapping(self) -> list[PortMapping]:
        """Return the ports that the blocks go to, found by name or order unless the contract names them."""
        return list(self._input_mapping(None))

    def output_mapping(self) -> list[PortMapping]:
        """Return the ports that the blocks come from, found like those of `input_mapping`."""
        return list(self._output_mapping(None))

    def _input_mapping(self, key: Any) -> Sequence[PortMapping]:
        given = self.contract.mapping_input
        return self._inferred(key)[0] if given is None else given

    def _output_mapping(self, key: Any) -> Sequence[PortMapping]:
        given = self.contract.mapping_output
        return self._inferred(key)[1] if given is None else given

    def _used_ports(self, child_id: str) -> tuple[set[str], set[str]]:
        inputs, outputs = super()._used_ports(child_id)
        inputs |= {entry.port for entry in self.contract.mapping_input or () if entry.stage_node_id == child_id}
        outputs |= {entry.port for entry in self.contract.mapping_output or () if entry.stage_node_id == child_id}
        return inputs, outputs

    def _inferred(self, key: Any = None) -> tuple[list[PortMapping], list[PortMapping]]:
        """Return the mappings by name and order, kept until the structure or the contract changes."""
        key = (self.structure_key() if key is None else key, self.contract)
        if self._mappings is None or self._mappings[0] != key:
            edges = self.get_edges()
            fed = {(edge.target_node, edge.target_port) for edge in edges}
            used = {(edge.source_node, edge.source_port) for edge in edges}
            interfaces = [(child, self.interface(child)) for child in self.pipelines]
            inputs = [(child, name) for child, interface in interfaces for name in interface.inputs if (child, name) not in fed]
            outputs = [(child, name) for child, interface in interfaces for name in interface.outputs if (child, name) not in used]
            contract = self.contract
            found = infer_port_mapping(contract.input_blocks, inputs), infer_port_mapping(contract.output_blocks, outputs)
            self._mappings = (key, found)
        return self._mappings[1]

    def get_state_input_spec(self) -> list[dict[str, Any]]:
        """Return what the stage reads, as ``{block, stage_node_id, port, dtype}``."""
        return [self._spec(entry, "input") for entry in self.input_mapping()]

    def get_state_output_spec(self) -> list[dict[str, Any]]:
        """Return what the stage writes, as ``{block, stage_node_id, port, dtype}``."""
        return [self._spec(entry, "output") for entry in self.output_mapping()]

    def _spec(self, entry: PortMapping, kind: Literal["input", "output"]) -> dict[str, Any]:
        port = self.ports(entry.stage_node_id, kind).get(entry.port)
        return {**entry.to_config(), "dtype": port.dtype if port else "any"}

    # -- running ------------------------------------------------------------------------------------------------

    def validate(self, strict: bool = True, deep: bool = False, *, validate_pipelines: bool = False) -> ValidationResult:
        """Check for cycles, edges to missing ports, the contract against the pipelines' ports, inputs without a source, unused
        pipelines, and the role.

        With ``deep`` (or ``validate_pipelines``, its older name) each pipeline is checked too, its messages prefixed by its id.

        Raises:
            InvalidStructure: (a ValueError) ``strict`` and there are errors.
        """
        from yggdrasill.stage.stage_validation import check_contract, check_reach, check_role

        result = self._structure()
        result.errors += check_contract(self)
        result.warnings += check_reach(self)
        if self.role is not None:
            result.warnings += check_role(self, self.role)
        if deep or validate_pipelines:
            self._validate_children(result)
        if strict:
            result.raise_if_invalid(f"stage {self.stage_id!r}")
        return result

    def run(
        self,
        state: State | Mapping[Any, Any] | None = None,
        *,
        action: Any = None,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        dry_run: bool = False,
        seed: int | None = None,
        max_workers: int | None = None,
        **kwargs: Any,
    ) -> State:
        """Map the state to ports, run the pipelines in order, and return a new state with the blocks they wrote.

        Other blocks carry over, unless the contract has ``carry=False``. Hooks receive ``before`` (inputs), ``after``
        (outputs) and ``skipped`` per pipeline. ``action`` reaches the ports mapped to it. Random numbers derive from
        ``seed``, or else from the state's, and its ``passes``. ``max_workers`` bounds the computing threads, as in
        `Pipeline.run`. ``dry_run`` calls hooks but no block, and returns the state as it is.

        Raises:
            InvalidState, CycleFound, InvalidEdge, InvalidArgument (an unknown run option), BlockFailed, HookFailed, Cancelled
        """
        before = State.of(state)
        emit = as_emit(callbacks)
        options = {"training": training, "device": device, "dry_run": dry_run, **kwargs}
        key, program = self.keyed_program()
        check_child_options(program, kwargs, Stage.run)
        buffer = Buffer(program.slots)
        for entry in self._input_mapping(key):
            value = resolve_source(before, action, entry.block)
            slot = program.slots.get((entry.stage_node_id, entry.port, "in"))
            if value is not None and slot is not None:
                buffer.values_by_slot[slot] = value
        guarded = any(self.guard(child) is not None for child in self.pipelines)
        wanted = (lambda child: self._guard_holds(child, before)) if guarded else None
        with enter_run(seed=before.seed if seed is None else seed, pass_index=before.passes) as context:
            execute_program(Frame(program, buffer, emit, dry_run=dry_run, options=options, wanted=wanted), context, max_workers)
        if dry_run:
            return before
        keys = [(entry.block, (entry.stage_node_id, entry.port, "out")) for entry in self._output_mapping(key)]
        written = {block: buffer[key] for block, key in keys if key in buffer}
        if context.outermost and program.foreign:
            written = {key: load_handles(value) for key, value in written.items()}
        return self._written(before, written)

    def preview(self, state: State, *, marker: str = "(written by {stage})") -> State:
        """Return the state with a text in each block that a run would write; the content is unchanged."""
        text = marker.format(stage=self.stage_id)
        written = {e.block: text for e in self.output_mapping() if e.block != "content" and self._guard_holds(e.stage_node_id, state)}
        return self._written(state, written)

    def _written(self, before: State, written: Mapping[Any, Any]) -> State:
        changes = {"content": written["content"]} if "content" in written else {}
        values = {key: value for key, value in written.items() if key != "content"}
        kept = before if self.contract.carry else before.only(())
        return kept.replace(values, **changes)

    def _guard_holds(self, child_id: str, state: State) -> bool:
        guard = self.guard(child_id)
        return guard is None or guard.holds(state, [entry.block for entry in self.output_mapping() if entry.stage_node_id == child_id])

    # -- config -------------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values, `from_config`'s inverse."""
        from yggdrasill.stage.stage_config import stage_to_config

        return stage_to_config(self)

    @classmethod
    def _build(cls, config: Mapping[str, Any], options: BuildOptions, validate: bool = False) -> Self:
        from yggdrasill.stage.stage_config import stage_from_config

        return stage_from_config(cls, config, options, validate)


register_kind(
    Kind(
        "stage",
        load_class=lambda: Stage,
        build=Stage._build,
        id_key="stage_id",
        marks=("pipelines",),
        children=ChildKeys("pipelines", "stage_node_id", "pipeline_config", "pipeline"),
        boundary="state",
        drawing="stage",
        run_options=frozenset({"num_loop_steps", "dry_run", "max_workers"}),
    )
)
