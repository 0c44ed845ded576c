"""The cost of the extension for a server that places nothing: its start, the request of a prompt, the run of a prompt, its forms."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.comfy_client import Page
from benchmarks.comfy_prompts import fresh, noise, sink
from benchmarks.comfy_servers import Fleet, Server, comfy_version, find_installation, open_fleet
from benchmarks.figures import Figure
from benchmarks.timing import in_rounds, interleave, median, ratios, seconds
from samples.comfy_graphs import Prompt, node
from yggdrasill.remote import EndpointRegistry
from yggdrasill.server_ext.comfy.placement.service import PlacementService

__all__ = ["PARTS", "run"]

BARE = "a server without the extension"
START_ROUNDS, START_SECONDS = 7, 0.15
REQUEST_ROUNDS, REQUEST_SECONDS, NODES = 200, 0.0002, 500
RUN_ROUNDS, RUN_NODES = 60, 20


def run(only: str | None = None) -> list[Figure]:
    """Return all figures, or those of one of the `PARTS`."""
    figures: list[Figure] = []
    for part in PARTS if only is None else (only,):
        figures += PARTS[part]()
    return figures


def _started() -> list[Figure]:
    """Measure the seconds until a new server answers, and the processor time that it took for it."""
    installation = find_installation()
    if installation is None:
        return [Figure.missing("start of a server", BARE, "it needs a ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON)")]
    waited: dict[str, list[float]] = {"bare": [], "with": []}
    computed: dict[str, list[float]] = {"bare": [], "with": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for round_number in (-1, *in_rounds(START_ROUNDS, "start")):
            for name, times in waited.items():
                with open_fleet(installation, Path(folder) / f"{name}{round_number}") as fleet:
                    began = time.perf_counter()
                    server = fleet.prepare("server", ours=name == "with")
                    _answers(server)
                    if round_number >= 0:
                        times.append(time.perf_counter() - began)
                        computed[name].append(_processor_seconds(server.process))
    more = [longer - bare for longer, bare in zip(waited["with"], waited["bare"], strict=True)]
    parts = {name: seconds(median(times)) for name, times in waited.items()}
    parts |= {f"processor time, {name}": seconds(median(times)) for name, times in computed.items()}
    what, limit = "a server's start, longer than without the extension by", f"the limit of {seconds(START_SECONDS)}"
    note = f"ComfyUI {comfy_version(installation)}"
    return [Figure.of(what, limit, [value / START_SECONDS for value in more], at_most=1.0, parts=parts, note=note)]


def _answers(server: Server) -> None:
    while server.alive:
        try:
            server.get("/system_stats", timeout=5)
        except (OSError, urllib.error.URLError):
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"ComfyUI did not start:\n{server.printed()[-2000:]}")


def _processor_seconds(process: subprocess.Popen[Any]) -> float:
    """Return the user and system time of a process and its threads so far, from /proc; 0 where that does not exist."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def _request() -> list[Figure]:
    """Measure the handler of POST /prompt for a prompt in which nothing is placed, while other workflows' names are placed."""
    prompt = {str(name): {"class_type": "X", "inputs": {"x": [str(name - 1), 0]} if name else {}} for name in range(NODES)}
    nodes = [{"id": name, "type": "X", "pos": [0, 0], "size": [1, 1]} for name in range(NODES)]
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": nodes, "groups": [], "links": []}}}}
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {f"group {number}": "forge" for number in range(20)})
    service = PlacementService(lambda: registry)
    if service.on_prompt(body) is not body:
        raise AssertionError("a prompt with nothing placed was changed")
    text = json.dumps(body)
    taken = interleave(
        "request", {"ours": lambda: service.on_prompt(body), "JSON": lambda: json.loads(text)}, REQUEST_ROUNDS, collect=False
    )
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    shares = [value / REQUEST_SECONDS for value in taken["ours"]]
    what = f"the request of a prompt with {NODES} nodes"
    return [
        Figure.of(what, f"the limit of {seconds(REQUEST_SECONDS)}", shares, at_most=1.0, parts=parts),
        Figure.of(what, "reading its JSON", ratios(taken["ours"], taken["JSON"]), parts=parts),
    ]


def _run() -> list[Figure]:
    """Measure the run of an ordinary prompt, and compare the sizes of /object_info."""
    installation = find_installation()
    if installation is None:
        return [Figure.missing("the run of a prompt", BARE, "it needs a ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON)")]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, open_fleet(installation, Path(folder)) as fleet:
        servers = {name: _prepared(fleet, name) for name in ("bare", "with")}
        fleet.wait()
        with Page.open(servers["bare"].url) as bare, Page.open(servers["with"].url) as ours:
            acts = {"with": lambda: ours.run(_chain()), "bare": lambda: bare.run(_chain())}
            taken = interleave("run", acts, RUN_ROUNDS, collect=False)
        sizes = {name: _size(f"{server.url}/object_info") for name, server in servers.items()}
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    forms = {name: f"{size / 1000:.0f} kB" for name, size in sizes.items()}
    return [
        Figure.of(f"the run of a prompt with {RUN_NODES} nodes", BARE, ratios(taken["with"], taken["bare"]), at_most=1.05, parts=parts),
        Figure.of("size of /object_info", BARE, [sizes["with"] / sizes["bare"]], at_most=1.08, parts=forms),
    ]


def _prepared(fleet: Fleet, name: str) -> Server:
    return fleet.prepare(name, "--cache-lru", "50", ours=name == "with", environment={"OMP_NUM_THREADS": "1"})


def _chain() -> Prompt:
    """Return a prompt whose images pass `RUN_NODES` nodes, none of them cached."""
    inverted = {str(number): node("ImageInvert", image=(str(number - 1), 0)) for number in range(2, RUN_NODES)}
    return {"1": noise(fresh(), 1, 64), **inverted, str(RUN_NODES): sink(str(RUN_NODES - 1))}


def _size(url: str) -> int:
    with urllib.request.urlopen(url) as answer:
        return len(json.dumps(json.loads(answer.read())))


PARTS: dict[str, Callable[[], list[Figure]]] = {"start": _started, "request": _request, "run": _run}
