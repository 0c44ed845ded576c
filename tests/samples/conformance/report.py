"""What the conformance suite found, as a page."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from samples.conformance.workflow import Drawing, ServedPrompt

__all__ = ["Entry", "Report"]


@dataclass(frozen=True)
class Entry:
    """One workflow: its parts, and whether each way to run it gave what the local run gave."""

    name: str
    here: int
    there: tuple[int, ...]
    sent: tuple[str, ...]
    returned: tuple[str, ...]
    compared: int
    saved: int
    remote: bool
    python: bool

    @classmethod
    def of(cls, name: str, drawing: Drawing, parts: list[ServedPrompt], *, compared: int, saved: int, remote: bool, python: bool) -> Entry:
        """With the sizes and types of a drawing's parts."""
        there = tuple(len(part.nodes) for part in parts)
        sent = _types(port.type for part in parts for port in part.inputs)
        returned = _types(port.type for part in parts for port in part.outputs)
        return cls(name, len(drawing.prompt) - sum(there), there, sent, returned, compared, saved, remote, python)


@dataclass
class Report:
    """Everything that was tried."""

    entries: list[Entry] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path, date: datetime.date) -> None:
        """Write the page."""
        path.write_text("\n".join(self._lines(date)) + "\n", encoding="utf-8")

    def _lines(self, date: datetime.date) -> Iterable[str]:
        entries = sorted(self.entries, key=lambda entry: entry.name)
        equal = sum(entry.remote and entry.python for entry in entries)
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield "# Conformance: remote equals local, bit for bit"
        yield ""
        yield "`make conformance` wrote this page. It starts real ComfyUI servers and runs each workflow three ways: whole on one server; with its"
        yield "parts served by other servers and called by Remote Graph nodes in the same workflow; and with the parts called from Python. What is"
        yield "compared: every value on the links named in the workflow, down to the bits, types and memory order of its tensors, as a node sees it;"
        yield "and every byte of the files that output nodes save. That the parts ran where they should is read from the jobs' events."
        yield ""
        yield f"{date.isoformat()}; {versions}; CPU; {len(entries)} workflows, {equal} of them equal in both ways."
        yield ""
        yield "| workflow | nodes here | nodes there | sent | returned | values, files compared | Remote Graph | from Python |"
        yield "|---|---|---|---|---|---|---|---|"
        for entry in entries:
            there = " + ".join(map(str, entry.there))
            sizes = f"{entry.compared}, {entry.saved}"
            verdicts = " | ".join("equal" if good else "**not equal**" for good in (entry.remote, entry.python))
            yield f"| {entry.name} | {entry.here} | {there} | {_listed(entry.sent)} | {_listed(entry.returned)} | {sizes} | {verdicts} |"
        yield ""
        yield f"Types that were sent: {_listed(_types(kind for entry in entries for kind in entry.sent))}."
        yield ""
        yield f"Types that were returned: {_listed(_types(kind for entry in entries for kind in entry.returned))}."


def _types(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({"any" if kind == "*" else kind for kind in kinds}))


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(kinds) or "nothing"
