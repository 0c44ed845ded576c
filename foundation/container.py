"""What a graph, a pipeline, a stage and a world have in common: children by id, some of them trainable, with states.

A child is a node (graphs) or anything that runs (the levels above). A child that is no `Container` (a remote proxy)
keeps its weights elsewhere: it has no state and no parameters here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from yggdrasill.errors import CheckpointMismatch, DuplicateName, InvalidArgument, format_options, unknown_name
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.loading import StateLoader

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Container", "Placer", "check_name"]


class Placer(Protocol):
    """What `Container.place` needs of a registry of endpoints."""

    def place(self, project: Any) -> Any:
        """``project`` with its placed parts remote."""
        ...


def check_name(kind: str, name: object, taken: Mapping[str, Any] | None = None) -> str:
    """``name`` if it is a non-empty string that ``taken`` lacks.

    Raises:
        InvalidArgument, DuplicateName
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgument(f"{kind} must be a non-empty string, got {name!r}")
    if taken is not None and name in taken:
        raise DuplicateName(f"{kind} {name!r} is taken; there is {format_options(taken, near=name)}. Choose another id.")
    return name


class Container(ABC):
    """Children by id, with trainable flags, states and parameters; see the subclasses for what a child is."""

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

    def _child(self, child_id: str) -> Any:
        try:
            return self._children[child_id]
        except KeyError:
            raise unknown_name(self.child_word, child_id, self._children) from None

    # -- training -----------------------------------------------------------------------------------------------

    def set_trainable(self, child_id: str, trainable: bool) -> None:
        """Whether `trainable_parameters` covers a child."""
        self._child(child_id)
        self._trainable[child_id] = bool(trainable)

    def is_trainable(self, child_id: str) -> bool:
        """The child's trainable flag (True unless set)."""
        self._child(child_id)
        return self._trainable.get(child_id, True)

    def trainable_parameters(self) -> Iterator[Any]:
        """Parameters of all trainable children, each once, however many nodes share its block."""
        seen: set[int] = set()
        for block in self._blocks(trainable_only=True):
            if not block.frozen:
                for parameter in block.trainable_parameters():
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield parameter

    def blocks(self) -> Iterator[AbstractBaseBlock]:
        """Every block below, in order, a shared one once."""
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
        """Move every block that can be moved; None changes nothing."""
        if device is not None:
            for block in self.blocks():
                _move(block, device)
        return self

    # -- placing ------------------------------------------------------------------------------------------------

    def place(self, endpoints: Placer) -> Any:
        """A copy in which the parts that ``endpoints`` (an `EndpointRegistry`) places elsewhere are remote; the rest is shared."""
        return endpoints.place(self)

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """States by child id, empty ones left out; a block shared by several nodes is written once, at the first."""
        return self._collect_state(set())

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take back what `state_dict` gave. Keys are checked first: a mismatch changes nothing.

        Raises:
            CheckpointMismatch: (a KeyError) ``strict`` and the state names unknown children or other keys than a block's.
        """
        load = StateLoader(strict=strict)
        self._assign_state(state, (), load, strict)
        load.apply()

    def _collect_state(self, written: set[int]) -> dict[str, Any]:
        states = {}
        for child_id, child in self._children.items():
            if isinstance(child, Container) and (state := child._collect_state(written)):
                states[child_id] = state
        return states

    def _assign_state(self, state: Any, path: tuple[str, ...], load: StateLoader, strict: bool) -> None:
        self._check_state_ids(state, path, strict)
        for child_id, child in self._children.items():
            if isinstance(child, Container):
                child._assign_state(state.get(child_id, {}), (*path, child_id), load, strict)

    def _check_state_ids(self, state: Any, path: tuple[str, ...], strict: bool) -> None:
        where = "/".join(path) or self.id
        if not isinstance(state, Mapping):
            raise CheckpointMismatch(f"{self.level} {where!r}: a state maps {self.child_word} ids to states, got {type(state).__name__}")
        stray = sorted(str(key) for key in state if key not in self._children)
        if stray and strict:
            raise CheckpointMismatch(
                f"{self.level} {where!r} has no {self.child_word} {', '.join(map(repr, stray))}; it has {format_options(self._children)}. "
                f"This state belongs to another {self.level}.",
                unexpected=stray,
            )


def _move(block: AbstractBaseBlock, device: Any) -> None:
    """``to`` is a block's to offer: the parts of one that has none are asked instead."""
    move = getattr(block, "to", None)
    if callable(move):
        move(device)
    else:
        for part in block.get_sub_blocks().values():
            _move(part, device)
