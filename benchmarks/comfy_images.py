"""A batch of images through Remote Graph, through raw sockets and through two other packs: how long it takes and what arrives."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.baselines import SocketPeer
from benchmarks.comfy_client import Page
from benchmarks.comfy_prompts import IMAGES, NBYTES, check_images, fresh, noise, noise_there, serve_images, sink
from benchmarks.comfy_servers import Fleet
from benchmarks.figures import Figure
from benchmarks.payload import bytes_of
from benchmarks.rivals import RIVALS, Rival, find_pack, wait_until_idle
from benchmarks.timing import Act, interleave, median, ratios, seconds
from samples.comfy_graphs import know, node, remote_node

__all__ = ["image_figures"]

ROUNDS = 9
TARGETS = {"ComfyUI_NetDist": 6.0, "ComfyUI-Distributed": 3.0}


def image_figures(fleet: Fleet) -> list[Figure]:
    """The figures; a pack that is not there is said to be missing."""
    packs = {rival: find_pack(rival) for rival in RIVALS}
    found = [pack for pack in packs.values() if pack is not None]
    here, there = (fleet.prepare(name) for name in ("here", "there"))
    caller = fleet.prepare("caller", packs=found, ours=False)
    worker = fleet.prepare("worker", packs=found, ours=False, environment={"COMFYUI_IS_WORKER": "1"})
    fleet.wait()
    know(here, {"there": there})
    serve_images(there)
    with contextlib.ExitStack() as stack:
        page, other = (stack.enter_context(Page.open(server.url)) for server in (here, caller))
        wire = stack.enter_context(SocketPeer.start())
        rivals = [rival() for rival, pack in packs.items() if pack is not None]
        for rival in rivals:
            rival.connect(other, worker)
        figures = _image_times(page, wire, rivals, lambda: wait_until_idle(worker))
        figures += _image_errors(page, rivals)
    return figures + [figure for rival, pack in packs.items() if pack is None for figure in _absent(rival)]


def _image_times(page: Page, wire: SocketPeer, rivals: Sequence[Rival], rest: Act) -> list[Figure]:
    data = bytes_of(torch.rand(NBYTES // 4))

    def both_ways(middle: dict[str, Any]) -> None:
        check_images(page.run({"1": noise(fresh()), "2": middle, "3": sink("2")}), "3")

    acts: dict[str, Act] = {
        "there and back": lambda: both_ways(remote_node("invert", "there", ("1", 0))),
        "local": lambda: both_ways(node("ImageInvert", image=("1", 0))),
        "socket": lambda: wire.out_and_back(data),
        "one way": lambda: check_images(page.run({**noise_there(fresh()), "5": sink("4")}), "5"),
    }
    for rival in rivals:
        acts[rival.name] = lambda rival=rival: check_images(rival.fetch(noise(fresh()), {"8": sink("images")}), "8")  # type: ignore[misc]
        acts[f"{rival.name} rests"] = rest
    taken = interleave(IMAGES, acts, ROUNDS)
    moved = [whole - local for whole, local in zip(taken["there and back"], taken["local"], strict=True)]
    parts = {name: seconds(median(taken[name])) for name in ("there and back", "local", "socket")}
    what = f"{IMAGES} there and back through Remote Graph"
    figures = [
        Figure.of(f"{what}, less the local run", "a raw loopback socket pair", ratios(moved, taken["socket"]), at_most=6.0, parts=parts)
    ]
    for rival in rivals:
        times = taken[rival.name]
        for way, target in (("there and back", TARGETS[rival.name]), ("one way", None)):
            parts = {rival.name: seconds(median(times)), "ours": seconds(median(taken[way]))}
            beside = f"Remote Graph bringing them {way}"
            figures.append(Figure.of(_one_way(rival), beside, ratios(times, taken[way]), at_least=target, parts=parts))
    return figures


def _one_way(rival: Rival | type[Rival]) -> str:
    return f"{rival.name} bringing {IMAGES} one way"


def _image_errors(page: Page, rivals: Sequence[Rival]) -> list[Figure]:
    figures = []
    for low, high in ((0.0, 1.0), (-0.02, 1.02)):
        made = noise(fresh(), low=low, high=high)
        compare = {"8": node("BenchCompare", got=("images", 0), **made["inputs"])}
        there = noise_there(made["inputs"]["seed"], low, high)
        ours = page.run({**there, "8": node("BenchCompare", got=("4", 0), **made["inputs"])}).told["8"][0]
        theirs = {rival.name: rival.fetch(made, compare).told["8"][0] for rival in rivals}
        parts = {"ours": f"{ours:g}", **{name: f"{error:.4g}" for name, error in theirs.items()}}
        what = f"largest absolute error of an IMAGE of noise in [{low:g}, {high:g}]"
        figures.append(Figure.of(what, "1/255, a step of 8 bits", [ours * 255], at_most=0.0, parts=parts))
    return figures


def _absent(rival: type[Rival]) -> list[Figure]:
    why = f"{rival.name} WAS NOT FOUND; set {rival.variable} to a checkout of it"
    return [Figure.missing(_one_way(rival), "Remote Graph bringing them there and back", why, at_least=TARGETS[rival.name])]
