"""The edge: a link from one child's output to another child's input. Levels above reuse it for their own children."""

from __future__ import annotations

from dataclasses import dataclass, fields

from yggdrasill.errors import InvalidArgument

__all__ = ["Edge"]


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a value goes; prints as ``a.x -> b.y``, the spelling every error uses."""

    source_node: str
    source_port: str
    target_node: str
    target_port: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not value.strip():
                raise InvalidArgument(f"edge field {field.name} must be a non-empty string, got {value!r}")

    def __str__(self) -> str:
        return f"{self.source_node}.{self.source_port} -> {self.target_node}.{self.target_port}"
