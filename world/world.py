"""The world: a ring of stages that evolves a state of five blocks, pass after pass, and owns the world's content."""

from __future__ import annotations

import copy
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import InvalidArgument, InvalidState, format_options
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.executor.loop import check_options
from yggdrasill.foundation.archive import Source
from yggdrasill.foundation.config import BuildOptions, read_document
from yggdrasill.foundation.container import check_name
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.foundation.saving import Persistent
from yggdrasill.foundation.validation import ValidationResult
from yggdrasill.pipeline.dag import CHILD_OPTIONS, Dag
from yggdrasill.stage.contract import CONTEXT_SOURCES, state_key
from yggdrasill.stage.protocol import StageLike
from yggdrasill.stage.stage import ROLES, Stage
from yggdrasill.stage.state import BLOCKS, State
from yggdrasill.world.last_state import LAST_STATE_FILE, pack_last, unpack_last
from yggdrasill.world.passes import ResumePoint, WorldRun, rollback_on_error
from yggdrasill.world.storage import WorldStorage
from yggdrasill.world.world_validation import check_world, cycle_problem

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CANONICAL_CYCLE", "World"]

#: The one order there is: Philosopher -> Author -> Environment -> Architect -> Creator -> (again).
CANONICAL_CYCLE = ROLES


class World(Persistent):
    """Stages in a ring. Edges are implied by ``cycle``; a stage runs when its execution condition holds.

    ``content`` is the world's content, shared by all passes: it starts from ``initial_world``, travels with the state,
    and World update inside Environment gives the next one. ``content`` and ``last_state`` change when a run returns, or
    with each pass an iterator gives; a run that fails changes neither, nor what stateful blocks remember.
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
        self.checkpoint_ref = checkpoint_ref
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
        """The stage of that id.

        Raises:
            UnknownName: (a KeyError) there is none.
        """
        return self._child(stage_id)

    def with_children(self, children: Mapping[str, Any]) -> Self:
        """A copy in which ``children`` stand in place of the own stages of their ids; the two may run at the same time."""
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
        """Add a stage (an object, a config, or a file) and return its id; its place in the ring comes from `set_cycle`.

        Raises:
            DuplicateName, InvalidArgument, InvalidConfig, MissingFile, UnknownBlockType
        """
        child: Any = stage
        if isinstance(stage, (str, Path)):
            child = Stage.from_config(read_document(stage), registry, pool=pool, base_dir=Path(stage).parent)
        elif isinstance(stage, Mapping):
            child = Stage.from_config(stage, registry, pool=pool)
        if not isinstance(child, StageLike):
            raise InvalidArgument(f"world {self.world_id!r} takes stages, configs or paths, got {type(child).__name__}")
        name = check_name("stage_id", stage_id if stage_id is not None else child.stage_id, self._children)
        self._children[name] = child
        self._trainable[name] = trainable
        return name

    def set_cycle(self, stage_ids: Sequence[str]) -> None:
        """The order of the ring: every stage exactly once.

        Raises:
            InvalidArgument
        """
        ids = list(stage_ids)
        problem = cycle_problem(self, ids) if ids or self.stages else None
        if problem:
            raise InvalidArgument(problem)
        self.cycle = ids

    def set_canonical_cycle(self) -> None:
        """Philosopher -> Author -> Environment -> Architect -> Creator, each found by its role, else by its id.

        Raises:
            InvalidArgument: one is missing, or a role is there twice.
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
        """The extra fields a state may have besides blocks 1 to 5, with dtypes if given as a mapping.

        Raises:
            InvalidArgument: a name that a block or a context source has.
        """
        given = dict(fields) if isinstance(fields, Mapping) else dict.fromkeys(fields, "any")
        for name in given:
            if state_key(name) in {*BLOCKS, *CONTEXT_SOURCES}:
                raise InvalidArgument(f"state field {name!r} has the name of a block or a context source; choose another one")
        self.state_fields = given

    def set_storage(self, storage: WorldStorage | str | Path | None, **options: Any) -> None:
        """Where snapshots go: a storage, or a folder and the options of `WorldStorage`; None keeps nothing."""
        self.storage = WorldStorage(storage, **options) if isinstance(storage, (str, Path)) else storage

    def set_initial_world(self, initial_world: Mapping[str, Any] | None = None, **parts: Any) -> None:
        """What the content starts from: initial_story, glossary, style, rules, or anything the blocks understand."""
        self.initial_world = copy.deepcopy({**(initial_world or {}), **parts})

    # -- validation ---------------------------------------------------------------------------------------------

    def validate(self, strict: bool = True, deep: bool = False, *, validate_stages: bool = False) -> ValidationResult:
        """Check the ring, the contracts against the state schema, and the storage; with ``deep`` (or ``validate_stages``, its older name) each stage too.

        Raises:
            InvalidStructure: (a ValueError) ``strict`` and there are errors.
        """
        result = check_world(self, deep or validate_stages)
        if strict:
            result.raise_if_invalid(f"world {self.world_id!r}")
        return result

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
        """Run ``num_steps`` full passes and return the last state, or with ``iterate`` an iterator over the passes' states.

        Without a state the first pass starts at Development (or, if the storage says so, goes on behind the newest
        snapshot or full pass). A state without content gets the world's. ``action`` is one for the first pass or a list with one per pass; it reaches Environment only. Hooks get
        phases ``before`` (state_before), ``after`` (state_before, state_after), ``skipped`` (state_before) per stage, and
        ``snapshot`` (path, state_before) when one is saved. ``dry_run`` walks order and conditions and calls nothing.

        Raises:
            InvalidArgument, InvalidState, InvalidStructure (no ring), StorageFailed, BlockFailed, HookFailed, Cancelled
        """
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 0:
            raise InvalidArgument(f"num_steps must be an integer of at least 0, got {num_steps!r}")
        actions = list(action) if isinstance(action, (list, tuple)) else [action]
        if len(actions) > max(num_steps, 1):
            raise InvalidArgument(f"{len(actions)} actions for {num_steps} passes; give one action, or one per pass")
        problem = cycle_problem(self, self.cycle)
        if problem:
            raise InvalidArgument(problem)
        if all(isinstance(stage, Dag) and not stage.program().foreign for stage in self.stages.values()):
            check_options(kwargs, ("max_workers", *CHILD_OPTIONS), World.run)
        start = self._start(state, seed)
        options = {"training": training, "device": device, **kwargs}
        passes = WorldRun(self, as_emit(callbacks), options, dry_run).run(start, actions, num_steps)
        return passes if iterate else self._last_of(passes, start.state)

    def _last_of(self, passes: Iterator[State], state: State) -> State:
        with rollback_on_error(self):
            for after in passes:
                state = after
        return state

    def _start(self, state: State | Mapping[Any, Any] | None, seed: int | None) -> ResumePoint:
        progress = None
        if state is None and self.storage is not None and self.storage.load_last_state:
            progress = self.storage.newest(self.world_id)
        if progress is None:
            return ResumePoint(self._first_state(State.of(state), seed))
        environment = next((place for place, stage_id in enumerate(self.cycle) if self.role_of(stage_id) == "environment"), None)
        if progress.following is None or environment is None:
            return ResumePoint(self._first_state(progress.resume_state(), seed), 0, progress.memory)
        return ResumePoint(self._first_state(progress.following, seed), environment + 1, progress.memory)

    def _first_state(self, start: State, seed: int | None) -> State:
        stray = sorted(name for name in start.fields if name not in self.state_fields)
        if stray:
            raise InvalidState(
                f"world {self.world_id!r} knows no state field {', '.join(map(repr, stray))}; it has {format_options(self.state_fields)}"
            )
        if start.content is None:
            start = start.replace(content=copy.deepcopy(self.initial_world) if self.content is None else self.content)
        chosen = next((candidate for candidate in (seed, start.seed, self.seed) if candidate is not None), None)
        return start.replace(seed=secrets.randbits(63) if chosen is None else chosen)

    def role_of(self, stage_id: str) -> str:
        """A stage's role; a stage without one has its id's."""
        role: str | None = self.get_stage(stage_id).role
        return role or stage_id

    # -- saving -------------------------------------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        return {"world_id": self.world_id, "cycle": list(self.cycle), "node_ids": list(self.stages), "schema_version": self.schema_version}

    def _files(self, backend: str, written: set[int]) -> Iterator[tuple[str, bytes]]:
        yield from super()._files(backend, written)
        if self.last_state is not None or self.content is not None:
            yield LAST_STATE_FILE, pack_last(self.last_state, self.content)

    def _read_extras(self, source: Source) -> None:
        data = source.read(LAST_STATE_FILE)
        if data is not None:
            self.last_state, self.content = unpack_last(data, source.describe(LAST_STATE_FILE))

    # -- config -------------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """The structure as JSON values, `from_config`'s inverse."""
        from yggdrasill.world.world_config import world_to_config

        return world_to_config(self)

    @classmethod
    def _build(cls, config: Mapping[str, Any], options: BuildOptions, validate: bool = False) -> Self:
        from yggdrasill.world.world_config import world_from_config

        return world_from_config(cls, config, options, validate)

    def walk(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Every runnable below with its path, outermost first; graphs are not entered."""
        for stage_id, stage in self.stages.items():
            yield (stage_id,), stage
            if isinstance(stage, Dag):
                for path, below in stage.walk():
                    yield (stage_id, *path), below
