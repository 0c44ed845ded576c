"""Remote Graph between real ComfyUI servers, compared with the same workflow in one server, raw sockets, and two other packs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comfy_client import Ended, Page
from benchmarks.comfy_images import image_figures
from benchmarks.comfy_prompts import IMAGES, NBYTES, check_images, fresh, noise, noise_there, serve_images, sink
from benchmarks.comfy_servers import CHECKPOINT, Fleet, Server, comfy_version, find_installation, open_fleet
from benchmarks.figures import Figure
from benchmarks.memory import memory_folder
from benchmarks.proxy import CountingProxy
from benchmarks.timing import Act, in_rounds, interleave, median, ratios, seconds
from samples.comfy_graphs import Caller, Prompt, data_folder, graph_input, graph_output, know, node, remote_node, token_of
from yggdrasill.remote import EndpointRegistry

__all__ = ["PARTS", "run"]

TINY_ROUNDS = 60
SAMPLER_ROUNDS = 30
AGAIN_ROUNDS = 15
BRANCH_ROUNDS = 9
TINY_SECONDS = 0.012
SAMPLER_SECONDS = 0.060
AGAIN_SECONDS = 0.030
ANEW_SECONDS = 0.060
#: The cost of a part that gives the payload back between two servers of one machine, with default folders.
USER_ROUNDS = 9
USER_SECONDS = 0.15
BRANCH_SECONDS = 1.0
#: Messages, headers and hashes are transferred; a thousandth of the payload is far below any part of a tensor.
NO_TENSOR_BYTES = 0.001
#: With this flag, an endpoint that serves several graphs keeps their models loaded; see `flags_problem`.
KEEPING = ("--cache-lru", "50")
#: Compute threads that wait for each other on a busy machine would hide the measured cost.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
THREADS = "both servers run with OMP_NUM_THREADS=1"
#: The size of the folders of all servers of a part, with a reserve.
FOLDER_BYTES = 8 << 30
PREVIEWS = ("--preview-method", "latent2rgb")


def run(only: str | None = None) -> list[Figure]:
    """Return all figures of Remote Graph in ComfyUI, or those of one of the `PARTS`."""
    installation = find_installation()
    if installation is None:
        why = "no ComfyUI was found; set COMFYUI_PATH to its checkout and COMFYUI_PYTHON to the Python that runs it"
        return [Figure.missing("Remote Graph between ComfyUI servers", "-", why, at_most=1.0)]
    version = f"ComfyUI {comfy_version(installation)}"
    figures: list[Figure] = []
    for part in PARTS if only is None else (only,):
        folder = None if part in ON_DISK else memory_folder(FOLDER_BYTES)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name, open_fleet(installation, Path(name)) as fleet:
            figures += PARTS[part](fleet)
    return [_noting(figure, version) if index == 0 else figure for index, figure in enumerate(figures)]


# -- the hop ------------------------------------------------------------------------------------------------------


def _hops(fleet: Fleet) -> list[Figure]:
    here, there = (fleet.prepare(name, *KEEPING, *PREVIEWS, environment=ONE_THREAD) for name in ("here", "there"))
    fleet.wait()
    fleet.write_checkpoint(here, there)
    know(here, {"there": there})
    with Page.open(here.url) as page:
        return [_noting(figure, THREADS) for figure in (_tiny(page, there), _sampler(page, there))]


def _tiny(page: Page, there: Server) -> Figure:
    served = {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")}
    Caller(there).deploy("tiny", served)

    def prompt(middle: dict[str, Any]) -> Prompt:
        return {"1": noise(fresh(), 1, 16), "2": middle, "3": sink("2")}

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
        return {"1": node("EmptyLatentImage", width=64, height=64, batch_size=1), "2": node("PrimitiveInt", value=fresh())}

    def remote() -> None:
        call = remote_node("sampler", "there", ("1", 0), ("2", 0))
        heard["remote"].append(page.run({**start(), "3": call, "4": sink("3"), "5": sink("3", 1)}).previews)

    def local() -> None:
        heard["local"].append(page.run({**start(), **sampled(("1", 0), ("2", 0)), "4": sink("14"), "5": sink("15")}).previews)

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


# -- the same again -----------------------------------------------------------------------------------------------


def _again(fleet: Fleet) -> list[Figure]:
    with CountingProxy.start() as proxy:
        here, there = fleet.prepare("caller"), fleet.prepare("counted", settings={"peer_url": proxy.url, "share_folder": False})
        fleet.wait()
        proxy.connect(there.port)
        _through(here, proxy.url, there)
        serve_images(there)
        with Page.open(here.url) as page:
            return _again_times(page, proxy)


def _again_times(page: Page, proxy: CountingProxy) -> list[Figure]:
    """Measure the same call in a second prompt, which ComfyUI's cache answers, and the call executed again, as after a changed ``seed`` that the workflow ignores."""
    taken: dict[str, list[float]] = {"first": [], "again": [], "anew": []}
    crossed: dict[str, list[int]] = {name: [] for name in taken}
    for _ in in_rounds(AGAIN_ROUNDS, "unchanged inputs"):
        images, old, new = noise(fresh()), fresh(), fresh()
        for name, seed in (("first", old), ("again", old), ("anew", new)):
            prompt = {"1": images, "2": remote_node("invert", "there", ("1", 0), seed=seed), "3": sink("2")}
            proxy.passed()
            begin = time.perf_counter()
            check_images(page.run(prompt), "3")
            taken[name].append(time.perf_counter() - begin)
            crossed[name].append(proxy.passed())
    if min(crossed["first"]) < 2 * NBYTES:
        raise AssertionError(f"only {min(crossed['first'])} bytes of a first call were counted, so the payload does not pass the proxy")
    return [figure for name in ("again", "anew") for figure in _again_figures(name, taken, crossed)]


def _again_figures(name: str, taken: Mapping[str, Sequence[float]], crossed: Mapping[str, Sequence[int]]) -> list[Figure]:
    what = {"again": "the same call again", "anew": "the same call executed again at the endpoint"}[name]
    limit = {"again": AGAIN_SECONDS, "anew": ANEW_SECONDS}[name]
    times = {side: seconds(median(taken[side])) for side in ("first", name)}
    counts = {side: f"{median(crossed[side]) / (1 << 20):.3g} MiB" for side in ("first", name)}
    shares = [value / limit for value in taken[name]]
    payloads = [count / NBYTES for count in crossed[name]]
    return [
        Figure.of(f"{what}, {IMAGES} unchanged", f"the limit of {seconds(limit)}", shares, at_most=1.0, parts=times),
        Figure.of(f"bytes transferred by {what}, {IMAGES} unchanged", "the payload", payloads, at_most=NO_TENSOR_BYTES, parts=counts),
    ]


def _through(server: Server, url: str, there: Server) -> None:
    """Register the endpoint ``there`` with ``url`` at a server."""
    registry = EndpointRegistry()
    registry.add("there", url, token=token_of(there))
    registry.to_yaml(data_folder(server) / "endpoints.yaml")


# -- branches -----------------------------------------------------------------------------------------------------


def _branches(fleet: Fleet) -> list[Figure]:
    here, *others = (fleet.prepare(name) for name in ("one", "two", "three"))
    fleet.wait()
    know(here, {server.base.name: server for server in others})
    sleep = node("BenchSleep", seconds=BRANCH_SECONDS, tag=("1", 0))
    for server in others:
        Caller(server).deploy("sleep", {"1": graph_input("tag", "INT"), "2": sleep, "3": graph_output("tag", ("2", 0), "INT")})

    def tagged(parts: Prompt) -> Callable[[], Ended]:
        return lambda: page.run({"1": node("PrimitiveInt", value=fresh()), **parts, **{f"{key}0": sink(key) for key in parts}})

    remote = {str(index): remote_node("sleep", server.base.name, ("1", 0)) for index, server in enumerate(others, 3)}
    with Page.open(here.url) as page:
        taken = interleave("branches", {"three": tagged({"2": sleep, **remote}), "one": tagged({"2": sleep})}, BRANCH_ROUNDS)
    what, beside = f"two remote branches and a local one that sleep {seconds(BRANCH_SECONDS)} each", "a prompt with only the local branch"
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    return [Figure.of(what, beside, ratios(taken["three"], taken["one"]), at_most=1.2, parts=parts)]


# -- as a user runs it ---------------------------------------------------------------------------------------------


def _user(fleet: Fleet) -> list[Figure]:
    """Measure a placed part that makes the images at another server of this machine: default folders on disk, memory not warmed."""
    here, there = fleet.prepare("here"), fleet.prepare("there")
    fleet.wait()
    know(here, {"there": there})
    serve_images(there)
    with Page.open(here.url) as page:
        acts: dict[str, Act] = {
            "remote": lambda: check_images(page.run({**noise_there(fresh()), "5": sink("4")}), "5"),
            "local": lambda: check_images(page.run({"4": noise(fresh()), "5": sink("4")}), "5"),
        }
        return [_overhead(f"{IMAGES} made at another server of this machine", acts, USER_ROUNDS, USER_SECONDS)]


# -- common -------------------------------------------------------------------------------------------------------


def _noting(figure: Figure, note: str) -> Figure:
    return Figure.from_dict({**figure.to_dict(), "note": "; ".join(filter(None, [figure.note, note]))})


PARTS: dict[str, Callable[[Fleet], list[Figure]]] = {
    "hops": _hops,
    "images": image_figures,
    "again": _again,
    "user": _user,
    "branches": _branches,
}
#: The parts whose servers have their folders on disk, as by default.
ON_DISK = frozenset({"user"})
