"""A batch of images through Remote Graph, through raw sockets and through two other packs: time and accuracy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.baselines import SocketPeer
from benchmarks.comfy_client import Page
from benchmarks.comfy_prompts import IMAGES, NBYTES, check_images, fresh, noise, noise_there, serve_images, sink
from benchmarks.comfy_servers import Fleet
from benchmarks.figures import Figure
from benchmarks.memory import warm_memory
from benchmarks.payload import bytes_of
from benchmarks.rivals import RIVALS, Rival, find_pack, wait_until_idle
from benchmarks.timing import Act, interleave, median, ratios, seconds
from samples.comfy_graphs import know, node, remote_node

__all__ = ["image_figures"]

ROUNDS = 9
TARGETS = {"ComfyUI_NetDist": 6.0, "ComfyUI-Distributed": 3.0}
#: Making, inverting and consuming the images is not transport, and would dominate the time of the faster transports.
LESS = "less the same work in one server"
#: Two servers on one machine share an artifact folder; with ``share_folder: false`` they communicate as between two machines.
NEAR, FAR = "on one machine", "over HTTP"
CONDITIONS = "the folders of all servers are in memory, and memory is warmed before each act"


def image_figures(fleet: Fleet) -> list[Figure]:
    """Return the figures; a pack that is not installed is reported as missing."""
    packs = {rival: find_pack(rival) for rival in RIVALS}
    found = [pack for pack in packs.values() if pack is not None]
    here, near, there = fleet.prepare("here"), fleet.prepare("near"), fleet.prepare("there", settings={"share_folder": False})
    caller = fleet.prepare("caller", packs=found, ours=False)
    worker = fleet.prepare("worker", packs=found, ours=False, environment={"COMFYUI_IS_WORKER": "1"})
    fleet.wait()
    know(here, {"near": near, "there": there})
    for server in (near, there):
        serve_images(server)
    with contextlib.ExitStack() as stack:
        page, other = (stack.enter_context(Page.open(server.url)) for server in (here, caller))
        wire = stack.enter_context(SocketPeer.start())
        rivals = [rival() for rival, pack in packs.items() if pack is not None]
        for rival in rivals:
            rival.connect(other, worker)
        figures = _image_times(page, other, wire, rivals, lambda: wait_until_idle(worker))
        figures += _image_errors(page, rivals)
    return figures + [figure for rival, pack in packs.items() if pack is None for figure in _absent(rival)]


def _image_times(page: Page, other: Page, wire: SocketPeer, rivals: Sequence[Rival], rest: Act) -> list[Figure]:
    """Measure every transport with its work, and the same work in one server; the cost of the transport is the difference."""
    data = bytes_of(torch.rand(NBYTES // 4))

    def both_ways(middle: dict[str, Any]) -> None:
        check_images(page.run({"1": noise(fresh()), "2": middle, "3": sink("2")}), "3")

    def made_at(server: Page) -> None:
        check_images(server.run({"1": noise(fresh()), "3": sink("1")}), "3")

    ways: dict[str, Act] = {
        NEAR: lambda: both_ways(remote_node("invert", "near", ("1", 0))),
        FAR: lambda: both_ways(remote_node("invert", "there", ("1", 0))),
    }
    acts: dict[str, Act] = {
        # after the long acts of the other packs
        "ours wake": lambda: [way() for way in ways.values()],
        **ways,
        "local": lambda: both_ways(node("ImageInvert", image=("1", 0))),
        "socket": lambda: wire.out_and_back(data),
        "one way": lambda: check_images(page.run({**noise_there(fresh()), "5": sink("4")}), "5"),
        "made here": lambda: made_at(page),
    }
    for rival in rivals:
        acts[rival.name] = lambda rival=rival: check_images(rival.fetch(noise(fresh()), {"8": sink("images")}), "8")  # type: ignore[misc]
        acts[f"{rival.name} rests"] = rest
    acts["made there"] = lambda: made_at(other)
    taken = interleave(IMAGES, acts, ROUNDS, before=warm_memory)
    both, single = {way: _less(taken, way, "local") for way in (NEAR, FAR)}, _less(taken, "one way", "made here")
    figures = []
    for way, cost in both.items():
        parts = {name: seconds(median(taken[name])) for name in (way, "local", "socket")}
        what = f"{IMAGES} there and back through Remote Graph {way}, {LESS}"
        beside = "a raw loopback socket pair"
        figures.append(Figure.of(what, beside, ratios(cost, taken["socket"]), at_most=6.0, parts=parts, note=CONDITIONS))
    ours = [(NEAR, f"there and back {NEAR}", both[NEAR], "local"), (FAR, f"there and back {FAR}", both[FAR], "local")]
    ours.append(("one way", f"one way {FAR}", single, "made here"))
    for rival in rivals:
        cost = _less(taken, rival.name, "made there")
        for act, way, own_cost, own in ours:
            shown = {
                f"{rival.name} whole": rival.name,
                "its work without transfer": "made there",
                "ours in total": act,
                "our work without transfer": own,
            }
            parts = {name: seconds(median(taken[name_of])) for name, name_of in shown.items()}
            target = TARGETS[rival.name] if act == NEAR else None
            beside = f"Remote Graph transferring them {way}, {LESS}"
            figures.append(Figure.of(_one_way(rival), beside, ratios(cost, own_cost), at_least=target, parts=parts))
        parts = {rival.name: seconds(median(taken[rival.name]))}
        for act, way, _, _ in ours[:2]:
            whole = ratios(taken[rival.name], taken[act])
            figures.append(Figure.of(f"the same prompts of {rival.name}, whole", f"Remote Graph's {way}, whole", whole, parts=parts))
    return figures


def _less(taken: Mapping[str, Sequence[float]], whole: str, part: str) -> list[float]:
    return [a - b for a, b in zip(taken[whole], taken[part], strict=True)]


def _one_way(rival: Rival | type[Rival]) -> str:
    return f"{rival.name} transferring {IMAGES} one way, {LESS}"


def _image_errors(page: Page, rivals: Sequence[Rival]) -> list[Figure]:
    figures = []
    for low, high in ((0.0, 1.0), (-0.02, 1.02)):
        made = noise(fresh(), low=low, high=high)
        compare = {"8": node("BenchCompare", got=("images", 0), **made["inputs"])}
        there = noise_there(made["inputs"]["seed"], low, high)
        ours = page.run({**there, "8": node("BenchCompare", got=("4", 0), **made["inputs"])}).reported["8"][0]
        theirs = {rival.name: rival.fetch(made, compare).reported["8"][0] for rival in rivals}
        parts = {"ours": f"{ours:g}", **{name: f"{error:.4g}" for name, error in theirs.items()}}
        what = f"largest absolute error of an IMAGE of noise in [{low:g}, {high:g}]"
        figures.append(Figure.of(what, "1/255, a step of 8 bits", [ours * 255], at_most=0.0, parts=parts))
    return figures


def _absent(rival: type[Rival]) -> list[Figure]:
    why = f"{rival.name} WAS NOT FOUND; set {rival.variable} to a checkout of it"
    return [
        Figure.missing(_one_way(rival), f"Remote Graph transferring them there and back {NEAR}, {LESS}", why, at_least=TARGETS[rival.name])
    ]
