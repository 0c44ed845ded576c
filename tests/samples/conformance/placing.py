"""Workflows with parts placed on other servers, queued as a page queues them, and their comparison with a run on one server."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samples.comfy import Server
from samples.conformance.lab import Lab
from samples.conformance.node_sets import closed, random_sets
from samples.conformance.workflow import CAPTURE, Drawing, Prompt
from samples.page_view import Shown, show

__all__ = ["Outcome", "Trial", "cold_run", "drawn_trial", "jobs_of", "trials_of"]

_PEERS = ("lab-1", "lab-2")


@dataclass(frozen=True)
class Trial:
    """The placement of one run of a workflow: nodes by name and endpoint of their part. ``extra`` is posted with the prompt."""

    kind: str
    parts: Mapping[str, tuple[str, frozenset[str]]]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def extra_data(self) -> dict[str, Any]:
        """The ``extra_data`` that places the parts."""
        graphs = {name: {"nodes": sorted(nodes), "endpoint": endpoint} for name, (endpoint, nodes) in self.parts.items()}
        return {**self.extra, "yggdrasill": {"graphs": graphs}} if graphs else dict(self.extra)

    def is_convex(self, prompt: Prompt) -> bool:
        """Whether no path leaves a part and returns to it."""
        return all(closed(prompt, nodes) == nodes for _, nodes in self.parts.values())


@dataclass(frozen=True)
class Outcome:
    """The visible result of a run: outputs by node with the bytes of their files, and the executed nodes."""

    outputs: dict[str, Any]
    ran: frozenset[str]

    def only_of(self, one: Outcome, other: Outcome) -> Outcome:
        """Return the result without outputs of nodes that differ between two equal runs."""
        steady = {node for node, output in one.outputs.items() if other.outputs.get(node) == output}
        return Outcome({node: output for node, output in self.outputs.items() if node in steady}, self.ran)


def trials_of(name: str, prompt: Prompt) -> Iterator[Trial]:
    """Return reproducible placements of a workflow: connected convex sets, and arbitrary sets."""
    chance = random.Random(name)
    while True:
        for kind, sets in random_sets(prompt, chance, 1):
            if kind == "any" and closed(prompt, sets[0]) == sets[0] and chance.random() < 0.8:
                continue
            peers = chance.sample(_PEERS, 2)
            parts = {f"{name}/{kind}/{number}": (peers[number % 2], nodes) for number, nodes in enumerate(sets)}
            yield Trial("several" if len(sets) > 1 else kind, parts)


def drawn_trial(name: str, drawing: Drawing) -> Trial:
    """Return the placement of the parts in the drawing."""
    parts = {f"{name}/drawn/{number}": (_PEERS[number % 2], frozenset(part.nodes)) for number, part in enumerate(drawing.parts)}
    return Trial("as drawn", parts)


def cold_run(lab: Lab, prompt: Prompt, extra: Mapping[str, Any], peers: int = 2) -> tuple[Shown, Outcome | None]:
    """Run a prompt on servers with empty caches; return None if it was refused."""
    _forget([lab.server(number) for number in range(peers + 1)])
    shown = show(lab.server(0), prompt, extra, seconds=250)
    if shown.status != 200:
        return shown, None
    # the caches were empty: a node that was in one is equal to another node that ran before it
    ran = shown.ran | shown.cached | {str(data["display_node"]) for data in shown.of("executed")}
    return shown, Outcome({node: _content(lab.server(0), output) for node, output in shown.outputs.items()}, frozenset(ran))


def _forget(servers: Sequence[Server]) -> None:
    """Empty the caches. A server does so after a prompt, so this runs one."""
    prompt = {
        "1": {"class_type": "ConformanceSource", "inputs": {"kind": "SVG"}},
        "2": {"class_type": CAPTURE, "inputs": {"value": ["1", 0]}},
    }
    started = []
    for server in servers:
        server.post("/free", {"free_memory": True})
        started.append((server, server.post("/prompt", {"prompt": prompt})["prompt_id"]))
    for server, prompt_id in started:
        server.wait_for(prompt_id)


def jobs_of(lab: Lab, trial: Trial) -> list[dict[str, Any]]:
    """Return the jobs of the parts of a trial."""
    found = []
    for name, (endpoint, _) in trial.parts.items():
        number = int(endpoint.removeprefix("lab-"))
        found += [job for job in lab.call(number, "GET", "/jobs?limit=20")["jobs"] if job["graph_id"] == name]
    return found


def _content(server: Server, value: Any) -> Any:
    """Return ``value`` with each file name replaced by the bytes of the file."""
    if isinstance(value, dict):
        if {"filename", "subfolder", "type"} <= value.keys():
            file = server.base / value["type"] / value["subfolder"] / value["filename"]
            return [value["type"], hashlib.sha256(file.read_bytes()).hexdigest()]
        return {key: _content(server, item) for key, item in value.items()}
    return [_content(server, item) for item in value] if isinstance(value, list) else value
