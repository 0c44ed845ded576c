"""Ports of blocks, and the declared fields of their configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from yggdrasill.errors import InvalidArgument, format_options

__all__ = ["FIELD_TYPES", "ConfigField", "Port", "PortAggregation", "PortDirection", "PortType", "dtypes_fit"]


class PortDirection(str, Enum):
    """Direction of a port: ``in`` receives values, ``out`` provides them."""

    IN = "in"
    OUT = "out"


class PortType(str, Enum):
    """Predefined dtypes. A port's dtype is an open string: hosts add their dtypes (``comfy/LATENT``).

    An ``image`` is a float32 tensor [batch, height, width, channels] with values in 0..1.
    """

    TENSOR = "tensor"
    DICT = "dict"
    ANY = "any"
    IMAGE = "image"
    TEXT = "text"
    AUDIO = "audio"
    VIDEO = "video"


class PortAggregation(str, Enum):
    """Rule that combines the values of several edges into one input, in the order in which the edges were added.

    ``concat`` joins lists, tuples, strings or tensors (dimension 0); ``sum`` adds; ``first`` takes the first present
    value; ``dict`` maps ``node:port`` of the source to the value.
    """

    SINGLE = "single"
    CONCAT = "concat"
    SUM = "sum"
    FIRST = "first"
    DICT = "dict"


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a block.

    Raises:
        InvalidArgument: blank name, unknown direction or aggregation, or an OUT port with an aggregation.
    """

    name: str
    direction: PortDirection
    dtype: str = PortType.ANY.value
    optional: bool = False
    aggregation: PortAggregation = PortAggregation.SINGLE

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InvalidArgument(f"port name must be a non-empty string, got {self.name!r}")
        for field, kind in (("direction", PortDirection), ("aggregation", PortAggregation)):
            value = getattr(self, field)
            try:
                object.__setattr__(self, field, kind(value))
            except ValueError:
                options = format_options(member.value for member in kind)
                raise InvalidArgument(f"port {self.name!r}: unknown {field} {value!r}. Available: {options}.") from None
        dtype = self.dtype.value if isinstance(self.dtype, PortType) else self.dtype
        if not isinstance(dtype, str) or not dtype.strip():
            raise InvalidArgument(f"port {self.name!r}: dtype must be a non-empty string, got {self.dtype!r}")
        object.__setattr__(self, "dtype", dtype)
        if self.is_output and self.aggregation is not PortAggregation.SINGLE:
            raise InvalidArgument(
                f"port {self.name!r} is an output, so its aggregation must be SINGLE, not {self.aggregation.name}; "
                "set the policy on the input port that takes several edges"
            )

    @property
    def is_input(self) -> bool:
        """Whether this is an IN port."""
        return self.direction is PortDirection.IN

    @property
    def is_output(self) -> bool:
        """Whether this is an OUT port."""
        return self.direction is PortDirection.OUT

    def compatible_with(self, target: Port) -> bool:
        """Return whether an edge may lead from this OUT port to the IN port ``target``: equal dtypes, or either is ``any``."""
        return self.is_output and target.is_input and dtypes_fit(self.dtype, target.dtype)


def dtypes_fit(source: str, target: str) -> bool:
    """Return whether two dtypes are equal or either is ``any``. Nothing is coerced, and dtypes have no subtypes."""
    return source == target or PortType.ANY.value in (source, target)


FIELD_TYPES = ("number", "integer", "boolean", "text", "choice", "value", "path", "url", "secret")
_TEXT_TYPES = ("text", "path", "url", "secret")


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A declared field of a block's config: from it values are checked and an editor makes a widget.

    Attributes:
        name: The key in the config.
        kind: One of `FIELD_TYPES`; ``value`` is any JSON value. ``path``, ``url`` and ``secret`` are texts that name a file or folder, an
            address or a credential: an endpoint accepts only allowed ones in a config that it receives.
        default: The value where the key is absent; None means that the field has no value then.
        low: The smallest number, inclusive; None for no bound.
        high: The largest number, inclusive; None for no bound.
        options: The texts that a ``choice`` accepts.
        meaning: One phrase for documentation and tooltips.

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
        if self.kind not in FIELD_TYPES:
            raise InvalidArgument(f"Config field {self.name!r}: unknown kind {self.kind!r}. Available: {format_options(FIELD_TYPES)}.")
        if self.kind == "choice" and not self.options:
            raise InvalidArgument(f"Config field {self.name!r} is a choice without options; pass options.")

    def read(self, config: Mapping[str, Any], block: str) -> Any:
        """Return the value in ``config``, a number as float or int; ``block`` names the owner in messages.

        Raises:
            InvalidArgument: the value has another type, is out of range, or is not one of the options.
        """
        value = config.get(self.name, self.default)
        if value is None and self.default is None:
            return None
        wanted = self._wanted(value)
        if wanted is not None:
            raise InvalidArgument(f"{block}: config {self.name!r} is {value!r}; it {wanted}", key=self.name)
        return {"number": float, "integer": int}.get(self.kind, lambda same: same)(value)

    def _wanted(self, value: Any) -> str | None:
        """Return the rule that a value breaks, or None."""
        if self.kind == "value":
            return None
        if self.kind == "choice":
            return None if value in self.options else f"can be {format_options(self.options)}"
        if self.kind == "boolean":
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind in _TEXT_TYPES:
            return None if isinstance(value, str) else "must be a text"
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = self.kind == "number" or (fits and float(value).is_integer())
        low, high = (float("-inf") if self.low is None else self.low), (float("inf") if self.high is None else self.high)
        if fits and whole and low <= value <= high:
            return None
        return f"must be a {'whole ' if self.kind == 'integer' else ''}number from {low:g} to {high:g}"
