"""The world: a ring of stages that evolves a state of five blocks pass by pass, and owns the world's content."""

from __future__ import annotations

import copy
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import InvalidArgument, InvalidState, format_options, unknown_message
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.executor.loop import check_options
from yggdrasill.foundation.archive import Source
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import check_name
from yggdrasill.foundation.kinds import ChildKeys, Kind, build_given, register_kind
from yggdrasill.foundation.pool import ReusePool, canonical_reference
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.foundation.saving import Persistent
from yggdrasill.foundation.validation import ValidationResult
from yggdrasill.pipeline.dag import CHILD_OPTIONS, Dag
from yggdrasill.stage.contract import CONTEXT_SOURCES, StageLike, state_key
from yggdrasill.stage.stage import ROLES, Stage
from yggdrasill.stage.stage_validation import check_role, check_schema
from yggdrasill.stage.state import BLOCKS, State
from yggdrasill.world.passes import WorldRun
from yggdrasill.world.storage import LAST_STATE_FILE, BlockMemory, WorldStorage, pack_last, unpack_last

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CANONICAL_CYCLE", "World"]

#: Philosopher -> Author -> Environment -> Architect -> Creator -> (again).
CANONICAL_CYCLE = ROLES


class World(Persistent):
    """Stages in a ring. ``cycle`` implies the edges; a stage runs when its execution condition holds.

    ``content`` is the world's content, shared by all passes: it starts from ``initial_world``, travels with the state,
    and World update inside Environment replaces it. ``content`` and ``last_state`` change when a run returns, or with
    each pass of an iterator. A run that fails or is refused changes neither, nor what stateful blocks remember.
    """

    level: ClassVar[str] = "world"
    child_word: ClassVar[str] = "stage"
    child_id_field: ClassVar[str] = "stage_id"
    schema_version: ClassVar[str] = "2.0"

    def __init__(
        self,
        world_id: str = "world",
        *,
        description: str = "",
        seed: int | None = None,
        tags: Sequence[str] = (),
        checkpoint_ref: str | None = None,
    ) -> None:
        super().__init__()
        self.world_id = check_name("world_id", world_id)
        self.description = description
        self.seed = seed
        self.tags = list(tags)
        self.checkpoint_ref = None if checkpoint_ref is None else canonical_reference(checkpoint_ref, ("file",))
        self.cycle: list[str] = []
        self.state_fields: dict[str, str] = {}
        self.initial_world: dict[str, Any] = {}
        self.storage: WorldStorage | None = None
        self.content: Any = None
        self.last_state: State | None = None
        self._running = threading.Lock()

    def __repr__(self) -> str:
        return f"<World {self.world_id!r}: {' -> '.join(self.cycle)}>"

    @property
    def id(self) -> str:
        """The world id."""
        return self.world_id

    @property
    def stages(self) -> dict[str, Any]:
        """The stages by stage_id."""
        return self._children

    def get_stage(self, stage_id: str) -> Any:
        """Return the stage of that id.

        Raises:
            UnknownName: (a KeyError) it does not exist.
        """
        return self._child(stage_id)

    def with_children(self, children: Mapping[str, Any]) -> Self:
        """Return a copy in which ``children`` replace the stages of their ids; the two worlds may run at the same time."""
        changed = copy.copy(self)
        changed._children = {stage_id: children.get(stage_id, stage) for stage_id, stage in self._children.items()}
        changed._trainable = dict(self._trainable)
        changed._running = threading.Lock()
        return changed

    # -- building -----------------------------------------------------------------------------------------------

    def add_stage(
        self,
        stage: Stage | Mapping[str, Any] | str | Path,
        stage_id: str | None = None,
        *,
        registry: BlockRegistry | None = None,
        pool: ReusePool | None = None,
        trainable: bool = True,
    ) -> str:
        """Add a stage (an object, a config, or a file) and return its id; `set_cycle` sets its position in the ring.

        Raises:
            DuplicateName, InvalidArgument, InvalidConfig, MissingFile, UnknownBlockType
        """
        child = build_given(stage, "stage", registry, pool)
        if not isinstance(child, StageLike):
            raise InvalidArgument(f"world {self.world_id!r} takes stages, configs or paths, got {type(child).__name__}")
        name = check_name("stage_id", stage_id if stage_id is not None else child.stage_id, self._children)
        self._children[name] = child
        self._trainable[name] = trainable
        return name

    def set_cycle(self, stage_ids: Sequence[str]) -> None:
        """Set the order of the ring, which names every stage exactly once.

        Raises:
            InvalidArgument
        """
        ids = list(stage_ids)
        problem = self._cycle_problem(ids) if ids or self.stages else None
        if problem:
            raise InvalidArgument(problem)
        self.cycle = ids

    def set_canonical_cycle(self) -> None:
        """Set the order Philosopher -> Author -> Environment -> Architect -> Creator, each found by role, else by id.

        Raises:
            InvalidArgument: a role is missing, or two stages have it.
        """
        by_role: dict[str, str] = {}
        for stage_id in self.stages:
            role = self.role_of(stage_id)
            if role in by_role:
                raise InvalidArgument(
                    f"world {self.world_id!r}: stages {by_role[role]!r} and {stage_id!r} are both {role}; a ring has one of each"
                )
            by_role[role] = stage_id
        missing = [role for role in CANONICAL_CYCLE if role not in by_role]
        if missing:
            raise InvalidArgument(
                f"world {self.world_id!r} has no {', '.join(missing)}; the canonical ring needs {', '.join(CANONICAL_CYCLE)}"
            )
        self.set_cycle([by_role[role] for role in CANONICAL_CYCLE])

    def set_state_schema(self, fields: Mapping[str, str] | Sequence[str] = ()) -> None:
        """Declare the extra fields of a state besides blocks 1 to 5, with dtypes if given as a mapping.

        Raises:
            InvalidArgument: the name of a block or a context source.
        """
        given = dict(fields) if isinstance(fields, Mapping) else dict.fromkeys(fields, "any")
        for name in given:
            if state_key(name) in {*BLOCKS, *CONTEXT_SOURCES}:
                raise InvalidArgument(f"state field {name!r} has the name of a block or a context source; choose another one")
        self.state_fields = given

    def set_storage(self, storage: WorldStorage | str | Path | None, **options: Any) -> None:
        """Set where snapshots go: a storage, or a folder and the options of `WorldStorage`; None stores nothing."""
        self.storage = WorldStorage(storage, **options) if isinstance(storage, (str, Path)) else storage

    def set_initial_world(self, initial_world: Mapping[str, Any] | None = None, **parts: Any) -> None:
        """Set the first content: initial_story, glossary, style, rules, or anything the blocks understand."""
        self.initial_world = copy.deepcopy({**(initial_world or {}), **parts})

    # -- validation ---------------------------------------------------------------------------------------------

    def validate(self, strict: bool = True, deep: bool = False, *, validate_stages: bool = False) -> ValidationResult:
        """Check the ring, the roles, the contracts against the state schema, and the storage.

        With ``deep`` (or ``validate_stages``, its older name) each stage is checked too, its messages prefixed by its id.

        Raises:
            InvalidStructure: (a ValueError) ``strict`` and there are errors.
        """
        result = ValidationResult()
        problem = self._cycle_problem(self.cycle)
        result.errors += [problem] if problem else []
        for stage_id, stage in self.stages.items():
            if not isinstance(stage, Stage):
                continue
            result.errors += check_schema(stage_id, stage, self.state_fields)
            if deep or validate_stages:
                result.add(stage.validate(strict=False, deep=True), stage_id)
            if stage.role is None or not (deep or validate_stages):
                result.warnings += (f"{stage_id}: {warning}" for warning in check_role(stage, self.role_of(stage_id)))
        if self.storage is not None and (trouble := self.storage.problem(self.world_id)):
            result.errors.append(trouble)
        if strict:
            result.raise_if_invalid(f"world {self.world_id!r}")
        return result

    def _cycle_problem(self, cycle: Sequence[str]) -> str | None:
        """Why ``cycle`` is not a ring of this world's stages, or None."""
        if not self.stages:
            return f"world {self.world_id!r} has no stages; add some and set the cycle"
        faults = (
            (sorted({name for name in cycle if list(cycle).count(name) > 1}), "are repeated"),
            ([name for name in cycle if name not in self.stages], "do not exist"),
            ([name for name in self.stages if name not in cycle], "are missing"),
        )
        parts = [f"{names} {text}" for names, text in faults if names]
        if not parts:
            return None
        return f"world {self.world_id!r}: the cycle must name each stage exactly once ({format_options(self.stages)}); {'; '.join(parts)}"

    # -- running ------------------------------------------------------------------------------------------------

    def run(
        self,
        state: State | Mapping[Any, Any] | None = None,
        *,
        action: Any = None,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        num_steps: int = 1,
        dry_run: bool = False,
        seed: int | None = None,
        iterate: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run ``num_steps`` full passes and return the last state, or with ``iterate`` an iterator over the states of the passes.

        Without a state the first pass starts at Development; if the storage has ``load_last_state``, it continues behind
        the newest snapshot or full pass, and completing an interrupted pass counts as a pass. A state without content
        gets the world's. ``action`` is one for the first pass that reaches Environment, or a list with one for each such
        pass. Hooks receive ``before`` (state_before), ``after`` (state_before, state_after) and ``skipped``
        (state_before) per stage, and ``snapshot`` (path, state_before) for each saved one. ``dry_run`` walks order and
        conditions without calling anything: the returned state has a text in each block that would be written, and its
        content is unchanged.

        Raises:
            InvalidArgument, InvalidState, StorageFailed, BlockFailed, HookFailed, Cancelled
        """
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 0:
            raise InvalidArgument(f"num_steps must be an integer of at least 0, got {num_steps!r}")
        actions = list(action) if isinstance(action, (list, tuple)) else [action]
        if len(actions) > max(num_steps, 1):
            raise InvalidArgument(f"{len(actions)} actions for {num_steps} passes; give one action, or one per pass")
        problem = self._cycle_problem(self.cycle)
        if problem:
            raise InvalidArgument(problem)
        if all(isinstance(stage, Dag) and not stage.program().foreign for stage in self.stages.values()):
            check_options(kwargs, ("max_workers", *CHILD_OPTIONS), World.run)
        given = None if state is None else State.of(state)
        self._check_fields(given)
        options = {"training": training, "device": device, **kwargs}

        def prepare() -> WorldRun:
            run = self._new_run(given, seed, actions, num_steps)
            run.emit, run.options, run.dry_run = as_emit(callbacks), options, dry_run
            return run

        if iterate:
            return self._iterate(prepare, num_steps)
        with self._exclusive():
            run = prepare()
            run.advance(num_steps)
            self.content, self.last_state = run.content, run.last_state
        return run.state

    def _iterate(self, prepare: Callable[[], WorldRun], num_steps: int) -> Iterator[State]:
        """Run and commit pass by pass; closing the iterator frees the world for the next run."""
        with self._exclusive():
            run = prepare()
            for _ in range(num_steps):
                run.advance(1)
                self.content, self.last_state = run.content, run.last_state
                yield run.state

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the world for one run; taken before anything of the world is read, so that a refused run changes nothing."""
        if not self._running.acquire(blocking=False):
            raise InvalidArgument(f"world {self.world_id!r} is running already; wait for that run, or build another world for a second one")
        try:
            yield
        finally:
            self._running.release()

    def _new_run(self, given: State | None, seed: int | None, actions: Sequence[Any], num_steps: int) -> WorldRun:
        environments = [stage_id for stage_id in self.cycle if self.role_of(stage_id) == "environment"]
        start, first = State() if given is None else given, 0
        memory: BlockMemory = {}
        progress = None
        if given is None and self.storage is not None and self.storage.load_last_state:
            progress = self.storage.newest(self.world_id)
        if progress is not None:
            start, memory = progress.resume_state(), progress.memory
            if progress.following is not None and environments:
                start, first = progress.following, self.cycle.index(environments[0]) + 1
            self._check_fields(start)
        if first and any(action is not None for action in actions[max(num_steps - 1, 0) :]):
            raise InvalidArgument(
                f"world {self.world_id!r} resumes pass {start.passes + 1} behind {environments[0]!r}, where its action was applied; "
                f"of {num_steps} passes {max(num_steps - 1, 0)} can receive an action. Run more passes, or leave the action out."
            )
        return WorldRun(
            self.world_id,
            {stage_id: self.stages[stage_id] for stage_id in self.cycle},
            frozenset(environments),
            self.storage,
            self._start_state(start, seed),
            self.content,
            self.last_state,
            deque(actions),
            first,
            memory,
        )

    def _check_fields(self, state: State | None) -> None:
        stray = sorted(name for name in state.fields if name not in self.state_fields) if state is not None else []
        if stray:
            raise InvalidState(f"world {self.world_id!r}: {unknown_message('state field', stray[0], self.state_fields)}")

    def _start_state(self, state: State, seed: int | None) -> State:
        """The state with content and a seed: the argument, else the state's, else the world's, else a random one."""
        if state.content is None:
            state = state.replace(content=copy.deepcopy(self.initial_world) if self.content is None else self.content)
        chosen = next((candidate for candidate in (seed, state.seed, self.seed) if candidate is not None), None)
        return state.replace(seed=secrets.randbits(63) if chosen is None else chosen)

    def role_of(self, stage_id: str) -> str:
        """Return a stage's role; the id is the role of a stage without one."""
        role: str | None = self.get_stage(stage_id).role
        return role or stage_id

    # -- saving -------------------------------------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        return {"world_id": self.world_id, "cycle": list(self.cycle), "node_ids": list(self.stages), "schema_version": self.schema_version}

    def _files(self, folder: str, states: Any) -> Iterator[tuple[str, Any]]:
        yield from super()._files(folder, states)
        if self.last_state is not None or self.content is not None:
            yield f"{folder}{LAST_STATE_FILE}", pack_last(self.last_state, self.content)

    def _read_extras(self, source: Source) -> None:
        data = source.read(LAST_STATE_FILE)
        if data is not None:
            self.last_state, self.content = unpack_last(data, source.describe(LAST_STATE_FILE))

    def _become(self, built: Self) -> None:
        if not self._running.acquire(blocking=False):
            raise InvalidArgument(f"world {self.world_id!r} is running; wait for that run before loading a config into it")
        try:
            super()._become(built)
        finally:
            self._running.release()

    # -- config -------------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values, `from_config`'s inverse."""
        from yggdrasill.world.world_config import world_to_config

        return world_to_config(self)

    @classmethod
    def _build(cls, config: Mapping[str, Any], options: BuildOptions, validate: bool = False) -> Self:
        from yggdrasill.world.world_config import world_from_config

        return world_from_config(cls, config, options, validate)

    def walk(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yield every runnable below with its path, outermost first; graphs are not entered."""
        for stage_id, stage in self.stages.items():
            yield (stage_id,), stage
            if isinstance(stage, Dag):
                for path, below in stage.walk():
                    yield (stage_id, *path), below


register_kind(
    Kind(
        "world",
        load_class=lambda: World,
        build=World._build,
        id_key="world_id",
        marks=("stages", "cycle"),
        children=ChildKeys("stages", None, "stage_config", "stage"),
        boundary="world",
        drawing="ring",
        run_options=frozenset({"num_loop_steps", "dry_run", "max_workers", "num_steps", "seed"}),
    )
)
