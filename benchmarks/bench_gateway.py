"""The gateway under load: durable submissions over HTTP, the overhead of a warm job, and lists of many jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.bench_endpoint import Requests, rate
from benchmarks.figures import Figure
from benchmarks.processes import Served, endpoint, started
from benchmarks.timing import in_rounds, interleave, median, ratios, seconds
from yggdrasill.foundation import Graph
from yggdrasill.protocol.version import BASE_PATH

__all__ = ["PARTS", "run"]

HTTP_ROUNDS, HTTP_JOBS, HTTP_CONNECTIONS = 7, 300, 64
HTTP_PER_SECOND = 300
WARM_ROUNDS, WARM_JOBS = 15, 20
WARM_SECONDS = 0.015
LISTED, LIST_ROUNDS = 1000, 15
LIST_SECONDS = 0.050
QUEUED = 10_000
#: A text in each job, which makes its request as large as that of a usual prompt.
PROMPT = "a small mill between trees, morning light, " * 20


def run(part: str | None = None) -> list[Figure]:
    """Return all figures, or those of one part."""
    parts = PARTS.values() if part is None else [PARTS[part]]
    return [figure for measured in parts for figure in measured()]


@contextlib.contextmanager
def _gateway(folder: Path, served: Served | None = None, **settings: Any) -> Iterator[Served]:
    """Start a gateway before an endpoint, with the pool ``pool``, which no worker serves."""
    folder.mkdir(parents=True, exist_ok=True)
    file, token = folder / "endpoints.yaml", secrets.token_hex(16)
    known = {} if served is None else {"forge": {"url": served.url, "token_env": "BENCH_ENDPOINT"}}
    file.write_text(json.dumps({"endpoints": known}), encoding="utf-8")
    chosen = {"port": 0, "data_dir": str(folder / "data"), "endpoints": str(file), "pools": ["pool"], "max_queue": 100_000, **settings}
    environment = {"YGGDRASILL_TOKEN": token, "BENCH_ENDPOINT": "" if served is None else served.token}
    with started(["-m", "yggdrasill.gateway", json.dumps(chosen)], "{", **environment) as (pid, line):
        yield Served(json.loads("{" + line)["url"], token, pid)


async def _submit_many(served: Served, count: int) -> None:
    """Submit jobs to the pool, over as many connections as there are callers; each answer means that a row is committed."""
    connector = aiohttp.TCPConnector(limit=HTTP_CONNECTIONS)
    async with aiohttp.ClientSession(served.url, headers={"Authorization": f"Bearer {served.token}"}, connector=connector) as session:

        async def submit() -> None:
            async with session.post("/v2/pool/run", json={"input": {"prompt": PROMPT}}) as answer:
                answer.raise_for_status()
                await answer.read()

        await asyncio.gather(*(submit() for _ in range(count)))


def _submissions() -> list[Figure]:
    """Measure submissions, all of which are stored when the last answer arrives."""
    with tempfile.TemporaryDirectory() as name, _gateway(Path(name)) as served:
        taken = []
        for _ in in_rounds(HTTP_ROUNDS, "submissions to the gateway"):
            begin = time.perf_counter()
            asyncio.run(_submit_many(served, HTTP_JOBS))
            taken.append(time.perf_counter() - begin)
        requests = Requests(served)
        stored = requests.get("/v2/pool/health")["jobs"]["inQueue"]
        requests.close()
    if stored != HTTP_JOBS * len(taken):
        raise AssertionError(f"{stored} jobs were stored")
    return [rate(f"{HTTP_JOBS} submissions over HTTP, {HTTP_CONNECTIONS} connections, each durable", taken, HTTP_JOBS, HTTP_PER_SECOND)]


def _config() -> dict[str, Any]:
    graph = Graph("identity")
    graph.add_node("only", "bench/identity")
    graph.expose_input("only", "x", "x")
    graph.expose_output("only", "y", "y")
    return graph.to_config()


def _warm() -> list[Figure]:
    """Measure jobs one after another, through the gateway and at the endpoint itself; both wait for the result."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(endpoint(folder / "endpoint", {"identity": _config()}))
        direct, through = Requests(served), Requests(stack.enter_context(_gateway(folder / "gateway", served)))
        stack.callback(direct.close)
        stack.callback(through.close)

        def at_endpoint() -> None:
            for _ in range(WARM_JOBS):
                call = {"key": uuid.uuid4().hex, "inputs": {"skeleton": {"x": PROMPT}, "payloads": []}, "wait": 30.0}
                _check(direct.post(f"{BASE_PATH}/graphs/identity/jobs", call))

        def at_gateway() -> None:
            for _ in range(WARM_JOBS):
                _check(through.post("/v1/workflows", {"graph": "identity", "inputs": {"x": PROMPT}, "wait": 30.0}))

        taken = interleave("warm jobs", {"gateway": at_gateway, "endpoint": at_endpoint}, WARM_ROUNDS)
    above = [(more - less) / WARM_JOBS for more, less in zip(taken["gateway"], taken["endpoint"], strict=True)]
    parts = {side: seconds(median(times) / WARM_JOBS) for side, times in taken.items()}
    limit = f"the limit of {seconds(WARM_SECONDS)}"
    return [
        Figure.of("overhead of a warm job", limit, [value / WARM_SECONDS for value in above], at_most=1.0, parts=parts),
        Figure.of("a warm job", "the same at the endpoint itself", ratios(taken["gateway"], taken["endpoint"]), parts=parts),
    ]


def _check(row: Any) -> None:
    if row["status"] != "COMPLETED":
        raise AssertionError(f"the job ended as {row['status']}")


def _lists() -> list[Figure]:
    """Measure lists of queued jobs, with no more of them than are listed, and beside ten times as many."""
    figures = []
    with tempfile.TemporaryDirectory() as name, _gateway(Path(name)) as served:
        for queued in (LISTED, QUEUED):
            requests = Requests(served)
            present = requests.get("/v2/pool/health")["jobs"]["inQueue"]
            asyncio.run(_submit_many(served, queued - present))
            rounds = []
            for _ in in_rounds(LIST_ROUNDS, f"lists beside {queued:,} queued jobs"):
                begin = time.perf_counter()
                found = requests.get(f"/v1/queue?limit={LISTED}")["jobs"]
                rounds.append(time.perf_counter() - begin)
                if len(found) != LISTED:
                    raise AssertionError(f"{len(found)} jobs were listed")
            requests.close()
            limit = f"the limit of {seconds(LIST_SECONDS)}"
            parts = {"a list": seconds(median(rounds))}
            what = f"{LISTED:,} jobs listed over HTTP, {queued:,} queued"
            figures.append(Figure.of(what, limit, [value / LIST_SECONDS for value in rounds], at_most=1.0, parts=parts))
    return figures


#: The parts that can be measured alone.
PARTS = {"http": _submissions, "warm": _warm, "lists": _lists}
