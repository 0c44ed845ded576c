"""Sets of a prompt's nodes to partition out: connected and convex (no path leaves and returns), or arbitrary."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from yggdrasill.remote.comfy_ports import is_link

__all__ = ["anywhere", "closed", "neighbours", "random_sets"]

Prompt = Mapping[str, Mapping[str, Any]]


def random_sets(prompt: Prompt, chance: random.Random, count: int) -> Iterator[tuple[str, tuple[frozenset[str], ...]]]:
    """Yield ``count`` times three tries: ``convex`` and ``any`` with one set, ``several`` with up to three disjoint sets."""
    for _ in range(count):
        yield "convex", (closed(prompt, neighbours(prompt, chance)),)
        yield "any", (anywhere(prompt, chance),)
        taken: set[str] = set()
        several = []
        for _ in range(chance.randint(2, 3)):
            found = frozenset((neighbours if chance.random() < 0.5 else anywhere)(prompt, chance) - taken)
            taken |= found
            several += [found] if found else []
        yield "several", tuple(several)


def anywhere(prompt: Prompt, chance: random.Random) -> frozenset[str]:
    """Return an arbitrary set of nodes, from a few to all."""
    return frozenset(chance.sample(sorted(prompt), chance.randint(1, len(prompt))))


def neighbours(prompt: Prompt, chance: random.Random) -> frozenset[str]:
    """Return a connected set: one node, extended by linked nodes."""
    linked = _linked(prompt)
    found, wanted = {chance.choice(sorted(prompt))}, chance.randint(1, len(prompt))
    while len(found) < wanted:
        border = sorted(set().union(*(linked[node] for node in found)) - found)
        if not border:
            break
        found.add(chance.choice(border))
    return frozenset(found)


def closed(prompt: Prompt, nodes: frozenset[str]) -> frozenset[str]:
    """Return the set with all nodes on paths between its members."""
    before = {node: {value[0] for value in prompt[node]["inputs"].values() if is_link(value)} & prompt.keys() for node in prompt}
    after: dict[str, set[str]] = {node: set() for node in prompt}
    for node, sources in before.items():
        for source in sources:
            after[source].add(node)
    return nodes | (_reached(nodes, before) & _reached(nodes, after))


def _linked(prompt: Prompt) -> dict[str, set[str]]:
    linked: dict[str, set[str]] = {node: set() for node in prompt}
    for node in prompt:
        for value in prompt[node]["inputs"].values():
            if is_link(value) and value[0] in prompt:
                linked[node].add(value[0])
                linked[value[0]].add(node)
    return linked


def _reached(start: frozenset[str], steps: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = list(start)
    while ahead:
        for node in steps[ahead.pop()] - found:
            found.add(node)
            ahead.append(node)
    return found
