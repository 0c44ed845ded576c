"""The results of the conformance suite for workflows that run remotely, as a section of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from samples.conformance.workflow import Drawing, ServedPrompt

__all__ = ["Entry", "Report", "workflow_lines"]


@dataclass(frozen=True)
class Entry:
    """One workflow: its parts, and whether each remote run equals the local run."""

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
        """Return the entry with the sizes and types of a drawing's parts."""
        there = tuple(len(part.nodes) for part in parts)
        sent = _types(port.type for part in parts for port in part.inputs)
        returned = _types(port.type for part in parts for port in part.outputs)
        return cls(name, len(drawing.prompt) - sum(there), there, sent, returned, compared, saved, remote, python)


@dataclass
class Report:
    """All results."""

    entries: list[Entry] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any] | None:
        """Return the section's JSON, or None if no test ran."""
        if not self.entries:
            return None
        return {"versions": self.versions, "entries": [asdict(entry) for entry in sorted(self.entries, key=lambda entry: entry.name)]}


def workflow_lines(date: str, facts: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the section for ``facts``."""
    entries = [Entry(**entry) for entry in facts["entries"]]
    equal = sum(entry.remote and entry.python for entry in entries)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "## Remote graphs"
    yield ""
    yield "Each workflow runs in three ways: completely on one server; with its parts served by other servers and called by Remote Graph nodes in"
    yield "the same workflow; and with the parts called from Python. The comparison covers every value on the links named in the workflow, with"
    yield "the bits, types and memory order of its tensors as a node receives them, and every byte of the files that output nodes save. The jobs'"
    yield "events show that the parts ran on the intended servers."
    yield ""
    yield f"{date}; {versions}; CPU; {len(entries)} workflows, {equal} of them equal in both remote ways."
    yield ""
    yield "| workflow | local nodes | remote nodes | sent | returned | values, files compared | Remote Graph | from Python |"
    yield "|---|---|---|---|---|---|---|---|"
    for entry in entries:
        there = " + ".join(map(str, entry.there))
        sizes = f"{entry.compared}, {entry.saved}"
        verdicts = " | ".join("equal" if good else "**not equal**" for good in (entry.remote, entry.python))
        yield f"| {entry.name} | {entry.here} | {there} | {_listed(entry.sent)} | {_listed(entry.returned)} | {sizes} | {verdicts} |"
    yield ""
    yield f"Types sent: {_listed(_types(kind for entry in entries for kind in entry.sent))}."
    yield ""
    yield f"Types returned: {_listed(_types(kind for entry in entries for kind in entry.returned))}."


def _types(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({"any" if kind == "*" else kind for kind in kinds}))


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(kinds) or "nothing"
