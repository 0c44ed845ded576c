"""The section of the conformance page about placed parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["PlacingEntry", "PlacingReport", "placing_lines"]


@dataclass(frozen=True)
class PlacingEntry:
    """One placed run of a workflow: number of nodes, sizes of the parts, whether a part leaves and returns, number of jobs."""

    name: str
    kind: str
    nodes: int
    parts: tuple[int, ...]
    convex: bool
    jobs: int
    outputs: int
    equal: bool


@dataclass
class PlacingReport:
    """All results; ``refused`` counts the sets refused because none of their nodes can run remotely, ``stays`` holds the workflows with
    only such sets."""

    entries: list[PlacingEntry] = field(default_factory=list)
    refused: int = 0
    stays: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any] | None:
        """Return the section's JSON, or None if nothing was run."""
        if not self.entries:
            return None
        entries = sorted(self.entries, key=lambda entry: (entry.name, entry.kind))
        return {"refused": self.refused, "stays": self.stays, "entries": [asdict(entry) for entry in entries]}


def placing_lines(date: str, facts: Mapping[str, Any]) -> Iterable[str]:
    """Yield the section of these results."""
    entries = [PlacingEntry(**entry) for entry in facts["entries"]]
    workflows = {entry.name for entry in entries}
    equal = sum(entry.equal for entry in entries)
    returning = sum(not entry.convex for entry in entries)
    yield "## Placed parts"
    yield ""
    yield "Ordinary workflows, queued by POST /prompt as a page queues them: once as they are, and with sets of their nodes placed on one or two"
    yield "other servers. The sets are chosen at random, always the same ones, connected or anywhere in the workflow. All caches are empty before"
    yield "each run. What is compared: the history's outputs of every node, with the bytes of the files they name and the bits of the values that"
    yield "were captured; and which nodes the page was told ran, where one that is equal to a node before it counts as that one does."
    yield "Outputs that differ between two runs on one server, such as names with a random part, are left out."
    yield ""
    yield f"{date}; {len(workflows)} workflows, {len(entries)} placements, {returning} of them with a part that a path leaves and returns to; {equal} equal."
    stays = f"; every set of {', '.join(map(repr, facts['stays']))}" if facts["stays"] else ""
    yield f"Sets of which nothing can run elsewhere, and that were refused with the reason: {facts['refused']}{stays}."
    yield ""
    yield "| workflow | nodes | set | nodes in parts | convex | jobs | outputs | placed |"
    yield "|---|---|---|---|---|---|---|---|"
    for entry in entries:
        parts = " + ".join(map(str, entry.parts)) or "by title"
        cells = (entry.name, entry.nodes, entry.kind, parts, "yes" if entry.convex else "no", entry.jobs, entry.outputs)
        yield f"| {' | '.join(map(str, cells))} | {'equal' if entry.equal else '**not equal**'} |"
