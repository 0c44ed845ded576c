"""Two runs of one world held against each other, stage by stage and bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.stage import State
from yggdrasill.values import dumps, load_handles

__all__ = ["StageRun", "compare", "same_state"]


@dataclass(frozen=True)
class StageRun:
    """One stage of one pass: whether it ran, when (seconds on one clock), and the state it left."""

    stage_id: str
    pass_index: int
    ran: bool
    start: float
    end: float
    after: State

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def compare(placed: Sequence[StageRun], local: Sequence[StageRun], calls: Iterable[Any]) -> list[dict[str, Any]]:
    """A row per stage and pass: pass (from 1), stage, place, ran, local_s, remote_s, bytes_moved, equal.

    Equal means: both ran or both were skipped, and every block, field and the content have the same bytes in the codec,
    which keeps every bit of every value.
    """
    every = list(calls)
    rows = []
    for there, here in zip(placed, local, strict=True):
        own = [call for call in every if there.start <= call.started <= there.end]
        rows.append(
            {
                "pass": there.pass_index + 1,
                "stage": there.stage_id,
                "place": ", ".join(sorted({call.endpoint for call in own})) or "local",
                "ran": there.ran,
                "local_s": here.seconds,
                "remote_s": there.seconds,
                "bytes_moved": sum(call.bytes_moved for call in own),
                "equal": (there.stage_id, there.ran) == (here.stage_id, here.ran) and same_state(there.after, here.after),
            }
        )
    return rows


def same_state(one: State, other: State) -> bool:
    """Whether two states are equal in every bit; what still lies at an endpoint is fetched for it."""
    return dumps(load_handles(one.to_dict())) == dumps(load_handles(other.to_dict()))
