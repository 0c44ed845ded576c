"""The prompts of the packs suite, read from ``prompts/``, and the placements of each.

A file has the prompts of one pack: ``{name: {node: {class: {input: value}}}}``. ``$node`` is a link to the first output of a node, ``$node.2``
to its third, and ``{input}`` and ``{output}`` in a text are folders of the caller. A required widget that a prompt omits has its default.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samples.conformance.node_sets import anywhere, closed, neighbours
from samples.packs.filling import Prompt, Workbench, add_dumps

__all__ = ["CASES", "PLACEMENTS", "Case", "placements_of"]

_LINK = re.compile(r"\$(\w+)(?:\.(\d+))?")
_FOLDER = re.compile(r"\{(input|output)\}")
#: Sets of nodes are drawn without these and without output nodes, because parts of them alone are refused.
_STAYING = ("LoadImage", "PacksSource")
PLACEMENTS = ("convex", "not convex", "everything", "two peers", "*")


@dataclass(frozen=True)
class Case:
    """A prompt in short notation; ``pack`` is the folder of the pack that it is about."""

    pack: str
    name: str
    nodes: Mapping[str, Mapping[str, Mapping[str, Any] | None]]

    @property
    def classes(self) -> list[str]:
        return [next(iter(node)) for node in self.nodes.values()]

    def prompt(self, bench: Workbench, base: Path) -> Prompt:
        """Return the prompt as the editor of the server in ``base`` sends it, with a dump of each open output."""
        ids = {name: str(number) for number, name in enumerate(self.nodes, 1)}
        prompt: Prompt = {}
        for name, node in self.nodes.items():
            ((class_type, given),) = node.items()
            values = {key: _value(value, ids, base) for key, value in (given or {}).items()}
            prompt[ids[name]] = {"class_type": class_type, "inputs": bench.widgets(class_type, values)}
        add_dumps(prompt, bench.info)
        return prompt


def _value(value: Any, ids: Mapping[str, str], base: Path) -> Any:
    if not isinstance(value, str):
        return value
    found = _LINK.fullmatch(value)
    if found:
        return [ids[found[1]], int(found[2] or 0)]
    return _FOLDER.sub(lambda named: (base / named[1]).as_posix(), value)


def _cases() -> Iterator[Case]:
    for path in sorted((Path(__file__).parent / "prompts").glob("*.yaml")):
        for name, nodes in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            yield Case(path.stem, name, nodes)


CASES = tuple(_cases())


def placements_of(case: Case, prompt: Prompt, bench: Workbench) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Yield kind, placements of the request and peers for each way to place a prompt; sets are the same in each run of the suite."""
    chance = random.Random(f"{case.pack}/{case.name}")
    inner = {node: facts for node, facts in prompt.items() if facts["class_type"] not in _STAYING and not bench.shows(facts["class_type"])}
    inner = inner or prompt
    name = re.sub(r"\W+", "-", f"{case.pack}-{case.name}")
    yield "convex", _at(f"{name}-convex", _convex(inner, chance), "forge"), ("forge",)
    yield "not convex", _at(f"{name}-any", _not_convex(inner, chance), "mill"), ("mill",)
    yield "everything", _at(f"{name}-all", frozenset(prompt), "forge"), ("forge",)
    order = list(inner)
    half = (len(order) + 1) // 2
    halves = {**_at(f"{name}-first", frozenset(order[:half]), "forge"), **_at(f"{name}-second", frozenset(order[half:]), "mill")}
    yield "two peers", {key: value for key, value in halves.items() if value["nodes"]}, ("forge", "mill")
    yield "*", {"*": {"endpoint": "mill"}}, ("mill",)


def _at(name: str, nodes: frozenset[str], peer: str) -> dict[str, Any]:
    return {name: {"nodes": sorted(nodes), "endpoint": peer}}


def _convex(prompt: Prompt, chance: random.Random) -> frozenset[str]:
    """Return a connected convex set, a proper subset where one is found."""
    for _ in range(20):
        found = closed(prompt, neighbours(prompt, chance))
        if len(found) < len(prompt):
            break
    return found


def _not_convex(prompt: Prompt, chance: random.Random) -> frozenset[str]:
    """Return a set that a path leaves and enters again, where one is found."""
    for _ in range(40):
        found = anywhere(prompt, chance)
        if closed(prompt, found) != found:
            break
    return found
