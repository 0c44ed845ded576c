"""The jobs of an endpoint under load: submissions, status requests, and its health beside many streams and waiting jobs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

import benchmarks.blocks  # noqa: F401 - registers the blocks
from benchmarks.baselines import HttpPeer
from benchmarks.figures import Figure
from benchmarks.memory import resident
from benchmarks.processes import Served, endpoint
from benchmarks.timing import in_rounds, interleave, median, ratios, seconds
from yggdrasill.foundation import Graph
from yggdrasill.protocol.version import BASE_PATH
from yggdrasill.server_ext.jobs.model import Job, new_job_id
from yggdrasill.server_ext.jobs.store import JobStore

__all__ = ["PARTS", "Requests", "rate", "run"]

STORE_ROUNDS, STORE_JOBS = 7, 2000
STORE_PER_SECOND = 2000
HTTP_ROUNDS, HTTP_JOBS, HTTP_CONNECTIONS = 7, 300, 64
HTTP_PER_SECOND = 300
STATUS_ROUNDS, STATUS_REQUESTS = 15, 100
STATUS_SECONDS = 0.001
STREAMS, WAITING = 1000, 10_000
STREAMS_OF_ALL = 10
HEALTH_ROUNDS, HEALTH_REQUESTS = 3, 300
HEALTH_SECONDS = 0.050
MEMORY_BYTES = 500 << 20
#: Seconds that the running job keeps the slot, longer than the measurement takes.
HELD_SECONDS = 900.0
#: A text in each waiting call, which makes its request as large as that of a usual prompt.
PROMPT = "a small mill between trees, morning light, " * 20
GRAPHS = ("identity", "sleep")


def run(part: str | None = None) -> list[Figure]:
    """Return all figures, or those of one part."""
    parts = PARTS.values() if part is None else [PARTS[part]]
    return [figure for measured in parts for figure in measured()]


def _configs() -> dict[str, Any]:
    configs = {}
    for graph_id in GRAPHS:
        graph = Graph(graph_id)
        graph.add_node("only", f"bench/{graph_id}")
        graph.expose_input("only", "x", "x")
        graph.expose_output("only", "y", "y")
        configs[graph_id] = graph.to_config()
    return configs


def _call(x: Any, wait: float = 0.0) -> dict[str, Any]:
    return {"key": uuid.uuid4().hex, "inputs": {"skeleton": {"x": x}, "payloads": []}, "wait": wait, "detached": True}


# -- the store ----------------------------------------------------------------------------------------------------


def _store() -> list[Figure]:
    """Measure insertions that are all acknowledged, as many callers cause them: each waits for its own."""
    request = {"inputs": {"skeleton": {"x": PROMPT}, "payloads": []}, "options": {}, "run": {"seed": None, "path": [], "pass_index": 0}}

    async def submit(store: JobStore) -> None:
        jobs = [Job(new_job_id(), uuid.uuid4().hex, "graph", "0" * 64, "1" * 64, request) for _ in range(STORE_JOBS)]
        await asyncio.gather(*(asyncio.wrap_future(store.insert(job)) for job in jobs))

    with tempfile.TemporaryDirectory() as name:
        store = JobStore(Path(name) / "jobs.sqlite")
        taken = []
        for _ in in_rounds(STORE_ROUNDS, "submissions in the store"):
            begin = time.perf_counter()
            asyncio.run(submit(store))
            taken.append(time.perf_counter() - begin)
        stored = len(store.unfinished().result())
        store.close()
    if stored != STORE_JOBS * len(taken):
        raise AssertionError(f"{stored} jobs were stored")
    return [rate(f"{STORE_JOBS} durable submissions in the job store", taken, STORE_JOBS, STORE_PER_SECOND)]


def rate(what: str, taken: list[float], count: int, per_second: int) -> Figure:
    """Return the figure of ``count`` acts per round whose rate must be at least ``per_second``."""
    limit = count / per_second
    parts = {"a round": seconds(median(taken)), "per second": f"{count / median(taken):,.0f}"}
    return Figure.of(what, f"the limit of {per_second:,} per second", [value / limit for value in taken], at_most=1.0, parts=parts)


# -- one endpoint over HTTP ---------------------------------------------------------------------------------------


def _submissions() -> list[Figure]:
    """Measure submissions over many connections, and beside them requests of the same size to a plain aiohttp server."""
    with tempfile.TemporaryDirectory() as name, endpoint(Path(name), _configs(), max_queue=100_000) as served, HttpPeer.start() as peer:
        acts = {
            "endpoint": lambda: asyncio.run(_submit_many(served.url + _JOBS, served.token)),
            "aiohttp": lambda: asyncio.run(_submit_many(peer.url, "")),
        }
        taken = interleave("submissions over HTTP", acts, HTTP_ROUNDS)
    what = f"{HTTP_JOBS} submissions over HTTP, {HTTP_CONNECTIONS} connections"
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    return [
        rate(what, taken["endpoint"], HTTP_JOBS, HTTP_PER_SECOND),
        Figure.of(what, "the same bodies to a plain aiohttp server", ratios(taken["endpoint"], taken["aiohttp"]), parts=parts),
    ]


_JOBS = f"{BASE_PATH}/graphs/identity/jobs"


async def _submit_many(url: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=HTTP_CONNECTIONS)) as session:

        async def submit() -> None:
            async with session.post(url, json=_call(PROMPT)) as answer:
                answer.raise_for_status()
                await answer.read()

        await asyncio.gather(*(submit() for _ in range(HTTP_JOBS)))


def _status() -> list[Figure]:
    """Measure requests of one job's row, one after another on one connection, while nothing else happens."""
    with tempfile.TemporaryDirectory() as name, endpoint(Path(name), _configs()) as served:
        requests = Requests(served)
        job_id = requests.post(_JOBS, _call(PROMPT, wait=10.0))["job_id"]
        path = f"{BASE_PATH}/jobs/{job_id}"
        if requests.get(path)["status"] != "COMPLETED":
            raise AssertionError("the job did not complete")
        rounds = [median(requests.times(path, STATUS_REQUESTS)) for _ in in_rounds(STATUS_ROUNDS, "status")]
        requests.close()
    parts = {"a request": seconds(median(rounds))}
    return [
        Figure.of(
            "status of a job",
            f"the limit of {seconds(STATUS_SECONDS)}",
            [value / STATUS_SECONDS for value in rounds],
            at_most=1.0,
            parts=parts,
        )
    ]


class Requests:
    """Requests on one connection of a plain client, so that the time is that of the endpoint."""

    def __init__(self, served: Served) -> None:
        address = urlsplit(served.url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        self._headers = {"Authorization": f"Bearer {served.token}"}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str) -> Any:
        """Return the JSON answer of a GET."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON answer of a POST."""
        return self._request("POST", path, json.dumps(body).encode())

    def times(self, path: str, count: int) -> list[float]:
        """Return the seconds of each of ``count`` requests."""
        taken = []
        for _ in range(count):
            begin = time.perf_counter()
            self.get(path)
            taken.append(time.perf_counter() - begin)
        return taken

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise AssertionError(f"{method} {path}: {answer.status} {data[:200]!r}")
        return json.loads(data)


# -- many streams and waiting jobs --------------------------------------------------------------------------------


def _crowd() -> list[Figure]:
    """Measure /health beside event streams and waiting jobs while more jobs are submitted, and the memory of the process."""
    with tempfile.TemporaryDirectory() as name, endpoint(Path(name), _configs(), max_queue=2 * WAITING, grace=0.1) as served:
        alone = Requests(served)
        calm = alone.times(f"{BASE_PATH}/health", HEALTH_REQUESTS)
        alone.close()
        at_rest = resident(served.pid)
        slowest, used = asyncio.run(_measure_crowd(served))
    what = f"{STREAMS:,} event streams and {WAITING:,} waiting jobs"
    health = {"99 of 100 below": seconds(median(slowest)), "without load": seconds(_percentile(calm))}
    limit = f"the limit of {seconds(HEALTH_SECONDS)}"
    figures = [Figure.of(f"{what}: a health request", limit, [value / HEALTH_SECONDS for value in slowest], at_most=1.0, parts=health)]
    memory, beside = f"{what}: memory of the endpoint", f"the limit of {MEMORY_BYTES >> 20} MiB"
    if at_rest is None or used is None:
        return [*figures, Figure.missing(memory, beside, "this system does not report the memory of a process", at_most=1.0)]
    parts = {"endpoint": f"{used >> 20} MiB", "without load": f"{at_rest >> 20} MiB"}
    return [*figures, Figure.of(memory, beside, [used / MEMORY_BYTES], at_most=1.0, parts=parts)]


def _percentile(taken: list[float]) -> float:
    """Return the time that 99 of 100 requests stay below."""
    return statistics.quantiles(taken, n=100, method="inclusive")[98]


async def _measure_crowd(served: Served) -> tuple[list[float], int | None]:
    """Return for each round the time that 99 of 100 health requests stay below, and the largest memory of the process."""
    headers = {"Authorization": f"Bearer {served.token}"}
    connector = aiohttp.TCPConnector(limit=HTTP_CONNECTIONS)
    async with aiohttp.ClientSession(served.url, headers=headers, connector=connector) as session:
        await _submit(session, "sleep", HELD_SECONDS)
        job_ids = await _queue_jobs(session)
        async with _streams(served, job_ids):
            health = (await _get(session, "/health"))["queue"]
            if health["queued"] != WAITING:
                raise AssertionError(f"{health['queued']} jobs wait")
            rounds, used = [], resident(served.pid)
            for _ in in_rounds(HEALTH_ROUNDS, "health under load"):
                taken = []
                for number in range(HEALTH_REQUESTS):
                    if number % 10 == 0:
                        await _submit(session, "identity", PROMPT)
                    begin = time.perf_counter()
                    await _get(session, "/health")
                    taken.append(time.perf_counter() - begin)
                    await asyncio.sleep(0.005)
                rounds.append(_percentile(taken))
                found = resident(served.pid)
                used = None if used is None or found is None else max(used, found)
            return rounds, used


async def _queue_jobs(session: aiohttp.ClientSession) -> list[str]:
    """Submit the waiting jobs, as many at a time as there are connections, and return their ids."""
    job_ids: list[str] = []

    async def submit_some(count: int) -> None:
        job_ids.extend([await _submit(session, "identity", PROMPT) for _ in range(count)])

    workers = [WAITING // HTTP_CONNECTIONS + (number < WAITING % HTTP_CONNECTIONS) for number in range(HTTP_CONNECTIONS)]
    await asyncio.gather(*map(submit_some, workers))
    return job_ids


async def _submit(session: aiohttp.ClientSession, graph_id: str, x: Any) -> str:
    async with session.post(f"{BASE_PATH}/graphs/{graph_id}/jobs", json=_call(x)) as answer:
        answer.raise_for_status()
        return str((await answer.json())["job_id"])


async def _get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(BASE_PATH + path) as answer:
        answer.raise_for_status()
        return await answer.json()


@contextlib.asynccontextmanager
async def _streams(served: Served, job_ids: list[str]) -> AsyncIterator[None]:
    """Open event streams, each of one waiting job but a few of all jobs, and read them during the block."""
    address = urlsplit(served.url)
    paths = ["/events"] * STREAMS_OF_ALL + [f"/jobs/{job_id}/events" for job_id in job_ids[: STREAMS - STREAMS_OF_ALL]]
    readers: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def read(reader: asyncio.StreamReader) -> None:
        while await reader.read(1 << 16):
            pass

    try:
        for path in paths:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            head = f"GET {BASE_PATH}{path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {served.token}\r\n\r\n"
            writer.write(head.encode())
            writers.append(writer)
            first = await reader.readline()
            if b" 200 " not in first:
                raise AssertionError(f"a stream was answered with {first!r}")
            readers.append(asyncio.create_task(read(reader)))
        yield
        if any(reader.done() for reader in readers):
            raise AssertionError("the endpoint closed a stream")
    finally:
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for writer in writers:
            writer.close()


#: The parts that can be measured alone.
PARTS = {"store": _store, "http": _submissions, "status": _status, "crowd": _crowd}
