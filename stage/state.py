"""The state of a world: five blocks, extra fields, content, and the position of the run.

1 what should happen; 2 the configuration for generating artifacts; 3 the artifacts; 4 their description; 5 what really
happened. ``content`` is the world's content: it travels with the state but is not a block, and the world owns it.
``passes`` counts the full passes before this state and ``seed`` is the run's, so that a state that is passed back in
continues exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from yggdrasill.errors import InvalidState, format_options
from yggdrasill.values.handles import load_handles

__all__ = ["BLOCKS", "State", "block_number", "is_filled"]

BLOCKS = (1, 2, 3, 4, 5)

#: Names of the other sources of a contract, which a field cannot have.
_RESERVED = ("action", "content")


def is_filled(value: Any) -> bool:
    """Return whether a value counts as filled: not None and not an empty string, list, tuple or dict; tensors and numbers are."""
    return value is not None and not (isinstance(value, (str, bytes, list, tuple, dict)) and len(value) == 0)


class State:
    """An immutable state, built from blocks by number (``State({1: "a storm"})``) and extra fields; `replace` makes a new one.

    Two states are equal if blocks, fields, content, passes and seed are equal in every bit, tensors included. A state has
    no hash, since its values may be mutable.

    Raises:
        InvalidState: a block other than 1 to 5, or a field with a reserved name or none.
    """

    __slots__ = ("blocks", "content", "fields", "passes", "seed")

    blocks: Mapping[int, Any]
    fields: Mapping[str, Any]
    content: Any
    passes: int
    seed: int | None

    def __init__(
        self,
        blocks: Mapping[Any, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
        *,
        content: Any = None,
        passes: int = 0,
        seed: int | None = None,
    ) -> None:
        numbered = {block_number(key): value for key, value in (blocks or {}).items() if value is not None}
        for name in fields or {}:
            if not isinstance(name, str) or not name.strip() or name.isdecimal():
                raise InvalidState(f"a state's extra field must have a name, got {name!r}")
            if name in _RESERVED:
                raise InvalidState(f"{name!r} cannot be the name of a field; give it as {name}=..., or choose another name")
        if not isinstance(passes, int) or isinstance(passes, bool) or passes < 0:
            raise InvalidState(f"a state's passes must be an integer of at least 0, got {passes!r}")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise InvalidState(f"a state's seed must be an integer or None, got {seed!r}")
        for slot, value in (
            ("blocks", dict(sorted(numbered.items()))),
            ("fields", dict(fields or {})),
            ("content", content),
            ("passes", passes),
            ("seed", seed),
        ):
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise InvalidState(f"a state is immutable; use state.replace(...) instead of setting {name!r}")

    @classmethod
    def of(cls, value: State | Mapping[Any, Any] | None) -> State:
        """Return a state as it is, an empty one for None, or one built from a dict: `to_dict`'s form, or blocks by number
        (1 or "1") and extra fields by name.

        Raises:
            InvalidState
        """
        if isinstance(value, State):
            return value
        if value is None:
            return cls()
        if not isinstance(value, Mapping):
            raise InvalidState(f"a state is a State or a dict of blocks 1 to 5, got {type(value).__name__}")
        if "blocks" in value:
            return cls.from_dict(value)
        blocks = {key: item for key, item in value.items() if _is_number(key)}
        return cls(blocks, {key: item for key, item in value.items() if key not in blocks})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy through the constructor, since the slots of an immutable object cannot be set."""
        return State.from_dict, (self.to_dict(),)

    def __getitem__(self, key: int | str) -> Any:
        """Return a block by number, or an extra field by name; None if it is absent."""
        return self.blocks.get(block_number(key)) if _is_number(key) else self.fields.get(str(key))

    def filled(self, *blocks: int | str) -> bool:
        """Return whether all of these blocks or fields are filled."""
        return all(is_filled(self[block]) for block in blocks)

    @property
    def filled_blocks(self) -> list[int]:
        """The numbers of the filled blocks."""
        return [number for number in BLOCKS if is_filled(self.blocks.get(number))]

    @property
    def is_complete(self) -> bool:
        """Whether all five blocks are filled."""
        return self.filled(*BLOCKS)

    def replace(self, values: Mapping[Any, Any] | None = None, **changes: Any) -> State:
        """Return a new state with these blocks (by number) and fields (by name) set, and ``content``, ``passes`` or ``seed``."""
        blocks, fields = dict(self.blocks), dict(self.fields)
        for key, value in (values or {}).items():
            if _is_number(key):
                blocks[block_number(key)] = value
            else:
                fields[key] = value
        kept: dict[str, Any] = {"content": self.content, "passes": self.passes, "seed": self.seed}
        return State(blocks, fields, **{**kept, **changes})

    def loaded(self) -> State:
        """Return this state with every handle in it replaced by its value; the same object if it has no handles."""
        values = self.to_dict()
        whole = load_handles(values)
        return self if whole is values else State.from_dict(whole)

    def only(self, keys: Iterable[int | str]) -> State:
        """Return a new state with only these blocks and fields; content, passes and seed stay."""
        wanted = list(keys)
        return State(
            {number: value for number, value in self.blocks.items() if number in wanted},
            {name: value for name, value in self.fields.items() if name in wanted},
            content=self.content,
            passes=self.passes,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return one serialisable object: ``{"blocks": {"1": ...}, "fields", "content", "passes", "seed"}``."""
        return {
            "blocks": {str(number): value for number, value in self.blocks.items()},
            "fields": dict(self.fields),
            "content": self.content,
            "passes": self.passes,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> State:
        """Build from the form of `to_dict`.

        Raises:
            InvalidState: another form.
        """
        stray = sorted(set(value) - {"blocks", "fields", "content", "passes", "seed"})
        if stray or not isinstance(value.get("blocks"), Mapping) or not isinstance(value.get("fields", {}), Mapping):
            raise InvalidState(
                f"a serialised state has blocks, fields, content, passes and seed; this one has {format_options(map(str, value))}"
            )
        return cls(
            value["blocks"], value.get("fields"), content=value.get("content"), passes=value.get("passes", 0), seed=value.get("seed")
        )

    def __eq__(self, other: object) -> bool:
        return _same(self.to_dict(), other.to_dict()) if isinstance(other, State) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # how Python spells it

    def __repr__(self) -> str:
        extra = f", fields {sorted(self.fields)}" if self.fields else ""
        return f"<State blocks {self.filled_blocks}{extra}, {self.passes} passes>"


def _is_number(key: object) -> bool:
    return (isinstance(key, int) and not isinstance(key, bool)) or (isinstance(key, str) and key.isdecimal())


def block_number(key: object) -> int:
    """Return ``1`` for 1 or "1".

    Raises:
        InvalidState: not a block 1 to 5.
    """
    number = int(str(key)) if _is_number(key) else None
    if number not in BLOCKS:
        raise InvalidState(f"a state has blocks 1, 2, 3, 4 and 5, not {key!r}; give other values as extra fields")
    return number


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in every bit; handles are compared by hash, without loading them."""
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return len(one) == len(other) and all(key in other and _same(value, other[key]) for key, value in one.items())
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if hasattr(one, "dtype") and hasattr(one, "shape"):
        return _same_array(one, other)
    return bool(one == other)


def _same_array(one: Any, other: Any) -> bool:
    if (one.dtype, tuple(one.shape)) != (other.dtype, tuple(other.shape)):
        return False
    if hasattr(one, "hash") and hasattr(one, "load"):
        return bool(one.hash == other.hash)
    from yggdrasill.values import dumps

    return dumps(one) == dumps(other)
