"""Endpoints of one slot each that call each other under load: every call returns its own result.

A ring: a deployment at one endpoint calls the other endpoint, which calls the first one again. Cross calls: both endpoints
wait for each other at the same time. A waiting job has released its slot, so another job can compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from samples.endpoints import TOKEN, EndpointProcess
from samples.http_client import Http, events_of, one_node, until
from samples.servers import pair, start_together
from yggdrasill.errors import InvalidConfig, YggdrasillError
from yggdrasill.remote import RemoteGraph
from yggdrasill.remote.loop_thread import loop_thread

CALLERS = 20


def through(pipeline_id: str, url: str, served: str, block: str = "double", **config: Any) -> dict[str, Any]:
    """A pipeline: ``block`` here, then what is served at ``url``."""
    return {
        "schema_version": "1.0",
        "pipeline_id": pipeline_id,
        "graphs": [
            {"pipeline_node_id": "here", "graph_config": one_node(block, outputs=(OUTPUT.get(block, "y"),), **config)},
            {"pipeline_node_id": "there", "endpoint_url": url, "graph_id": served},
        ],
        "edges": [{"source_node": "here", "source_port": OUTPUT.get(block, "y"), "target_node": "there", "target_port": "x"}],
        "exposed_inputs": [{"pipeline_node_id": "here", "port_name": "x", "name": "x"}],
        "exposed_outputs": [{"pipeline_node_id": "there", "port_name": "y", "name": "y"}],
    }


OUTPUT = {"accumulate": "total"}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EndpointProcess, EndpointProcess]]:
    one, other = pair(tmp_path_factory.mktemp("ends"), one={}, other={})
    try:
        start_together(one, other)
        deploy(one, other)
        yield one, other
    finally:
        one.kill()
        other.kill()


def deploy(one: EndpointProcess, other: EndpointProcess) -> None:
    """``leaf`` at both ends; ``cross`` calls the other's leaf; ``ring`` at the first goes to the other, back, and to and fro again."""
    here, there = Http(one), Http(other)
    for end in (here, there):
        end.deploy("leaf", one_node("slow", seconds=0.004))
    here.deploy("cross", through("cross", other.url, "leaf"), "pipeline")
    there.deploy("cross", through("cross", one.url, "leaf"), "pipeline")
    there.deploy("ring-3", through("ring-3", one.url, "cross"), "pipeline")
    here.deploy("ring", through("ring", other.url, "ring-3"), "pipeline")
    there.deploy("sum-back", through("sum-back", one.url, "leaf", "accumulate"), "pipeline")
    here.deploy("sum", through("sum", other.url, "sum-back", "accumulate"), "pipeline")


def served(end: EndpointProcess, graph_id: str) -> RemoteGraph:
    return RemoteGraph(end.url, graph_id, token=TOKEN)


def at_once(call: Callable[[int], Any], count: int = CALLERS) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count), timeout=60))


def assert_idle(*ends: EndpointProcess) -> None:
    for end in ends:
        queue = loop_thread().run(end.client().health())["queue"]
        assert (queue["queued"], queue["running"]) == (0, 0)
        jobs = loop_thread().run(end.client().jobs(limit=1000))
        assert {job["status"] for job in jobs if job["kind"] != "deploy"} == {"COMPLETED"}


def test_a_pipeline_served_at_one_end_runs_a_graph_at_the_other(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    one, other = ends
    before = len(loop_thread().run(other.client().jobs(graph_id="leaf")))
    assert served(one, "cross").run({"x": 3}) == {"y": 6}
    assert len(loop_thread().run(other.client().jobs(graph_id="leaf"))) == before + 1


def test_an_end_that_is_not_in_the_hosts_own_file_is_refused(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    with pytest.raises(InvalidConfig, match="not an endpoint known to this host"):
        loop_thread().run(
            ends[0].client().deploy("stray", {"kind": "pipeline", "config": through("stray", "http://127.0.0.1:9", "leaf"), "state": None})
        )


def test_ring_calls_under_load(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    ring = served(ends[0], "ring")
    assert at_once(lambda number: ring.run({"x": number})) == [{"y": 8 * number} for number in range(CALLERS)]
    assert_idle(*ends)


def test_cross_calls_under_load(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    crosses = [served(end, "cross") for end in ends]
    assert at_once(lambda number: crosses[number % 2].run({"x": number})) == [{"y": 2 * number} for number in range(CALLERS)]
    assert_idle(*ends)


def test_rings_cross_calls_and_plain_calls_under_load(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    one, other = ends
    kinds = [
        (served(one, "ring"), 8),
        (served(one, "cross"), 2),
        (served(other, "cross"), 2),
        (served(other, "ring-3"), 4),
        (served(one, "leaf"), 1),
    ]

    def call(number: int) -> Any:
        graph, factor = kinds[number % len(kinds)]
        return graph.run({"x": number}) == {"y": factor * number}

    assert all(at_once(call, 2 * CALLERS))
    assert_idle(*ends)


def test_calls_that_keep_state_at_both_ends_take_turns_and_lose_none(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    """The sums grow by one per call at the first end, and the second end sums those: triangular numbers, each once."""
    total = served(ends[0], "sum")
    found = [answer["y"] for answer in at_once(lambda _: total.run({"x": 1}))]
    assert sorted(found) == [number * (number + 1) // 2 for number in range(1, CALLERS + 1)]
    assert_idle(*ends)


def test_a_job_tells_which_calls_block_it_to_the_end_of_the_ring(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    one, other = ends
    here = Http(one)
    here.deploy("tell-leaf", one_node("slow", seconds=0.6))
    Http(other).deploy("tell-middle", through("tell-middle", one.url, "tell-leaf"), "pipeline")
    here.deploy("tell-ring", through("tell-ring", other.url, "tell-middle"), "pipeline")
    told = blocked(here, here.start("tell-ring", {"x": 1}))
    assert max(map(len, told)) == 2
    assert told[-1] == []


def test_a_job_behind_one_that_keeps_state_is_blocked_by_what_blocks_that(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    one, other = ends
    here = Http(one)
    Http(other).deploy("behind-leaf", one_node("slow", seconds=0.6))
    here.deploy("behind", through("behind", other.url, "behind-leaf", "accumulate"), "pipeline")
    jobs = [here.start("behind", {"x": 1}) for _ in range(3)]
    first, *others = at_once(lambda number: blocked(here, jobs[number]), 3)
    keys = first[0]
    assert [keys[:1] == told[0] for told in others] == [True, True]
    assert [here.result(job)["error"] for job in jobs] == [None] * 3
    assert {len({key for told in each for key in told}) for each in (first, *others)} == {1, 2, 3}


def test_a_ring_back_to_a_call_that_keeps_state_ends_with_an_error(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    one, other = ends
    here = Http(one)
    here.deploy("keeps", one_node("double"))
    Http(other).deploy("keeps-back", through("keeps-back", one.url, "keeps"), "pipeline")
    assert served(other, "keeps-back").run({"x": 1}) == {"y": 4}
    here.deploy("keeps", through("keeps", other.url, "keeps-back", "accumulate"), "pipeline")
    with pytest.raises(YggdrasillError, match=r"deadlock: graph 'keeps' keeps state"):
        served(one, "keeps").run({"x": 1})
    until(lambda: [row["status"] for row in here.get("/jobs?graph_id=keeps&limit=2").json()["jobs"]] == ["FAILED"] * 2)


def blocked(end: Http, job: str) -> list[list[str]]:
    """The calls that block a job, as its events tell them one after the other up to its end."""
    events = events_of(end.get(f"/jobs/{job}/events", stream=True))
    assert events[-1]["data"]["status"] == "COMPLETED", events
    return [event["data"]["by"] for event in events if event["event"] == "blocked"]


def test_a_cancelled_ring_leaves_nobody_waiting(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    one, other = ends
    Http(one).deploy("long", one_node("slow", seconds=20))
    Http(other).deploy("to-long", through("to-long", one.url, "long"), "pipeline")
    Http(one).deploy("long-ring", through("long-ring", other.url, "to-long"), "pipeline")
    here = Http(one)
    job = here.start("long-ring", {"x": 1})
    until(lambda: any(row["status"] == "IN_PROGRESS" for row in here.get("/jobs?graph_id=long").json()["jobs"]))
    here.post(f"/jobs/{job}/cancel", json={})
    for end, graph_id in ((one, "long-ring"), (other, "to-long"), (one, "long")):
        http = Http(end)
        until(lambda: [row["status"] for row in http.get(f"/jobs?graph_id={graph_id}").json()["jobs"]] == ["CANCELLED"])  # noqa: B023 - called at once
    assert served(one, "cross").run({"x": 3}) == {"y": 6}


def test_a_ring_is_found_again_after_both_ends_were_killed(ends: tuple[EndpointProcess, EndpointProcess]) -> None:
    """What is served is built again when it is first called, the ends asking each other for contracts meanwhile."""
    for end in ends:
        end.kill()
    start_together(*ends)
    kinds = [(served(ends[0], "ring"), 8), (served(ends[1], "cross"), 2), (served(ends[1], "ring-3"), 4)]
    assert all(at_once(lambda number: kinds[number % 3][0].run({"x": number}) == {"y": kinds[number % 3][1] * number}))
