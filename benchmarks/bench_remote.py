"""A graph behind an endpoint, compared with the local graph and with the same bytes through plain transports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

import benchmarks.blocks  # noqa: F401 - registers the blocks
from benchmarks.baselines import HttpPeer, SocketPeer
from benchmarks.figures import Figure
from benchmarks.memory import measurable
from benchmarks.payload import ELEMENTS, NBYTES, bytes_of
from benchmarks.processes import Served, endpoint, python
from benchmarks.proxy import CountingProxy
from benchmarks.timing import in_rounds, interleave, median, ratios, seconds
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import EndpointClient, RemoteGraph
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.uploads import PARALLEL, upload
from yggdrasill.values.stores.shared import SharedFolderStore

__all__ = ["run"]

SMALL_ROUNDS = 500
LARGE_ROUNDS = 15
MEMORY_ROUNDS = 5
COUNT_ROUNDS = 5
PARALLEL_ROUNDS = 5
MANY_ROUNDS = 9
MANY, MANY_BYTES = 200, 64 << 10
SMALL_SECONDS = 0.0025
LONGEST_SECONDS = 1.0
ENDPOINTS = (2, 4, 8)
#: One graph around each block ``bench/<name>`` of `benchmarks.blocks`.
GRAPHS = ("identity", "double", "first", "sleep")
SIZE = f"{NBYTES >> 20} MiB"
#: Messages, headers and hashes are transferred; a thousandth of the payload is far below any part of a tensor.
NO_TENSOR_BYTES = 0.001
#: Numbers in a page of memory.
PAGE = 1024


def run() -> list[Figure]:
    """Return all figures of remote calls."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        graphs = {graph_id: _graph(graph_id) for graph_id in GRAPHS}
        configs = {graph_id: graph.to_config() for graph_id, graph in graphs.items()}
        served = stack.enter_context(endpoint(folder / "plain", configs, share_folder=False))
        http = stack.enter_context(HttpPeer.start())
        wire = stack.enter_context(SocketPeer.start())
        near = stack.enter_context(endpoint(folder / "near", configs))
        figures = [
            *_small(served, graphs["identity"], http),
            *_large(served, near, graphs["double"], wire, http),
            _memory(served),
            _many(served),
        ]
    with tempfile.TemporaryDirectory() as name:
        figures += [_unchanged(Path(name), configs)]
    with tempfile.TemporaryDirectory() as name:
        figures += [_shared(Path(name), configs)]
    with tempfile.TemporaryDirectory() as name:
        figures += _parallel(Path(name), configs)
    return figures


def _graph(graph_id: str) -> Graph:
    graph = Graph(graph_id)
    graph.add_node("only", f"bench/{graph_id}")
    graph.expose_input("only", "x", "x")
    graph.expose_output("only", "y", "y")
    return graph


def _remote(served: Served, graph_id: str, *, url: str | None = None, artifact_client: ArtifactClient | None = None) -> RemoteGraph:
    return RemoteGraph(url or served.url, graph_id, token=served.token, artifact_client=artifact_client)


def _small(served: Served, graph: Graph, http: HttpPeer) -> list[Figure]:
    remote, inputs = _remote(served, "identity"), {"x": 3}
    if remote.run(inputs) != graph.run(inputs):
        raise AssertionError("the endpoint returned a different value")
    acts = {"remote": lambda: remote.run(inputs), "local": lambda: graph.run(inputs), "aiohttp": lambda: http.echo({"x": 3})}
    taken = interleave("small calls", acts, SMALL_ROUNDS, collect=False)
    over = _less(taken["remote"], taken["local"])
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    limit = f"the limit of {seconds(SMALL_SECONDS)}"
    return [
        Figure.of("small call, less the block's own time", limit, [value / SMALL_SECONDS for value in over], at_most=1.0, parts=parts),
        Figure.of(
            "small call, less the block's own time", "a plain aiohttp POST of the value", ratios(over, taken["aiohttp"]), parts=parts
        ),
    ]


def _less(whole: list[float], part: list[float]) -> list[float]:
    return [a - b for a, b in zip(whole, part, strict=True)]


def _large(served: Served, near: Served, graph: Graph, wire: SocketPeer, http: HttpPeer) -> list[Figure]:
    far_graph, near_graph = (_remote(where, "double") for where in (served, near))
    tensor = torch.rand(ELEMENTS)
    data = bytes_of(tensor)

    def call(remote: RemoteGraph) -> None:
        tensor[0] += 1.0  # different bytes in every call, because equal bytes would not be sent
        result = remote.run({"x": tensor})["y"]
        # Read every page, so that mapping memory lazily counts as part of the call.
        if result.shape != tensor.shape or not torch.equal(result[::PAGE], tensor[::PAGE] * 2):
            raise AssertionError("the endpoint returned different numbers")

    acts = {
        "remote": lambda: call(far_graph),
        "near": lambda: call(near_graph),
        "block": lambda: graph.run({"x": tensor}),
        "socket": lambda: wire.out_and_back(data),
        "aiohttp": lambda: http.out_and_back(data),
    }
    taken = interleave(f"{SIZE} out and back", acts, LARGE_ROUNDS)
    moved, handed = (_less(taken[way], taken["block"]) for way in ("remote", "near"))
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    what = f"{SIZE} out and back, less the block's own time"
    return [
        Figure.of(what, "a raw loopback socket pair", ratios(moved, taken["socket"]), at_most=2.0, parts=parts),
        Figure.of(what, "a plain aiohttp PUT and GET", ratios(moved, taken["aiohttp"]), at_most=1.05, parts=parts),
        Figure.of(f"{what}, to a local peer's folder", "the same over HTTP", ratios(handed, moved), at_most=1.0, parts=parts),
    ]


def _many(served: Served) -> Figure:
    """Measure uploads alone: the value is packed before the time starts."""
    client, artifact_client = EndpointClient(served.url, token=served.token), ArtifactClient()
    taken: dict[str, list[float]] = {"together": [], "one by one": []}
    for _ in in_rounds(MANY_ROUNDS, f"{MANY} small artifacts"):
        for way, times in taken.items():
            value = [torch.rand(MANY_BYTES // 4) for _ in range(MANY)]
            with artifact_client.pack(value) as packed:
                groups = [packed.artifacts] if way == "together" else [[name] for name in packed.artifacts]
                begin = time.perf_counter()
                loop_thread().run(_send_groups(client, groups, value, artifact_client))
                times.append(time.perf_counter() - begin)
    parts = {way: seconds(median(times)) for way, times in taken.items()}
    what = f"{MANY} artifacts of {MANY_BYTES >> 10} KiB sent with few requests"
    return Figure.of(
        what, "sent with a request each, four at a time", ratios(taken["together"], taken["one by one"]), at_most=1.0, parts=parts
    )


async def _send_groups(client: EndpointClient, groups: list[list[str]], value: Any, artifact_client: ArtifactClient) -> None:
    gate = asyncio.Semaphore(PARALLEL)

    async def send(names: list[str]) -> None:
        async with gate:
            await upload(client, names, value, artifact_client, Retry())

    await asyncio.gather(*map(send, groups))


def _memory(served: Served) -> Figure:
    what, beside = f"{SIZE} out and back: the caller's extra anonymous memory, result included", "the payload"
    if not measurable():
        return Figure.missing(what, beside, "this system does not tell RssAnon; it is measured on Linux", at_most=1.5)
    shares = []
    for _ in in_rounds(MEMORY_ROUNDS, "memory"):
        measured = json.loads(python(["-m", "benchmarks.caller", served.url], YGGDRASILL_TOKEN=served.token))
        shares.append(measured["extra"] / measured["nbytes"])
    return Figure.of(what, beside, shares, at_most=1.5, parts={"extra": f"{median(shares) * NBYTES / (1 << 20):.0f} MiB"})


def _unchanged(folder: Path, configs: dict[str, Any]) -> Figure:
    with CountingProxy.start() as proxy, endpoint(folder, configs, share_folder=False, peer_url=proxy.url) as served:
        proxy.connect(_port(served))
        remote = _remote(served, "first", url=proxy.url)
        counts: list[int] = []
        firsts: list[int] = []
        for _ in in_rounds(COUNT_ROUNDS, "unchanged inputs"):
            tensor = torch.rand(ELEMENTS)
            for kept in (firsts, counts):
                if remote.run({"x": tensor})["y"] != float(tensor[0]):
                    raise AssertionError("the endpoint returned a different number")
                kept.append(proxy.passed())
    if min(firsts) < NBYTES:
        raise AssertionError(f"only {min(firsts)} bytes of a first call were counted, so the payload does not pass the proxy")
    parts = {"first call": _amount(median(firsts)), "again": _amount(median(counts))}
    shares = [count / NBYTES for count in counts]
    return Figure.of(f"bytes that cross when the same {SIZE} are sent again", "the payload", shares, at_most=NO_TENSOR_BYTES, parts=parts)


def _shared(folder: Path, configs: dict[str, Any]) -> Figure:
    artifacts = folder / "artifacts"
    with CountingProxy.start() as proxy, endpoint(folder, configs, artifacts=str(artifacts), peer_url=proxy.url) as served:
        proxy.connect(_port(served))
        remote = _remote(served, "double", url=proxy.url, artifact_client=ArtifactClient(SharedFolderStore(artifacts)))
        counts: list[int] = []
        for _ in in_rounds(COUNT_ROUNDS, "shared folder"):
            tensor = torch.rand(ELEMENTS)
            if not torch.equal(remote.run({"x": tensor})["y"], tensor * 2):
                raise AssertionError("the endpoint returned different numbers")
            counts.append(proxy.passed())
    shares, parts = [count / NBYTES for count in counts], {"a call": _amount(median(counts))}
    what = f"bytes transferred with a shared artifact folder, {SIZE} out and back"
    return Figure.of(what, "the payload", shares, at_most=NO_TENSOR_BYTES, parts=parts)


def _port(served: Served) -> int:
    port = urlsplit(served.url).port
    assert port is not None
    return port


def _amount(count: float) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / 1024:.1f} KiB"


def _parallel(folder: Path, configs: dict[str, Any]) -> list[Figure]:
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(endpoint(folder / str(i), configs)) for i in range(max(ENDPOINTS))]
        return [_branches([_remote(each, "sleep") for each in served[:count]]) for count in ENDPOINTS]


def _branches(remotes: list[RemoteGraph]) -> Figure:
    """Measure a pipeline with one branch per endpoint; the branches sleep 0.6 to 1 times the longest."""
    pipeline, inputs, count = Pipeline("branches"), {}, len(remotes)
    for i, remote in enumerate(remotes):
        pipeline.add_graph(remote, f"branch{i}")
        pipeline.expose_input(f"branch{i}", "x", f"x{i}")
        pipeline.expose_output(f"branch{i}", "y", f"y{i}")
        inputs[f"x{i}"] = LONGEST_SECONDS * (0.6 + 0.4 * i / (count - 1))
    pipeline.run(dict.fromkeys(inputs, 0.0), max_workers=count)
    walls = []
    for _ in in_rounds(PARALLEL_ROUNDS, f"{count} endpoints"):
        begin = time.perf_counter()
        outputs = pipeline.run(inputs, max_workers=count)
        walls.append(time.perf_counter() - begin)
        if sorted(outputs.values()) != sorted(inputs.values()):
            raise AssertionError("the endpoints returned different values")
    shares = [wall / LONGEST_SECONDS for wall in walls]
    what, parts = f"{count} sleeping graphs on {count} endpoints, in parallel branches", {"wall": seconds(median(walls))}
    return Figure.of(what, f"the longest of them, {seconds(LONGEST_SECONDS)}", shares, at_most=1.1, parts=parts)
