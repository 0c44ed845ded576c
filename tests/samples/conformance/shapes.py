"""Workflow shapes that are hard to place: parts that leave and return, nesting, saving in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from samples.conformance.placing import Trial
from samples.conformance.workflow import Drawing, Prompt

__all__ = ["SHAPES"]

Shape = Callable[[], tuple[Prompt, Trial]]


def _trial(kind: str, extra: Mapping[str, Any] | None = None, **parts: tuple[int, str]) -> Trial:
    placed = {f"{kind}/{name}": (f"lab-{server}", frozenset(nodes.split())) for name, (server, nodes) in parts.items()}
    return Trial(kind, placed, extra or {})


def _renamed(prompt: Prompt, names: Mapping[str, str]) -> Prompt:
    def link(value: Any) -> Any:
        return [names.get(value[0], value[0]), value[1]] if isinstance(value, list) else value

    return {
        names.get(node, node): {**facts, "inputs": {key: link(value) for key, value in facts["inputs"].items()}}
        for node, facts in prompt.items()
    }


def _chain() -> Drawing:
    """1 noise, 2 inverse, 3 blur, 4 blend of 2 and 3, 5 saved, 6 captured, 7 captured."""
    w = Drawing()
    plain = w.node("EmptyImage", width=48, height=32, batch_size=2, color=0x336699)
    noisy = w.node("ImageAddNoise", image=plain, seed=5, strength=0.4)
    blurred = w.node("ImageBlur", image=noisy, blur_radius=2, sigma=1.0)
    blend = w.node("ImageBlend", image1=noisy, image2=blurred, blend_factor=0.25, blend_mode="screen")
    w.node("SaveImage", images=blend, filename_prefix="shapes")
    w.capture(noisy, blend)
    return w


def _leaves_and_returns() -> tuple[Prompt, Trial]:
    return _chain().prompt, _trial("leaves and returns", part=(1, "2 4"))


def _to_and_fro() -> tuple[Prompt, Trial]:
    """Each part needs the other one in its middle."""
    return _chain().prompt, _trial("two parts to and fro", one=(1, "1 3"), two=(2, "2 4"))


def _saver_inside() -> tuple[Prompt, Trial]:
    w = Drawing()
    noisy = w.node("ImageAddNoise", image=w.node("EmptyImage", width=32, height=32, batch_size=1, color=7), seed=1, strength=0.5)
    saved = w.node("SaveImage", images=noisy, filename_prefix="inside")
    w.capture(w.node("ImageInvert", image=saved))
    return w.prompt, _trial("a saver in the middle", part=(1, "2 3 4"))


def _definition(uuid: str, name: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": uuid, "name": name, "nodes": nodes, "links": [], "groups": []}


def _subgraphs() -> tuple[Prompt, Trial]:
    """A subgraph inside a subgraph, placed by the title of the inner one."""
    prompt = _renamed(_chain().prompt, {"2": "20:2", "3": "20:6:3", "4": "20:6:4"})
    inner = _definition("11111111-1111-4111-8111-111111111111", "Softly", [{"id": 3, "type": "ImageBlur"}, {"id": 4, "type": "ImageBlend"}])
    outer = _definition(
        "22222222-2222-4222-8222-222222222222",
        "Outer",
        [{"id": 2, "type": "ImageAddNoise"}, {"id": 6, "type": inner["id"], "title": "Softly"}],
    )
    workflow = {"nodes": [{"id": 20, "type": outer["id"], "title": "Outer"}], "links": [], "definitions": {"subgraphs": [outer, inner]}}
    extra = {
        "extra_pnginfo": {"workflow": workflow},
        "yggdrasill": {"graphs": {"Outer": {"endpoint": "lab-1"}, "Outer/Softly": {"endpoint": "lab-2"}}},
    }
    return prompt, Trial("a subgraph in a subgraph by their titles", {}, extra)


def _twice() -> tuple[Prompt, Trial]:
    """Two instances of one definition with the same name."""
    w = Drawing()
    noisy = w.node("ImageAddNoise", image=w.node("EmptyImage", width=32, height=32, batch_size=1, color=7), seed=1, strength=0.5)
    first = w.node("ImageInvert", image=noisy)
    second = w.node("ImageInvert", image=w.node("ImageBlur", image=first, blur_radius=1, sigma=1.0))
    w.capture(first, second)
    prompt = _renamed(w.prompt, {"3": "30:1", "5": "31:1"})
    body = _definition("33333333-3333-4333-8333-333333333333", "Invert", [{"id": 1, "type": "ImageInvert"}])
    nodes = [{"id": number, "type": body["id"], "title": "Invert"} for number in (30, 31)]
    workflow = {"nodes": nodes, "links": [], "definitions": {"subgraphs": [body]}}
    extra = {"extra_pnginfo": {"workflow": workflow}, "yggdrasill": {"graphs": {"Invert": {"endpoint": "lab-2"}}}}
    return prompt, Trial("two instances of one subgraph", {}, extra)


def _group() -> tuple[Prompt, Trial]:
    """A group with a muted node, which the prompt lacks."""
    places = {"1": 0, "2": 300, "3": 600, "4": 900, "5": 1200, "6": 1500, "7": 1800, "8": 700}
    nodes = [
        {"id": int(node), "type": "x", "pos": [x, 100], "size": [200, 100], "mode": 2 if node == "8" else 0} for node, x in places.items()
    ]
    groups = [{"title": "In the middle", "bounding": [290, 0, 820, 400]}]
    workflow = {"nodes": nodes, "links": [], "groups": groups}
    extra = {"extra_pnginfo": {"workflow": workflow}, "yggdrasill": {"graphs": {"In the middle": {"endpoint": "lab-1"}}}}
    return _chain().prompt, Trial("a group with a muted node", {}, extra)


def _all() -> tuple[Prompt, Trial]:
    return _chain().prompt, _trial("everything that can", part=(2, "1 2 3 4 5 6 7"))


#: Drawings and their placements, by name.
SHAPES: dict[str, Shape] = {
    "leaves and returns": _leaves_and_returns,
    "two parts to and fro": _to_and_fro,
    "a saver in the middle": _saver_inside,
    "a subgraph in a subgraph by their titles": _subgraphs,
    "two instances of one subgraph": _twice,
    "a group with a muted node": _group,
    "everything that can": _all,
}
