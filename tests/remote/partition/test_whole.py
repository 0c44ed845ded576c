"""The key ``*``: all of a prompt that no other key places."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.partition.placement_keys import parts_of
from yggdrasill.remote.placement import Placement, ProjectPart

DRAWN = json.loads((Path(__file__).parent / "drawn.json").read_text(encoding="utf-8"))
PROMPT: dict[str, Any] = DRAWN["prompt"]
KNOWN = ("studio", "attic")


def placed(graphs: dict[str, Any], chosen: Any = None) -> dict[str, tuple[set[str], Any]]:
    placements = {key: Placement.of(value, KNOWN, key) for key, value in graphs.items()}
    extra = {"extra_pnginfo": {"workflow": DRAWN["workflow"]}, "yggdrasill": {"graphs": chosen or {}}}
    naming = parts_of(PROMPT, extra, placements, KNOWN)
    return {part.part.name: (set(part.part.nodes), part.placement.to_config()) for part in naming.parts}


def test_all_of_a_prompt_goes_where_the_star_says() -> None:
    assert placed({"*": "studio"}) == {"*": (set(PROMPT), "studio")}
    assert placed({}, {"*": {"endpoint": "attic"}}) == {"*": (set(PROMPT), "attic")}
    assert placed({"*": "local"}) == {}
    assert parts_of(PROMPT, {}, {"*": Placement(("studio",))}, KNOWN).parts[0].part.nodes == set(PROMPT)


def test_what_other_keys_place_is_not_in_it() -> None:
    inner = {node for node in PROMPT if node.startswith("18:")}
    rest = set(PROMPT) - inner
    both = placed({"*": "studio", "Invert it (18)": "attic"}).values()
    assert {place: nodes for nodes, place in both} == {"attic": inner, "studio": rest}
    assert placed({"*": "studio", "Invert it (18)": "local"}) == {"*": (rest, "studio")}
    assert placed({"*": "studio", "Invert it (18)": "studio"}) == {"*": (set(PROMPT), "studio")}


def test_the_caller_may_keep_a_prompt_here() -> None:
    assert placed({"*": "studio"}, {"*": {"endpoint": "local"}}) == {}


def test_it_names_no_part_of_a_project() -> None:
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {"*": "forge"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.placements_of([ProjectPart(("*",)), ProjectPart(("world", "graph"))]) == {}
