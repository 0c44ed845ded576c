"""The results of the conformance suite for placed parts, as a section of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["PlacingEntry", "PlacingReport", "placing_lines"]


@dataclass(frozen=True)
class PlacingEntry:
    """One placed run of a workflow: its nodes, the nodes of each part, whether all parts are convex, and the number of jobs."""

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
    """All results; ``refused`` counts sets without a node that can be placed, ``stays`` are the workflows that have only such sets."""

    entries: list[PlacingEntry] = field(default_factory=list)
    refused: int = 0
    stays: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any] | None:
        """Return the section's JSON, or None if no test ran."""
        if not self.entries:
            return None
        entries = sorted(self.entries, key=lambda entry: (entry.name, entry.kind))
        return {"refused": self.refused, "stays": self.stays, "entries": [asdict(entry) for entry in entries]}


def placing_lines(date: str, facts: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the section for ``facts``."""
    entries = [PlacingEntry(**entry) for entry in facts["entries"]]
    workflows = {entry.name for entry in entries}
    equal = sum(entry.equal for entry in entries)
    returning = sum(not entry.convex for entry in entries)
    yield "## Placed parts"
    yield ""
    yield "Ordinary workflows, queued with POST /prompt as by the editor's page: once unchanged, and with sets of their nodes placed on one or two"
    yield "other servers. The sets are random with a fixed seed, connected or anywhere in the workflow. All caches are empty before each run. The"
    yield "comparison covers the outputs of every node in the history, with the bytes of the files they name and the bits of the captured values,"
    yield "and the executed nodes that are reported to the page; two equal nodes count as one. Outputs that differ between two runs on one"
    yield "server, such as names with a random part, are excluded."
    yield ""
    yield f"{date}; {len(workflows)} workflows, {len(entries)} placements, {returning} of them with a part that is not convex (a path leaves it and returns); {equal} equal."
    stays = f"; every set of {', '.join(map(repr, facts['stays']))}" if facts["stays"] else ""
    yield f"Sets that were refused because none of their nodes can be placed: {facts['refused']}{stays}."
    yield ""
    yield "| workflow | nodes | set | nodes in parts | convex | jobs | outputs | placed |"
    yield "|---|---|---|---|---|---|---|---|"
    for entry in entries:
        parts = " + ".join(map(str, entry.parts)) or "by title"
        cells = (entry.name, entry.nodes, entry.kind, parts, "yes" if entry.convex else "no", entry.jobs, entry.outputs)
        yield f"| {' | '.join(map(str, cells))} | {'equal' if entry.equal else '**not equal**'} |"
