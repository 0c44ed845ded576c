"""What looks at every POST /prompt: it takes no time, changes nothing, and marks what is placed elsewhere."""

from __future__ import annotations

import copy
import time
from typing import Any

from yggdrasill.remote import EndpointRegistry
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PostedPrompt
from yggdrasill.server_ext.comfy.placement.service import PlacementService

REGISTRY = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {"soft": "forge", "hard": "local"})


def body(nodes: int = 6, **graphs: Any) -> dict[str, Any]:
    prompt = {str(node): {"class_type": "X", "inputs": {"x": [str(node - 1), 0]} if node else {}} for node in range(nodes)}
    workflow = {"nodes": [{"id": node, "type": "X", "pos": [0, 0], "size": [1, 1]} for node in range(nodes)], "groups": [], "links": []}
    return {
        "prompt": prompt,
        "client_id": "page",
        "extra_data": {"extra_pnginfo": {"workflow": workflow}, "yggdrasill": {"graphs": graphs}},
    }


def test_a_prompt_of_which_nothing_is_placed_is_passed_on_untouched() -> None:
    service = PlacementService(lambda: REGISTRY)
    posted: dict[str, Any]
    for posted in (body(), body(hard={"nodes": ["1"]}), body(other={"nodes": ["1"]}), {"prompt": 5}, {}, {"prompt": {}}):
        before: dict[str, Any] = copy.deepcopy(posted)
        assert service.on_prompt(posted) is posted
        assert posted == before


def test_a_prompt_of_which_a_part_is_placed_is_marked_in_a_new_body() -> None:
    posted = body(soft={"nodes": ["1", "2"]})
    before = copy.deepcopy(posted)
    marked = PlacementService(lambda: REGISTRY).on_prompt(posted)
    assert posted == before
    assert {**marked, "prompt": dict(marked["prompt"])} == before
    prompt = marked["prompt"]
    assert isinstance(prompt, PostedPrompt)
    (placed,) = prompt.parts
    assert (placed.part.name, sorted(placed.part.nodes), placed.placement.endpoints) == ("soft", ["1", "2"], ("forge",))


def test_names_that_are_wrong_are_kept_to_be_said() -> None:
    marked = PlacementService(lambda: REGISTRY).on_prompt(body(soft={"nodes": ["99"]}))
    assert "unknown node '99'" in str(marked["prompt"].problem)


def test_it_takes_less_than_a_millisecond_where_nothing_is_placed() -> None:
    service, posted = PlacementService(lambda: REGISTRY), body(500)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        service.on_prompt(posted)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.001
