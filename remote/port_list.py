"""What a port of a ComfyUI workflow can carry besides a value: several of them, as list outputs give them, and the sign of a blocked one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from yggdrasill.values.extensions import register_type

__all__ = ["Blocked", "PortList", "port_value", "port_values"]


class Blocked:
    """Stands for a value that ComfyUI must run nothing with; ``message`` is what it then says, if anything."""

    __slots__ = ("message",)

    def __init__(self, message: str | None = None) -> None:
        self.message = None if message is None else str(message)

    def __eq__(self, other: object) -> bool:
        return self.message == other.message if isinstance(other, Blocked) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.message)

    def __repr__(self) -> str:
        return f"Blocked({self.message!r})"


class PortList:
    """The values of one port in order; a node that takes single values is called once for each."""

    __slots__ = ("values",)

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = tuple(values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __eq__(self, other: object) -> bool:
        return self.values == other.values if isinstance(other, PortList) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return f"PortList({list(self.values)!r})"


def port_value(values: Iterable[Any]) -> Any:
    """What stands for ``values`` outside ComfyUI: a single one as it is, any other number as a `PortList`."""
    found = tuple(values)
    return found[0] if len(found) == 1 else PortList(found)


def port_values(value: Any) -> list[Any]:
    """The values on a port, `port_value` undone."""
    return list(value.values) if isinstance(value, PortList) else [value]


register_type("comfy/list", PortList, lambda value: list(value.values), PortList)
register_type("comfy/blocked", Blocked, lambda value: value.message, Blocked)
