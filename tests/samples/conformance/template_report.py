"""The results of the conformance suite for ComfyUI's official templates, as a section of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TemplateReport", "template_lines"]


@dataclass
class TemplateReport:
    """Counts of tried, partitioned and refused selections; ``refused`` by the kind of selection and the reason."""

    versions: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    partitioned: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any] | None:
        """Return the section's JSON, or None if no test ran."""
        if not self.tried:
            return None
        counts = {name: dict(getattr(self, name)) for name in ("counts", "tried", "partitioned", "refused")}
        return {"versions": self.versions, **counts}


def template_lines(date: str, facts: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the section for ``facts``."""
    counts, versions = facts["counts"], ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "## Official templates"
    yield ""
    yield "ComfyUI's editor, in a browser, converts each of its templates to a prompt. Each prompt is partitioned in several ways: by each subgraph,"
    yield "each group, all of them at once, and random node sets: convex sets (no path leaves and returns), arbitrary sets, and several sets"
    yield "at the same time, half of them with API nodes that may run with the user's account. Every partition is checked: joining it again must"
    yield "give the original prompt, node by node and link by link; when both are run with hashes for the nodes' results, the results and the"
    yield "executed nodes must be equal; and a server must accept every prompt, except for model files that it lacks. A part may be refused only"
    yield "if none of its nodes can leave the server: output nodes, loaders of uploads, nodes that need an account, and nodes whose outputs are"
    yield "not transferable and are needed outside of the part."
    yield ""
    yield f"{date}; {versions}."
    yield ""
    yield f"{counts['templates']} templates were converted to prompts. {counts['foreign']} of them use nodes of third-party packs and are not partitioned."
    yield f"The others have {counts['nodes']} nodes. ComfyUI reports errors other than missing files for {counts['invalid']} of them; the same errors are allowed"
    yield f"for its parts. {counts['groups']} groups have the nodes that the editor shows in them."
    yield ""
    yield "| selection | tried | partitioned | calls | refused |"
    yield "|---|---|---|---|---|"
    for kind, tried in facts["tried"].items():
        refused = sum(count for reason, count in facts["refused"].items() if reason.startswith(f"{kind}: "))
        yield f"| {kind} | {tried} | {facts['partitioned'].get(kind, 0)} | {facts['partitioned'].get(f'{kind}, calls', 0)} | {refused} |"
    yield ""
    yield "Refused, with an error that names the nodes:"
    yield ""
    for reason, count in sorted(facts["refused"].items()):
        yield f"- {reason}: {count}"
    yield ""
    yield f"{counts['validated']} prompts of parts are valid, {counts['absent']} of them except for missing model files. The {counts['left, validated']} remaining"
    yield "prompts, with nodes that call the parts, are valid except for missing models and uploads."
