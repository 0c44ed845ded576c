"""What a block's config holds, declared once: the block reads it, an editor makes widgets of it, messages name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument, format_options

__all__ = ["SETTING_KINDS", "Setting"]

SETTING_KINDS = ("number", "integer", "boolean", "text", "choice", "value")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a config: its kind (``value`` is any JSON value), the value where it is absent (None: no value), its inclusive range or its options, its meaning.

    Raises:
        InvalidArgument: an unknown kind, or a choice without options.
    """

    name: str
    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    options: tuple[str, ...] = ()
    meaning: str = ""

    def __post_init__(self) -> None:
        if self.kind not in SETTING_KINDS:
            raise InvalidArgument(f"setting {self.name!r}: kind is {self.kind!r}; it can be {format_options(SETTING_KINDS)}")
        if self.kind == "choice" and not self.options:
            raise InvalidArgument(f"setting {self.name!r} is a choice without options; give some")

    def read(self, config: Mapping[str, Any], block: str) -> Any:
        """The value in ``config``, numbers as float or int; ``block`` names its owner in messages.

        Raises:
            InvalidArgument: it is of another kind, out of range, or none of the options.
        """
        value = config.get(self.name, self.default)
        if value is None and self.default is None:
            return None
        wanted = self._wanted(value)
        if wanted is not None:
            raise InvalidArgument(f"{block}: config {self.name!r} is {value!r}; it {wanted}", key=self.name)
        return {"number": float, "integer": int}.get(self.kind, lambda same: same)(value)

    def _wanted(self, value: Any) -> str | None:
        """What a value should be that it is not, or None."""
        if self.kind == "value":
            return None
        if self.kind == "choice":
            return None if value in self.options else f"can be {format_options(self.options)}"
        if self.kind == "boolean":
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind == "text":
            return None if isinstance(value, str) else "must be a text"
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = self.kind == "number" or (fits and float(value).is_integer())
        low, high = (float("-inf") if self.low is None else self.low), (float("inf") if self.high is None else self.high)
        if fits and whole and low <= value <= high:
            return None
        return f"must be a {'whole ' if self.kind == 'integer' else ''}number from {low:g} to {high:g}"
