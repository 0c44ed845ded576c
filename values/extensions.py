"""Types that packages register with the codec. A tag and a version name them in the data, never a module or a class to import."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from yggdrasill.errors import CannotTravel, DuplicateName, InvalidArgument, LimitExceeded, YggdrasillError
from yggdrasill.values.handles import load_handles
from yggdrasill.values.payload import corrupt

__all__ = ["BY_CLASS", "Extension", "Opaque", "pack", "register_type", "unpack"]

_MAX_FRACTION_BITS = 1 << 14


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value of a type that this process has not registered; encodes to the same bytes again.

    ``state`` is the decoded result of the type's ``pack``.
    """

    tag: str
    version: int
    state: Any


@dataclass(frozen=True)
class Extension:
    """One registered type; see `register_type`."""

    tag: str
    version: int
    cls: type | str
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


_BY_TAG: dict[tuple[str, int], Extension] = {}
BY_CLASS: dict[type | str, Extension] = {}
"""The newest extension of each class, by the class itself or by its name. Of two for one class, that of the class itself is used."""


def register_type(tag: str, cls: type | str, pack: Callable[[Any], Any], unpack: Callable[[Any], Any], version: int = 1) -> None:
    """Register ``cls`` with the codec: ``pack(value)`` returns a value that can be encoded, ``unpack(state)`` rebuilds the original.

    ``cls`` is matched exactly, without subclasses. A string matches the class's ``__name__``, for classes whose module has no
    stable name. The highest ``version`` is written; all registered versions can be read. Raises `InvalidArgument` for an empty
    tag or a version below 1, and `DuplicateName` if this version of ``tag`` belongs to another class.
    """
    if not tag or type(tag) is not str or type(version) is not int or version < 1:
        raise InvalidArgument(
            f"Invalid type tag {tag!r} with version {version!r}. The tag must be a non-empty string and the version an integer from 1 on."
        )
    taken = _BY_TAG.get((tag, version))
    if taken is not None and taken.cls != cls:
        raise DuplicateName(f"Type tag {tag!r} version {version} is registered for {taken.cls!r}. Choose another tag or a higher version.")
    entry = Extension(tag, version, cls, pack, unpack)
    _BY_TAG[tag, version] = entry
    current = BY_CLASS.get(cls)
    if current is None or current.tag != tag or current.version <= version:
        BY_CLASS[cls] = entry


def pack(extension: Extension, value: Any, location: str) -> Any:
    """Return the packed form of ``value``; a failure is a `CannotTravel` that names ``location``."""
    try:
        return extension.pack(value)
    except YggdrasillError:
        raise
    except Exception as error:
        raise CannotTravel(
            f"{location} is a {type(value).__name__}, and packing it as {extension.tag!r} failed: {error}. Make the value complete before "
            "it is sent.",
            place=location,
            type=type(value).__name__,
        ) from error


def unpack(tag: str, version: int, state: Any) -> Any:
    """Rebuild the value from ``state``; return an `Opaque` if this process has not registered the tag in that version."""
    extension = _BY_TAG.get((tag, version))
    if extension is None:
        return Opaque(tag, version, state)
    try:
        # A type packs tensors, so it is given tensors back, not handles.
        return extension.unpack(load_handles(state))
    except YggdrasillError:
        raise
    except Exception as error:
        raise corrupt(f"a value tagged {tag!r} version {version} cannot be rebuilt ({error})") from error


def _pack_fraction(value: Fraction) -> list[int]:
    _check_fraction(value.numerator, value.denominator)
    return [value.numerator, value.denominator]


def _unpack_fraction(state: Any) -> Fraction:
    numerator, denominator = state
    if type(numerator) is not int or type(denominator) is not int or denominator < 1:
        raise corrupt("a fraction is not two integers")
    _check_fraction(numerator, denominator)
    value = Fraction(numerator, denominator)
    if value.denominator != denominator:
        raise corrupt("a fraction is not in lowest terms")
    return value


def _check_fraction(numerator: int, denominator: int) -> None:
    """Raise `LimitExceeded` for long parts: reducing a fraction takes time quadratic in its length."""
    if max(numerator.bit_length(), denominator.bit_length()) > _MAX_FRACTION_BITS:
        raise LimitExceeded(f"a fraction has a part of more than {_MAX_FRACTION_BITS} bits, the most that can be encoded; round it first")


def _unpack_ordered_dict(state: Any) -> OrderedDict[Any, Any]:
    if type(state) is not dict:
        raise corrupt("the state of an ordered dict is not a dict")
    return OrderedDict(state)


register_type("fraction", Fraction, _pack_fraction, _unpack_fraction)
register_type("ordered_dict", OrderedDict, dict, _unpack_ordered_dict)
