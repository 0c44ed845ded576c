"""How large, how many and how deep a value may be, on the way out and on the way in alike."""

from __future__ import annotations

from dataclasses import dataclass

from yggdrasill.errors import InvalidArgument, LimitExceeded

__all__ = ["DEFAULT_LIMITS", "Limits"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before memory is taken; what `encode` lets out under some limits, `decode` lets in under the same."""

    max_depth: int = 200
    """Containers inside one another; at most 240, so that the JSON stays within Python's recursion limit."""
    max_items: int = 2_000_000
    """List items, tuple items, dict entries and set items together."""
    max_header: int = 64 * MIB
    """Bytes of an envelope's header: everything but the payloads."""
    max_payloads: int = 100_000
    """Tensors, arrays and long byte strings."""
    max_bytes: int = 64 * 1024 * MIB
    """Bytes of all payloads together."""

    def __post_init__(self) -> None:
        if not 0 < self.max_depth <= 240:
            raise InvalidArgument(f"max_depth is {self.max_depth}; it must lie between 1 and 240; nest the value less deeply")

    def check(self, name: str, found: int) -> None:
        """Raise `LimitExceeded` if ``found`` is above the limit ``name``."""
        bound: int = getattr(self, name)
        if found > bound:
            raise LimitExceeded(
                f"the value needs {name} = {found}, and the limit is {bound}; split the value, or pass Limits({name}=...) on both sides",
                limit=name,
                bound=bound,
                found=found,
            )


DEFAULT_LIMITS = Limits()
