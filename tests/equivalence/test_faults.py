"""Endpoints, callers and connections that die in the middle: every call that waits gets its one, right result."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.endpoints import TESTS, TOKEN, EndpointProcess, cutter, registry_of
from samples.graphs import graph_of
from samples.http_client import GateFile, Http, in_background, one_node, until
from samples.recorders import REGISTRY, exact, witnessed
from samples.servers import Servers
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import Endpoint, RemoteGraph
from yggdrasill.remote.loop_thread import loop_thread

ORPHAN_AFTER = 1.0
CALLER = """
import sys
from yggdrasill.remote import EndpointClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.calls import Call, execute_remote_call
from yggdrasill.remote.artifact_client import ArtifactClient
url, token, path, orphan_after = sys.argv[1:]
value, artifact_client = {"path": path, "x": 1}, ArtifactClient.shared()
with artifact_client.pack(value) as packed:
    run = {"seed": 1, "path": [], "pass_index": 0}
    call = Call("gate", packed.wire, value, artifact_client, run, orphan_after=float(orphan_after))
    loop_thread().run(execute_remote_call(EndpointClient(url, token=token), call))
"""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """An endpoint with one slot that may be killed."""
    process = EndpointProcess("mortal", tmp_path_factory.mktemp("mortal"), plugins=["samples.recorder_plugin"]).start()
    http = Http(process)
    http.deploy("gate", one_node("gate", ("path", "x")))
    yield http
    process.kill()


def jobs(endpoint: Http, graph_id: str = "gate") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = endpoint.get(f"/jobs?graph_id={graph_id}").json()["jobs"]
    return rows


def test_callers_of_a_killed_endpoint_get_their_one_result_from_its_next_process(mortal: Http, tmp_path: Path) -> None:
    before = len(jobs(mortal))
    gate = RemoteGraph(mortal.process.url, "gate", token=TOKEN)
    doors = [GateFile(tmp_path) for _ in range(4)]
    inputs = [{"path": str(gate_file.path), "x": torch.arange(6000.0) + number} for number, gate_file in enumerate(doors)]
    running = in_background(gate.run, inputs[0])
    doors[0].wait_begun()
    queued = [in_background(gate.run, given) for given in inputs[1:]]
    until(lambda: len(jobs(mortal)) == before + 4)

    mortal.process.kill()
    for gate_file in doors:
        gate_file.open()
    assert [gate_file.runs for gate_file in doors] == [1, 0, 0, 0]
    mortal.process.start()

    for given, call in zip(inputs, [running, *queued], strict=True):
        assert exact(call.result(60)) == exact({"y": given["x"]})
    assert [gate_file.runs for gate_file in doors] == [2, 1, 1, 1]
    assert [job["status"] for job in jobs(mortal)[:4]] == ["COMPLETED"] * 4
    assert len(jobs(mortal)) == before + 4


def test_a_pipeline_goes_on_when_one_of_its_endpoints_is_killed_and_comes_back(mortal: Http, servers: Servers, tmp_path: Path) -> None:
    """The caller's state of the run lives here; only the graph that was lost runs again."""
    gate_file = GateFile(tmp_path)
    pipeline = Pipeline("round-trip")
    for name in ("first", "last"):
        pipeline.add_graph(graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id=name).place(servers.registry("forge")), name)
    pipeline.add_graph(RemoteGraph(mortal.process.url, "gate", token=TOKEN), "gate")
    pipeline.add_edge("first", "y", "gate", "x")
    pipeline.add_edge("gate", "y", "last", "x")
    pipeline.infer_exposed_ports()

    with witnessed(servers.heard) as heard:
        call = in_background(pipeline.run, {"first:x": torch.arange(6000.0), "gate:path": str(gate_file.path)})
        gate_file.wait_begun()
        mortal.process.kill()
        mortal.process.start()
        gate_file.wait_begun(2)
        gate_file.open()
        outputs = call.result(60)

    assert exact(outputs) == exact({"last:y": 4 * torch.arange(6000.0)})
    assert {place: len(calls) for place, calls in heard.items()} == {"first/d": 1, "last/d": 1}


def test_the_job_of_a_killed_caller_is_cancelled_after_orphan_after(mortal: Http, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    caller = start_caller(mortal, gate_file)
    try:
        gate_file.wait_begun()
        time.sleep(2 * ORPHAN_AFTER)
        assert jobs(mortal)[0]["status"] == "IN_PROGRESS"
    finally:
        caller.kill()
        caller.wait()

    gone = time.monotonic()
    until(lambda: status_unseen(mortal) == "CANCELLED")
    assert time.monotonic() - gone > ORPHAN_AFTER / 2
    assert "caller was disconnected" in jobs(mortal)[0]["error"]["message"]
    other = GateFile(tmp_path)
    other.open()
    assert mortal.run("gate", other.inputs(x=5)) == {"y": 5}
    assert gate_file.runs == 1


def start_caller(endpoint: Http, gate_file: GateFile) -> subprocess.Popen[bytes]:
    arguments = [endpoint.process.url, TOKEN, str(gate_file.path), str(ORPHAN_AFTER)]
    return subprocess.Popen([sys.executable, "-c", CALLER, *arguments], cwd=TESTS)


def status_unseen(endpoint: Http) -> str:
    """The newest job's status from the list, because asking for the job itself would be a sign of its caller."""
    return str(jobs(endpoint)[0]["status"])


# -- connections ------------------------------------------------------------------------------------------------------


def doubling(endpoint: Endpoint) -> Any:
    graph = graph_of(
        {"d": "double", "n": ("noise", {"shape": [700, 1000]})}, [], ["d.x = x"], ["d.y = y", "n.noise = noise"], graph_id="cut"
    )
    return graph.place(registry_of(endpoint, default=endpoint.name))


@pytest.mark.parametrize("after, times", [(200, 4), (100_000, 4), (3_000_000, 4), (7_000_000, 2)], ids=str)
def test_a_connection_cut_in_mid_transfer_changes_no_byte(servers: Servers, after: int, times: int) -> None:
    """8 MB go up and 11 MB come down through a proxy that cuts connections; the graph runs once.

    Both directions resume at the byte, so connections that carry 7 MB are cut once each way.
    """
    x = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(after))
    expected = graph_of({"n": ("noise", {"shape": [700, 1000]})}, [], [], ["n.noise = noise"], graph_id="cut").run(seed=3)
    with cutter(servers.forge) as proxy:
        remote = doubling(servers.forge.endpoint(proxy.url))
        remote.run({"x": torch.zeros(1)}, seed=0)
        proxy.cut(times=times, after=after)
        with witnessed(servers.heard) as heard:
            outputs = remote.run({"x": x}, seed=3)
    assert proxy.cuts == 0
    assert exact(outputs) == exact({"y": x + x, **expected})
    assert {place: len(calls) for place, calls in heard.items()} == {"d": 1, "n": 1}


def test_a_connection_cut_between_two_endpoints_changes_no_byte(servers: Servers) -> None:
    """Others fetch from ``attic`` through a proxy, which cuts them; what ``forge`` cannot fetch, the caller brings."""
    proxy = servers.attic_proxy
    pipeline, local = handing_over().place(servers.registry(gives="attic", takes="forge")), handing_over()
    before = proxy.to_client
    pipeline.run(seed=1)
    assert proxy.to_client - before > 8_000_000
    proxy.cut(times=3, after=1_000_000)
    assert exact(pipeline.run(seed=2)) == exact(local.run(seed=2))
    assert proxy.cuts < 3
    proxy.cut(times=10_000, after=1)
    assert exact(pipeline.run(seed=3)) == exact(local.run(seed=3))
    assert proxy.cuts < 10_000
    proxy.cut(times=0, after=0)


def handing_over() -> Pipeline:
    pipeline = Pipeline("hand-over")
    pipeline.add_graph(Graph.from_config(noise_config(), REGISTRY))
    pipeline.add_graph(graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="takes"))
    pipeline.add_edge("gives", "noise", "takes", "x")
    pipeline.expose_output("takes", "y", "y")
    return pipeline


def noise_config() -> dict[str, Any]:
    return {**one_node("noise", (), ("noise",), shape=[2100, 1000]), "graph_id": "gives"}


def test_an_endpoint_that_stands_still_for_a_while_is_waited_for(mortal: Http, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    gate = RemoteGraph(mortal.process.url, "gate", token=TOKEN)
    call = in_background(gate.run, gate_file.inputs(x=7))
    gate_file.wait_begun()
    mortal.process.pause()
    time.sleep(1.0)
    gate_file.open()
    mortal.process.resume()
    assert call.result(30) == {"y": 7}
    assert gate_file.runs == 1
    assert loop_thread().run(mortal.process.client().health())["queue"]["running"] == 0
