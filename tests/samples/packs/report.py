"""The results of the packs suite, and its section of a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from samples.packs.judging import BAD, EQUAL, REFUSED, SAME_ERROR, Outcome

__all__ = ["PacksReport", "Record"]

_QUOTED = re.compile(r"'[^']*'(?:, '[^']*')*")
_MAX_REASONS = 25


@dataclass(frozen=True)
class Record:
    """A prompt with one placement, or a class alone; ``placement`` is empty for a class."""

    pack: str
    name: str
    placement: str
    outcome: Outcome


@dataclass
class PacksReport:
    """All results; ``versions`` by pack, ``failed`` has the import errors of packs that did not load.

    ``stream`` is a file to which each result is appended as a line of JSON.
    """

    records: list[Record] = field(default_factory=list)
    stream: Path | None = None
    versions: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    comfyui: str = ""

    def add(self, pack: str, name: str, placement: str, outcome: Outcome) -> None:
        """Add a result; ``placement`` is empty for a class alone."""
        self.records.append(Record(pack, name, placement, outcome))
        if self.stream is not None:
            with self.stream.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.records[-1]), ensure_ascii=False) + "\n")

    def of(self, pack: str, *, classes: bool) -> list[Record]:
        """Return the records of a pack's prompts or classes."""
        return [record for record in self.records if record.pack == pack and classes == (not record.placement)]

    def bad(self) -> list[Record]:
        """Return the records that fail the suite."""
        return [record for record in self.records if record.outcome.kind in BAD]

    def lines(self, date: str) -> Iterator[str]:
        """Yield the lines of the section."""
        prompts = {(record.pack, record.name) for record in self.records if record.placement}
        classes = [record for record in self.records if not record.placement]
        yield "## Node packs"
        yield ""
        yield "Workflows with nodes of third-party packs, placed on one or two other servers whose input folders have files of the same names with"
        yield "other contents. Each workflow is placed five times: a convex set of nodes, a set that is not convex, everything, halves on two peers,"
        yield "and the key `*`. Each node class also runs alone at an endpoint. Outputs, saved files and errors are compared with a local run;"
        yield "results that differ between local runs are not compared. *Refused* means before the run, with a reason on a node."
        yield ""
        yield f"{date}, ComfyUI {self.comfyui}: {len(prompts)} workflows, {sum(bool(r.placement) for r in self.records)} placements, {len(classes)} node classes."
        yield ""
        yield "| pack | version | workflows | placements | equal | same error | refused | classes | equal | same error | refused | not run or not deterministic | failed |"
        yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for pack in sorted(self.versions, key=str.lower):
            if pack not in self.failed:
                yield f"| {' | '.join(map(str, self._cells(pack)))} |"
        yield ""
        for pack, reason in sorted(self.failed.items()):
            yield f"{pack} ({self.versions[pack]}) was not imported by ComfyUI: {reason}"
            yield ""
        yield "| refused because | placements | classes |"
        yield "|---|--:|--:|"
        yield from self._reasons()

    def _cells(self, pack: str) -> list[object]:
        placed, alone = self.of(pack, classes=False), self.of(pack, classes=True)
        kinds, kinds_alone = _kinds(placed), _kinds(alone)
        compared = sum(kinds_alone[kind] for kind in (EQUAL, SAME_ERROR, REFUSED, *BAD))
        return [
            pack,
            self.versions[pack],
            len({record.name for record in placed}),
            len(placed),
            *(kinds[kind] for kind in (EQUAL, SAME_ERROR, REFUSED)),
            len(alone),
            *(kinds_alone[kind] for kind in (EQUAL, SAME_ERROR, REFUSED)),
            len(alone) - compared,
            sum(kinds[kind] + kinds_alone[kind] for kind in BAD),
        ]

    def _reasons(self) -> Iterable[str]:
        refused = [record for record in self.records if record.outcome.kind == REFUSED]
        counts = {
            classes: Counter(_general(r.outcome.reason) for r in refused if classes == (not r.placement)) for classes in (False, True)
        }
        total = counts[False] + counts[True]
        for reason, _ in total.most_common(_MAX_REASONS):
            yield f"| {reason} | {counts[False][reason]} | {counts[True][reason]} |"


def _kinds(records: Iterable[Record]) -> Mapping[str, int]:
    return Counter(record.outcome.kind for record in records)


def _general(reason: str) -> str:
    """Return a reason without the names in it, as a cell of a table."""
    text = _QUOTED.sub("'…'", reason).replace("yggdrasill_", "").replace("This part cannot run where it is placed: ", "")
    text = re.sub(r"\b\d+\b", "N", text).replace("|", "/").replace("\n", " ")
    return text if len(text) <= 240 else f"{text[:240]}…"
