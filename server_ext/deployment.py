"""What is served under one name: its facts, and what such a name may be. Nothing here builds, keeps or calls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["Deployment", "check_graph_id"]

_LONGEST_ID = 200


@dataclass(frozen=True)
class Deployment:
    """A live runnable under a name. ``exclusive`` ones run one call at a time, because calls change them."""

    graph_id: str
    kind: str
    hash: str
    config: dict[str, Any]
    runnable: Any = field(repr=False)
    contract: dict[str, Any] = field(repr=False)
    by_owner: bool = False
    #: Seconds without a call after which it is removed; None: never.
    idle_after: float | None = None

    @property
    def exclusive(self) -> bool:
        """Whether calls must not overlap."""
        return bool(self.contract["stateful"])

    @property
    def accepts_handles(self) -> bool:
        """Whether inputs may be handles: a stage hands them to pipelines, which take them, or carries them over."""
        return self.kind == "stage" or bool(getattr(self.runnable, "accepts_handles", False))

    def summary(self) -> dict[str, Any]:
        """``{graph_id, kind, hash}``."""
        return {"graph_id": self.graph_id, "kind": self.kind, "hash": self.hash}


def check_graph_id(graph_id: str) -> str:
    """``graph_id`` if it can be the name of something served.

    Raises:
        InvalidArgument
    """
    if not graph_id.strip() or len(graph_id) > _LONGEST_ID or not graph_id.isprintable():
        raise InvalidArgument(f"a graph id is 1 to {_LONGEST_ID} printable characters, got {graph_id[:60]!r}")
    return graph_id
