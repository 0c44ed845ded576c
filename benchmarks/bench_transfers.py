"""Transfers of artifacts between a caller and an endpoint, compared with the same bytes through plain transports and with memory copies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import HttpPeer, SocketPeer
from benchmarks.figures import Figure
from benchmarks.memory import measurable
from benchmarks.payload import ELEMENTS, NBYTES, bytes_of
from benchmarks.processes import Served, endpoint
from benchmarks.timing import in_rounds, interleave, median, ratios, seconds
from yggdrasill.remote import EndpointClient
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.downloads import fetch
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.observers import TransferMeter
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.uploads import upload
from yggdrasill.values.wire import references

__all__ = ["run"]

LARGE_ROUNDS = 15
MANY_ROUNDS = 5
CROWD_ROUNDS = 5
MANY, MANY_BYTES = 1000, 10_000
MANY_PER_SECOND = 2000
HUGE_BYTES = 1 << 30
EXTRA_BYTES = 64 << 20
CROWD, CHARGE, DELAY_SECONDS = 30_000, 8192, 0.020
SIZE = f"{NBYTES >> 20} MiB"


def run() -> list[Figure]:
    """Return all figures of transfers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            endpoint(folder / "plain", {}, share_folder=False) as served,
            endpoint(folder / "near", {}) as near,
            HttpPeer.start() as http,
            SocketPeer.start() as wire,
        ):
            figures = [*_large(served, near, wire, http), _many(served)]
        with endpoint(folder / "huge", {}, share_folder=False) as served:
            figures.append(_huge(served))
        with endpoint(folder / "crowded", {}, share_folder=False, artifact_quota=CROWD * CHARGE) as served:
            figures.append(_crowded(served))
    return figures


def _out_and_back(client: EndpointClient, tensor: torch.Tensor) -> torch.Tensor:
    """Upload a tensor and download it into new memory; the hash is computed, as for a call."""
    artifact_client = ArtifactClient()
    with artifact_client.pack(tensor) as packed:
        (ref,) = references(packed.wire)

        async def act() -> memoryview:
            await upload(client, packed.artifacts, tensor, artifact_client, Retry())
            return await fetch(client, ref, ArtifactClient(kept_bytes=0), Retry(), TransferMeter())

        data = loop_thread().run(act())
    return torch.frombuffer(data, dtype=torch.float32)


def _large(served: Served, near: Served, wire: SocketPeer, http: HttpPeer) -> list[Figure]:
    tensor = torch.rand(ELEMENTS)
    clients = {way: EndpointClient(where.url, token=where.token) for way, where in (("endpoint", served), ("near", near))}

    def act(way: str) -> None:
        tensor[0] += 1.0  # different bytes each time, because equal bytes would not be sent
        back = _out_and_back(clients[way], tensor)
        # Read every page, so that mapping memory lazily counts.
        if not torch.equal(back[::1024], tensor[::1024]):
            raise AssertionError("the endpoint returned different bytes")

    data = bytes_of(tensor)
    acts: dict[str, Callable[[], Any]] = {
        "endpoint": lambda: act("endpoint"),
        "near": lambda: act("near"),
        "socket": lambda: wire.out_and_back(data),
        "aiohttp": lambda: http.out_and_back(data),
        "copy": tensor.clone,
    }
    taken = interleave(f"{SIZE} out and back", acts, LARGE_ROUNDS)
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    what = f"an artifact of {SIZE} out and back, hashed and verified"
    return [
        Figure.of(what, "a raw loopback socket pair", ratios(taken["endpoint"], taken["socket"]), at_most=2.0, parts=parts),
        Figure.of(what, "a plain aiohttp PUT and GET", ratios(taken["endpoint"], taken["aiohttp"]), at_most=1.05, parts=parts),
        Figure.of(f"{what}, same machine", "a copy, tensor.clone()", ratios(taken["near"], taken["copy"]), at_most=1.5, parts=parts),
    ]


def _many(served: Served) -> Figure:
    client, artifact_client = EndpointClient(served.url, token=served.token), ArtifactClient()
    times = []
    for _ in in_rounds(MANY_ROUNDS, f"{MANY} artifacts of {MANY_BYTES} bytes"):
        value = [torch.rand(MANY_BYTES // 4) for _ in range(MANY)]
        with artifact_client.pack(value) as packed:
            begin = time.perf_counter()
            loop_thread().run(upload(client, packed.artifacts, value, artifact_client, Retry()))
            times.append(time.perf_counter() - begin)
    limit = MANY / MANY_PER_SECOND
    parts = {"upload": seconds(median(times)), "per second": f"{MANY / median(times):.0f}"}
    return Figure.of(
        f"{MANY} artifacts of {MANY_BYTES // 1000} KB sent",
        f"{MANY_PER_SECOND} per second",
        [s / limit for s in times],
        at_most=1.0,
        parts=parts,
    )


def _huge(served: Served) -> Figure:
    what, beside = "1 GiB out and back: the endpoint's extra anonymous memory", f"{EXTRA_BYTES >> 20} MiB"
    if not measurable():
        return Figure.missing(what, beside, "this system does not report RssAnon; it is measured on Linux", at_most=1.0)
    client = EndpointClient(served.url, token=served.token)
    _out_and_back(client, torch.rand(1 << 20))
    tensor, shares = torch.rand(HUGE_BYTES // 4), []
    for _ in in_rounds(3, what):
        tensor[0] += 1.0
        with _peak_of_child() as peak:
            _out_and_back(client, tensor)
        shares.append(peak[0] / EXTRA_BYTES)
    return Figure.of(what, beside, shares, at_most=1.0, parts={"extra": f"{median(shares) * EXTRA_BYTES / (1 << 20):.0f} MiB"})


@contextmanager
def _peak_of_child() -> Iterator[list[int]]:
    """Sample the anonymous memory of the endpoint, a child of this process, during the block; the peak above the start is in the list."""
    children = [path.parent for path in Path("/proc").glob("[0-9]*/status") if _is_endpoint(path)]
    peak, start, done = [0], sum(map(_anonymous, children)), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], sum(map(_anonymous, children)) - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _is_endpoint(status: Path) -> bool:
    try:
        is_child = f"PPid:\t{os.getpid()}\n" in status.read_text(encoding="utf-8", errors="replace")
        return is_child and b"yggdrasill.server_ext" in (status.parent / "cmdline").read_bytes()
    except OSError:
        return False


def _anonymous(process: Path) -> int:
    found = re.search(r"^RssAnon:\s+(\d+) kB$", (process / "status").read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _crowded(served: Served) -> Figure:
    """Fill the quota with small artifacts, then measure how long other requests take while room is made for large ones."""
    client, artifact_client = EndpointClient(served.url, token=served.token), ArtifactClient()
    for start in range(0, CROWD, 5000):
        value = [torch.full((1100,), start + number, dtype=torch.int64) for number in range(min(5000, CROWD - start))]
        with artifact_client.pack(value) as packed:
            loop_thread().run(upload(client, packed.artifacts, value, artifact_client, Retry()))
    worst = []
    for _ in in_rounds(CROWD_ROUNDS, f"requests beside {CROWD} artifacts"):
        quiet = _slowest_health(served, lambda: time.sleep(0.5))
        busy = _slowest_health(served, lambda: _out_and_back(client, torch.rand((6 << 20) // 4)))
        worst.append(max(busy - quiet, 0.0))
    parts = {"delay": seconds(median(worst)), "worst": seconds(max(worst))}
    what = f"{CROWD} artifacts near the quota: the longest delay of another request while 6 MiB are stored"
    return Figure.of(what, seconds(DELAY_SECONDS), [delay / DELAY_SECONDS for delay in worst], at_most=1.0, parts=parts)


def _slowest_health(served: Served, act: Callable[[], object]) -> float:
    """Return the longest time of a ``GET /health`` during ``act``, measured by another process."""
    command = [sys.executable, "-c", MEASURE_HEALTH, f"{served.url}/yggdrasill/v1/health", served.token]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        act()
        output, _ = process.communicate("\n")
    return float(output)


#: Prints a line when it begins and, after its input ends, the longest time of a request.
MEASURE_HEALTH = """
import sys, threading, time, http.client, urllib.parse
url, token = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2]
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), done.set()), daemon=True).start()
connection, slowest = http.client.HTTPConnection(url.netloc), 0.0
begun = False
while not done.is_set():
    start = time.perf_counter()
    connection.request("GET", url.path, headers={"Authorization": f"Bearer {token}"})
    connection.getresponse().read()
    if begun:
        slowest = max(slowest, time.perf_counter() - start)
    else:
        begun = True
        print("begun", flush=True)
    time.sleep(0.001)
print(slowest)
"""
