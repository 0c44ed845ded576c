"""The handler of every POST /prompt: it is fast, changes nothing, and marks placed parts."""

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


def test_a_prompt_without_placements_is_unchanged() -> None:
    service = PlacementService(lambda: REGISTRY)
    posted: dict[str, Any]
    for posted in (body(), body(hard={"nodes": ["1"]}), body(other={"nodes": ["1"]}), {"prompt": 5}, {}, {"prompt": {}}):
        before: dict[str, Any] = copy.deepcopy(posted)
        assert service.on_prompt(posted) is posted
        assert posted == before


def test_a_prompt_with_a_placement_is_marked_in_a_new_body() -> None:
    posted = body(soft={"nodes": ["1", "2"]})
    before = copy.deepcopy(posted)
    marked = PlacementService(lambda: REGISTRY).on_prompt(posted)
    assert posted == before
    assert {**marked, "prompt": dict(marked["prompt"])} == before
    prompt = marked["prompt"]
    assert isinstance(prompt, PostedPrompt)
    (placed,) = prompt.parts
    assert (placed.part.name, sorted(placed.part.nodes), placed.placement.endpoints) == ("soft", ["1", "2"], ("forge",))


def test_invalid_names_are_kept_as_the_problem_of_the_prompt() -> None:
    marked = PlacementService(lambda: REGISTRY).on_prompt(body(soft={"nodes": ["99"]}))
    assert "Unknown node '99'" in str(marked["prompt"].problem)


def test_on_prompt_takes_less_than_a_millisecond_without_placements() -> None:
    service, posted = PlacementService(lambda: REGISTRY), body(500)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        service.on_prompt(posted)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.001
