"""Types that others teach the codec: a tag and a version name them on the wire, never a module or a class to import."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from yggdrasill.errors import CannotTravel, DuplicateName, InvalidArgument, LimitExceeded, YggdrasillError
from yggdrasill.values.handles import load_handles
from yggdrasill.values.payload import corrupt

__all__ = ["Extension", "Opaque", "extension_for", "pack", "register_type", "unpack"]

_FRACTION_BITS = 1 << 14


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value of a type this process was never taught; encodes to the same bytes again.

    ``state`` is what its ``pack`` returned, decoded.
    """

    tag: str
    version: int
    state: Any


@dataclass(frozen=True)
class Extension:
    """One entry of the table; see `register_type`."""

    tag: str
    version: int
    cls: type | str
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


_BY_TAG: dict[tuple[str, int], Extension] = {}
_BY_CLASS: dict[type | str, Extension] = {}


def register_type(tag: str, cls: type | str, pack: Callable[[Any], Any], unpack: Callable[[Any], Any], version: int = 1) -> None:
    """Teach the codec ``cls``: ``pack(value)`` gives a value it knows already, ``unpack(state)`` rebuilds the original.

    ``cls`` is matched exactly, not its subclasses; a string matches the class's ``__name__``, for classes whose module has no
    stable name. A later ``version`` becomes what is written; the earlier ones stay readable. Raises `DuplicateName` if
    ``tag`` has that version for another class.
    """
    if not tag or type(tag) is not str or type(version) is not int or version < 1:
        raise InvalidArgument(f"tag {tag!r} version {version!r} cannot name a type; give a non-empty string and a version from 1 on")
    taken = _BY_TAG.get((tag, version))
    if taken is not None and taken.cls != cls:
        raise DuplicateName(f"type tag {tag!r} version {version} is taken by {taken.cls!r}; choose another tag or a higher version")
    entry = Extension(tag, version, cls, pack, unpack)
    _BY_TAG[tag, version] = entry
    current = _BY_CLASS.get(cls)
    if current is None or current.tag != tag or current.version <= version:
        _BY_CLASS[cls] = entry


def extension_for(cls: type) -> Extension | None:
    """The newest extension for ``cls``, by the class itself or else by its name."""
    return _BY_CLASS.get(cls) or _BY_CLASS.get(cls.__name__)


def pack(extension: Extension, value: Any, place: str) -> Any:
    """``value`` as its extension packs it; a failure is a `CannotTravel` that names ``place``."""
    try:
        return extension.pack(value)
    except YggdrasillError:
        raise
    except Exception as error:
        raise CannotTravel(
            f"{place} is a {type(value).__name__}, and packing it as {extension.tag!r} failed: {error}; make it whole before it is sent",
            place=place,
            type=type(value).__name__,
        ) from error


def unpack(tag: str, version: int, state: Any) -> Any:
    """The value that ``state`` stands for, or an `Opaque` if this process has no such tag in that version."""
    extension = _BY_TAG.get((tag, version))
    if extension is None:
        return Opaque(tag, version, state)
    try:
        # packing never sees handles, so neither does unpacking
        return extension.unpack(load_handles(state))
    except YggdrasillError:
        raise
    except Exception as error:
        raise corrupt(f"a value tagged {tag!r} version {version} cannot be rebuilt ({error})") from error


def _pack_fraction(value: Fraction) -> list[int]:
    _bound_fraction(value.numerator, value.denominator)
    return [value.numerator, value.denominator]


def _unpack_fraction(state: Any) -> Fraction:
    numerator, denominator = state
    if type(numerator) is not int or type(denominator) is not int or denominator < 1:
        raise corrupt("a fraction is not made of two whole numbers")
    _bound_fraction(numerator, denominator)
    value = Fraction(numerator, denominator)
    if value.denominator != denominator:
        raise corrupt("a fraction is not in lowest terms")
    return value


def _bound_fraction(numerator: int, denominator: int) -> None:
    """Reducing a fraction costs the square of its length, so a hostile one must stay short."""
    if max(numerator.bit_length(), denominator.bit_length()) > _FRACTION_BITS:
        raise LimitExceeded(f"a fraction has parts above {_FRACTION_BITS} bits, the most that travels; round it first")


def _unpack_ordered(state: Any) -> OrderedDict[Any, Any]:
    if type(state) is not dict:
        raise corrupt("an ordered dict is not made of a dict")
    return OrderedDict(state)


register_type("fraction", Fraction, _pack_fraction, _unpack_fraction)
register_type("ordered_dict", OrderedDict, dict, _unpack_ordered)
