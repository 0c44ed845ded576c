"""What the conformance suite found of ComfyUI's official templates, as a section of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TemplateReport", "template_lines"]


@dataclass
class TemplateReport:
    """Counts by what was counted; ``refused`` by the way nodes were chosen and the words of the error."""

    versions: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    carved: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any] | None:
        """The section's JSON; None if nothing was run."""
        if not self.tried:
            return None
        counts = {name: dict(getattr(self, name)) for name in ("counts", "tried", "carved", "refused")}
        return {"versions": self.versions, **counts}


def template_lines(date: str, facts: Mapping[str, Any]) -> Iterable[str]:
    """The section of those facts."""
    counts, versions = facts["counts"], ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "## Official templates"
    yield ""
    yield "ComfyUI's own editor, in a browser, makes a prompt of each of its templates. Parts are carved out of every one: each subgraph, each"
    yield "group, all subgraphs at once on endpoints of their own, and node sets chosen by chance: convex ones (no path leaves and returns),"
    yield "any nodes at all, and several sets at the same time. Each time, plugging what was carved back in must give the computation of the"
    yield "prompt, node by node and link by link, and a server must find every carved prompt valid but for files that it does not have."
    yield ""
    yield f"{date}; {versions}."
    yield ""
    yield f"{counts['templates']} templates, {counts['nodes']} nodes; {counts['groups']} groups hold the nodes that the editor says they hold."
    yield ""
    yield "| chosen | tried | carved | calls | refused |"
    yield "|---|---|---|---|---|"
    for kind, tried in facts["tried"].items():
        refused = sum(count for reason, count in facts["refused"].items() if reason.startswith(f"{kind}: "))
        yield f"| {kind} | {tried} | {facts['carved'].get(kind, 0)} | {facts['carved'].get(f'{kind}, calls', 0)} | {refused} |"
    yield ""
    for reason, count in sorted(facts["refused"].items()):
        yield f"- refused {count} of {reason}"
    if facts["refused"]:
        yield ""
    yield f"{counts['validated']} carved prompts were validated, of them {counts['absent']} lack model files and nothing else."
