"""The section of the conformance page about ComfyUI's official templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TemplateReport", "template_lines"]


@dataclass
class TemplateReport:
    """Counts by category; ``refused`` by selection and error text."""

    versions: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    partitioned: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any] | None:
        """Return the section's JSON, or None if nothing was run."""
        if not self.tried:
            return None
        counts = {name: dict(getattr(self, name)) for name in ("counts", "tried", "partitioned", "refused")}
        return {"versions": self.versions, **counts}


def template_lines(date: str, facts: Mapping[str, Any]) -> Iterable[str]:
    """Yield the section of these results."""
    counts, versions = facts["counts"], ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield "## Official templates"
    yield ""
    yield "ComfyUI's own editor, in a browser, makes a prompt of each of its templates. Parts are partitioned out of every one: each subgraph, each"
    yield "group, all of them at once, and node sets chosen by chance: convex ones (no path leaves and returns), any nodes at all, and several"
    yield "sets at the same time, half of them where API nodes may run with the user's account. Each time, plugging what was partitioned back in must"
    yield "give the prompt, node by node and link by link; run with hashes in the place of the nodes' work, both must give the same results and"
    yield "run the same nodes; and a server must find every prompt valid but for model files that it does not have. A part is refused"
    yield "only where nothing of it can leave the server: output nodes, loaders of uploads, nodes that need an account, and what makes values"
    yield "that cannot travel for nodes outside of the part."
    yield ""
    yield f"{date}; {versions}."
    yield ""
    yield f"{counts['templates']} templates were made into prompts. {counts['foreign']} of them use nodes of packs that are not ComfyUI's own, and"
    yield f"nothing is partitioned out of those. The others have {counts['nodes']} nodes; of {counts['invalid']} ComfyUI itself says that more than"
    yield "files is wrong, and then the same is allowed to be said of what is partitioned out of it."
    yield f"{counts['groups']} groups hold the nodes that the editor says they hold."
    yield ""
    yield "| chosen | tried | partitioned | calls | refused |"
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
    yield f"{counts['validated']} partitioned prompts were found valid, {counts['absent']} of them but for model files; and so were the"
    yield f"{counts['left, validated']} prompts that are left, with placed nodes in them, but for models and uploads."
