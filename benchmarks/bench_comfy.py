"""Remote Graph between real ComfyUI servers, beside the same workflow in one of them, raw sockets, and two other packs."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import SocketPeer
from benchmarks.comfy_client import Ended, Page
from benchmarks.comfy_servers import CHECKPOINT, Fleet, Server, comfy_version, find_installation, open_fleet
from benchmarks.figures import Figure
from benchmarks.payload import bytes_of
from benchmarks.proxy import CountingProxy
from benchmarks.rivals import RIVALS, Rival, find_pack, wait_until_idle
from benchmarks.timing import Act, in_rounds, interleave, median, ratios, seconds
from samples.comfy_graphs import Caller, Prompt, data_folder, graph_input, graph_output, know, node, remote_node, token_of
from yggdrasill.remote import EndpointRegistry

__all__ = ["run"]

TINY_ROUNDS = 60
SAMPLER_ROUNDS = 30
LARGE_ROUNDS = 9
AGAIN_ROUNDS = 15
BRANCH_ROUNDS = 9
TINY_SECONDS = 0.025
SAMPLER_SECONDS = 0.060
AGAIN_SECONDS = 0.030
BRANCH_SECONDS = 1.0
BATCH, SIZE = 8, 1024
NBYTES = BATCH * SIZE * SIZE * 3 * 4
#: Messages, headers and hashes may cross; a thousandth of the payload is far below any part of a tensor that could.
NO_TENSOR_BYTES = 0.001
TARGETS = {"ComfyUI_NetDist": 6.0, "ComfyUI-Distributed": 3.0}
IMAGES = f"IMAGE {BATCH}x{SIZE}x{SIZE}x3"
#: An endpoint that serves several graphs keeps their models with this; see `flags_problem`.
KEEPING = ("--cache-lru", "50")
PREVIEWS = ("--preview-method", "latent2rgb")
#: No two prompts of a run have the same seed, so that no cache answers for a node.
_seeds = itertools.count(1)


def run() -> list[Figure]:
    """All figures of Remote Graph in ComfyUI."""
    installation = find_installation()
    if installation is None:
        why = "no ComfyUI was found; set COMFYUI_PATH to its checkout and COMFYUI_PYTHON to the Python that runs it"
        return [Figure.missing("Remote Graph between ComfyUI servers", "-", why, at_most=1.0)]
    version = f"ComfyUI {comfy_version(installation)}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_fleet(installation, Path(name)) as fleet:
        figures = _hops(fleet)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_fleet(installation, Path(name)) as fleet:
        figures += _images(fleet)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_fleet(installation, Path(name)) as fleet:
        figures += [*_again(fleet), _branches(fleet)]
    return [_noting(figure, version) if index == 0 else figure for index, figure in enumerate(figures)]


# -- the hop ------------------------------------------------------------------------------------------------------


def _hops(fleet: Fleet) -> list[Figure]:
    here, there = (fleet.prepare(name, *KEEPING, *PREVIEWS) for name in ("here", "there"))
    _ready(here, there)
    fleet.write_checkpoint(here, there)
    know(here, {"there": there})
    with Page.open(here.url) as page:
        return [_tiny(page, there), _sampler(page, there)]


def _tiny(page: Page, there: Server) -> Figure:
    served = {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")}
    Caller(there).deploy("tiny", served)

    def prompt(middle: dict[str, Any]) -> Prompt:
        return {"1": _noise(next(_seeds), 1, 16), "2": middle, "3": _sink("2")}

    acts = {
        "remote": lambda: page.run(prompt(remote_node("tiny", "there", ("1", 0)))),
        "local": lambda: page.run(prompt(node("ImageInvert", image=("1", 0)))),
    }
    return _overhead("a tiny graph", acts, TINY_ROUNDS, TINY_SECONDS)


def _sampler(page: Page, there: Server) -> Figure:
    def sampled(latent: tuple[str, int], seed: Any) -> Prompt:
        settings = {"steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        return {
            "11": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "12": node("CLIPTextEncode", clip=("11", 1), text="a tree"),
            "13": node("CLIPTextEncode", clip=("11", 1), text="a stone"),
            "14": node("KSampler", model=("11", 0), positive=("12", 0), negative=("13", 0), latent_image=latent, seed=seed, **settings),
            "15": node("VAEDecode", samples=("14", 0), vae=("11", 2)),
        }

    ends = {"21": graph_output("latent", ("14", 0), "LATENT"), "22": graph_output("image", ("15", 0), "IMAGE")}
    served = {"1": graph_input("latent", "LATENT"), "2": graph_input("seed", "INT"), **sampled(("1", 0), ("2", 0)), **ends}
    Caller(there).deploy("sampler", served)
    heard: dict[str, list[int]] = {"remote": [], "local": []}

    def start() -> Prompt:
        return {"1": node("EmptyLatentImage", width=64, height=64, batch_size=1), "2": node("PrimitiveInt", value=next(_seeds))}

    def remote() -> None:
        call = remote_node("sampler", "there", ("1", 0), ("2", 0))
        heard["remote"].append(page.run({**start(), "3": call, "4": _sink("3"), "5": _sink("3", 1)}).previews)

    def local() -> None:
        heard["local"].append(page.run({**start(), **sampled(("1", 0), ("2", 0)), "4": _sink("14"), "5": _sink("15")}).previews)

    figure = _overhead("latents and previews", {"remote": remote, "local": local}, SAMPLER_ROUNDS, SAMPLER_SECONDS)
    counts = {side: f"{median(counts):g}" for side, counts in heard.items()}
    note = f"checkpoint, 2 prompts, 4 steps at 64x64, VAE; previews of a run: {counts['remote']} remote, {counts['local']} local"
    return _noting(figure, note)


def _overhead(what: str, acts: Mapping[str, Act], rounds: int, limit: float) -> Figure:
    taken = interleave(what, acts, rounds, collect=False)
    over = [remote - local for remote, local in zip(taken["remote"], taken["local"], strict=True)]
    parts = {**{side: seconds(median(times)) for side, times in taken.items()}, "over": seconds(median(over))}
    shares = [value / limit for value in over]
    return Figure.of(f"a warm remote hop over the local run, {what}", f"the limit of {seconds(limit)}", shares, at_most=1.0, parts=parts)


# -- images -------------------------------------------------------------------------------------------------------


def _images(fleet: Fleet) -> list[Figure]:
    packs = {rival: find_pack(rival) for rival in RIVALS}
    found = [pack for pack in packs.values() if pack is not None]
    here, there = (fleet.prepare(name) for name in ("here", "there"))
    caller = fleet.prepare("caller", packs=found, ours=False)
    worker = fleet.prepare("worker", packs=found, ours=False, environment={"COMFYUI_IS_WORKER": "1"})
    _ready(here, there, caller, worker)
    know(here, {"there": there})
    _serve_images(there)
    with contextlib.ExitStack() as stack:
        page, other = (stack.enter_context(Page.open(server.url)) for server in (here, caller))
        wire = stack.enter_context(SocketPeer.start())
        rivals = [rival() for rival, pack in packs.items() if pack is not None]
        for rival in rivals:
            rival.connect(other, worker)
        figures = _image_times(page, wire, rivals, lambda: wait_until_idle(worker))
        figures += _image_errors(page, rivals)
    return figures + [figure for rival, pack in packs.items() if pack is None for figure in _absent(rival)]


def _serve_images(there: Server) -> None:
    inverted = {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")}
    ports = {"1": graph_input("seed", "INT"), "2": graph_input("low", "FLOAT"), "3": graph_input("high", "FLOAT")}
    made = {**ports, "4": _noise(("1", 0), low=("2", 0), high=("3", 0)), "5": graph_output("image", ("4", 0), "IMAGE")}
    for graph_id, prompt in {"invert": inverted, "noise": made}.items():
        Caller(there).deploy(graph_id, prompt)


def _image_times(page: Page, wire: SocketPeer, rivals: Sequence[Rival], rest: Act) -> list[Figure]:
    data = bytes_of(torch.rand(NBYTES // 4))

    def both_ways(middle: dict[str, Any]) -> None:
        _shaped(page.run({"1": _noise(next(_seeds)), "2": middle, "3": _sink("2")}), "3")

    acts: dict[str, Act] = {
        "there and back": lambda: both_ways(remote_node("invert", "there", ("1", 0))),
        "local": lambda: both_ways(node("ImageInvert", image=("1", 0))),
        "socket": lambda: wire.out_and_back(data),
        "one way": lambda: _shaped(page.run({**_noise_there(next(_seeds)), "5": _sink("4")}), "5"),
    }
    for rival in rivals:
        acts[rival.name] = lambda rival=rival: _shaped(rival.fetch(_noise(next(_seeds)), {"8": _sink("images")}), "8")  # type: ignore[misc]
        acts[f"{rival.name} rests"] = rest
    taken = interleave(IMAGES, acts, LARGE_ROUNDS)
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


def _shaped(ended: Ended, sink: str) -> None:
    if ended.told != {sink: [[BATCH, SIZE, SIZE, 3]]}:
        raise AssertionError(f"other images arrived: {ended.told}")


def _noise_there(seed: int, low: float = 0.0, high: float = 1.0) -> Prompt:
    """Noise made at the endpoint; it comes out of node 4."""
    constants = {"1": node("PrimitiveInt", value=seed), "2": node("PrimitiveFloat", value=low), "3": node("PrimitiveFloat", value=high)}
    return {**constants, "4": remote_node("noise", "there", ("1", 0), ("2", 0), ("3", 0))}


def _image_errors(page: Page, rivals: Sequence[Rival]) -> list[Figure]:
    figures = []
    for low, high in ((0.0, 1.0), (-0.02, 1.02)):
        noise = _noise(next(_seeds), low=low, high=high)
        compare = {"8": node("BenchCompare", got=("images", 0), **noise["inputs"])}
        there = _noise_there(noise["inputs"]["seed"], low, high)
        ours = page.run({**there, "8": node("BenchCompare", got=("4", 0), **noise["inputs"])}).told["8"][0]
        theirs = {rival.name: rival.fetch(noise, compare).told["8"][0] for rival in rivals}
        parts = {"ours": f"{ours:g}", **{name: f"{error:.4g}" for name, error in theirs.items()}}
        what = f"largest absolute error of an IMAGE of noise in [{low:g}, {high:g}]"
        figures.append(Figure.of(what, "1/255, a step of 8 bits", [ours * 255], at_most=0.0, parts=parts))
    return figures


def _absent(rival: type[Rival]) -> list[Figure]:
    why = f"{rival.name} WAS NOT FOUND; set {rival.variable} to a checkout of it"
    return [Figure.missing(_one_way(rival), "Remote Graph bringing them there and back", why, at_least=TARGETS[rival.name])]


# -- the same again -----------------------------------------------------------------------------------------------


def _again(fleet: Fleet) -> list[Figure]:
    with CountingProxy.start() as proxy:
        here, there = fleet.prepare("caller"), fleet.prepare("counted", settings={"peer_url": proxy.url})
        _ready(here, there)
        proxy.connect(there.port)
        _through(here, proxy.url, there)
        _serve_images(there)
        with Page.open(here.url) as page:
            return _again_times(page, proxy)


def _again_times(page: Page, proxy: CountingProxy) -> list[Figure]:
    """The call again in another prompt, which ComfyUI's cache answers; and made anew, as after a changed ``seed`` that the workflow ignores."""
    taken: dict[str, list[float]] = {"first": [], "again": [], "anew": []}
    crossed: dict[str, list[int]] = {name: [] for name in taken}
    for _ in in_rounds(AGAIN_ROUNDS, "unchanged inputs"):
        noise, old, new = _noise(next(_seeds)), next(_seeds), next(_seeds)
        for name, seed in (("first", old), ("again", old), ("anew", new)):
            prompt = {"1": noise, "2": remote_node("invert", "there", ("1", 0), seed=seed), "3": _sink("2")}
            proxy.passed()
            begin = time.perf_counter()
            _shaped(page.run(prompt), "3")
            taken[name].append(time.perf_counter() - begin)
            crossed[name].append(proxy.passed())
    if min(crossed["first"]) < 2 * NBYTES:
        raise AssertionError(f"only {min(crossed['first'])} bytes of a first call were counted, so the bytes go another way")
    return [figure for name in ("again", "anew") for figure in _again_figures(name, taken, crossed)]


def _again_figures(name: str, taken: Mapping[str, Sequence[float]], crossed: Mapping[str, Sequence[int]]) -> list[Figure]:
    what = {"again": "the same call again", "anew": "the same call made anew at the endpoint"}[name]
    time_limit, byte_limit = (1.0, NO_TENSOR_BYTES) if name == "again" else (None, None)
    times = {side: seconds(median(taken[side])) for side in ("first", name)}
    counts = {side: f"{median(crossed[side]) / (1 << 20):.3g} MiB" for side in ("first", name)}
    shares = [value / AGAIN_SECONDS for value in taken[name]]
    payloads = [count / NBYTES for count in crossed[name]]
    return [
        Figure.of(f"{what}, {IMAGES} unchanged", f"the limit of {seconds(AGAIN_SECONDS)}", shares, at_most=time_limit, parts=times),
        Figure.of(f"bytes that cross with {what}, {IMAGES} unchanged", "the payload", payloads, at_most=byte_limit, parts=counts),
    ]


def _through(server: Server, url: str, there: Server) -> None:
    """Let a server reach the endpoint ``there`` by ``url``."""
    registry = EndpointRegistry()
    registry.add("there", url, token=token_of(there))
    registry.to_yaml(data_folder(server) / "endpoints.yaml")


# -- branches -----------------------------------------------------------------------------------------------------


def _branches(fleet: Fleet) -> Figure:
    here, *others = (fleet.prepare(name) for name in ("one", "two", "three"))
    _ready(here, *others)
    know(here, {server.base.name: server for server in others})
    sleep = node("BenchSleep", seconds=BRANCH_SECONDS, tag=("1", 0))
    for server in others:
        Caller(server).deploy("sleep", {"1": graph_input("tag", "INT"), "2": sleep, "3": graph_output("tag", ("2", 0), "INT")})

    def tagged(parts: Prompt) -> Callable[[], Ended]:
        return lambda: page.run({"1": node("PrimitiveInt", value=next(_seeds)), **parts, **{f"{key}0": _sink(key) for key in parts}})

    remote = {str(index): remote_node("sleep", server.base.name, ("1", 0)) for index, server in enumerate(others, 3)}
    with Page.open(here.url) as page:
        taken = interleave("branches", {"three": tagged({"2": sleep, **remote}), "one": tagged({"2": sleep})}, BRANCH_ROUNDS)
    what, beside = f"two remote branches and a local one that sleep {seconds(BRANCH_SECONDS)} each", "a prompt with the local one alone"
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    return Figure.of(what, beside, ratios(taken["three"], taken["one"]), at_most=1.2, parts=parts)


# -- common -------------------------------------------------------------------------------------------------------


def _ready(*servers: Server) -> None:
    for server in servers:
        server.wait_until_ready()


def _noise(seed: Any, batch: int = BATCH, size: int = SIZE, low: Any = 0.0, high: Any = 1.0) -> dict[str, Any]:
    return node("BenchNoise", seed=seed, batch=batch, size=size, low=low, high=high)


def _sink(source: str, output: int = 0) -> dict[str, Any]:
    return node("BenchSink", value=(source, output), tag=next(_seeds))


def _noting(figure: Figure, note: str) -> Figure:
    return Figure.from_dict({**figure.to_dict(), "note": "; ".join(filter(None, [figure.note, note]))})
