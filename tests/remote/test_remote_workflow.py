"""A workflow that is sent with its calls, against endpoint processes that imitate ComfyUI."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.comfy_graphs import InBackground, node, until
from samples.endpoints import EndpointProcess, cutter, free_port
from samples.graphs import bits
from samples.http_client import GateFile, in_background, one_node
from samples.served_prompts import DOUBLE, EARLY_AND_LATE, GATE
from yggdrasill.errors import (
    AccessDenied,
    Cancelled,
    EndpointUnreachable,
    InvalidArgument,
    InvalidConfig,
    MissingInput,
    QueueFull,
    UnknownBlockType,
)
from yggdrasill.executor.context import CancelToken, RunContext, enter_run
from yggdrasill.foundation.contract import Runnable
from yggdrasill.remote import Endpoint, RemoteGraph, RemoteStage, RemoteWorkflow, RemoteWorld, RetryPolicy
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.downloads import RemoteHandle
from yggdrasill.remote.loop_thread import loop_thread

MIB = 1 << 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EndpointProcess, EndpointProcess]]:
    """Two endpoints that may fetch from each other."""
    folder = tmp_path_factory.mktemp("stand-ins")
    ports = [free_port(), free_port()]
    plugins = ["samples.served_blocks", "samples.fake_comfyui"]
    both = [
        EndpointProcess(name, folder / name, plugins=plugins, slots=4, port=port, peers=[f"http://127.0.0.1:{other}"])
        for name, port, other in zip(("one", "two"), ports, reversed(ports), strict=True)
    ]
    for process in both:
        process.begin()
    yield both[0].ready(), both[1].ready()
    for process in both:
        process.stop()


@pytest.fixture
def one(pair: tuple[EndpointProcess, EndpointProcess]) -> EndpointProcess:
    return pair[0]


@pytest.fixture
def two(pair: tuple[EndpointProcess, EndpointProcess]) -> EndpointProcess:
    return pair[1]


def workflow(*endpoints: EndpointProcess, prompt: Any = None, **options: Any) -> RemoteWorkflow:
    return RemoteWorkflow(prompt or DOUBLE, endpoints=[endpoint.endpoint() for endpoint in endpoints], **options)


def test_it_runs_and_leaves_nothing_served(one: EndpointProcess) -> None:
    x = torch.randn(5000)
    assert bits(workflow(one).run({"x": x})) == bits({"y": x + x})
    assert bits(asyncio.run(workflow(one).run_async({"x": x}))) == bits({"y": x + x})
    assert loop_thread().run(one.client().graphs()) == []


def test_it_is_a_graph_whose_contract_needs_no_endpoint() -> None:
    remote = RemoteWorkflow(DOUBLE, "double", url="http://127.0.0.1:9")
    assert isinstance(remote, Runnable)
    assert remote.get_input_spec() == [{"name": "x"}]
    assert remote.get_output_spec(include_dtype=True) == [{"name": "y", "dtype": "any", "comfy_type": "*", "optional": False}]
    assert ComfyGraph.from_config(remote.to_config()).outputs.keys() == {"y"}


def test_a_prompt_that_is_none_and_no_endpoint_are_refused_at_once() -> None:
    with pytest.raises(InvalidConfig, match="needs a class_type"):
        RemoteWorkflow({"1": {}}, url="http://127.0.0.1:9")
    with pytest.raises(InvalidArgument, match="one of url, endpoint and endpoints"):
        RemoteWorkflow(DOUBLE)


def test_what_an_endpoint_lacks_is_named_before_anything_is_sent(one: EndpointProcess, forge: EndpointProcess) -> None:
    with pytest.raises(UnknownBlockType, match=r"Unknown node class 'NoSuchNode'.*at endpoint 'one'"):
        workflow(one, prompt={**DOUBLE, "9": node("NoSuchNode")}).run({"x": 1})
    with pytest.raises(InvalidConfig, match="endpoint 'forge' is not a ComfyUI"):
        workflow(forge).run({"x": 1})


def test_an_error_of_the_run_keeps_its_class(one: EndpointProcess) -> None:
    with pytest.raises(MissingInput, match="no value for 'x'"):
        workflow(one).run({})


def test_a_lost_endpoint_is_followed_by_the_next(one: EndpointProcess) -> None:
    down = Endpoint("down", f"http://127.0.0.1:{free_port()}")
    retry_policy = RetryPolicy(first=0.2)
    remote = RemoteWorkflow(DOUBLE, endpoints=[down, one.endpoint()], retry_policy=retry_policy)
    assert remote.run({"x": 4}) == {"y": 8}
    with pytest.raises(EndpointUnreachable):
        RemoteWorkflow(DOUBLE, endpoint=down, retry_policy=retry_policy).run({"x": 4})


def test_a_cut_connection_finds_the_same_job_and_sends_no_byte_twice(one: EndpointProcess, tmp_path: Path) -> None:
    gate_file, x = GateFile(tmp_path), torch.randn(MIB)
    with cutter(one) as proxy:
        remote = RemoteWorkflow(GATE, endpoint=one.endpoint(proxy.url))
        threading.Timer(0.8, proxy.sever).start()
        threading.Timer(0.9, gate_file.open).start()
        assert bits(remote.run(gate_file.inputs(x=x))) == bits({"y": x})
        sent = proxy.to_server
        assert 4 * MIB < sent < 5 * MIB
        assert bits(remote.run(gate_file.inputs(x=x))) == bits({"y": x})
        assert proxy.to_server - sent < MIB
    assert gate_file.runs == 2


def test_an_output_is_fetched_while_the_rest_runs(one: EndpointProcess, tmp_path: Path) -> None:
    gate_file, x = GateFile(tmp_path), torch.randn(MIB)
    with cutter(one) as proxy:
        remote = RemoteWorkflow(EARLY_AND_LATE, endpoint=one.endpoint(proxy.url))
        running = in_background(remote.call, gate_file.inputs(x=x), RunContext(0, progress=lambda *facts: None))
        until(lambda: proxy.to_client > 4 * MIB)
        assert not running.done()
        gate_file.open()
        assert bits(running.result(30)) == bits({"early": x + x, "late": x})
        assert proxy.to_client < 5 * MIB


def test_outputs_are_handed_over_from_endpoint_to_endpoint(one: EndpointProcess, two: EndpointProcess) -> None:
    x = torch.randn(MIB)
    with cutter(one) as to_one, cutter(two) as to_two:
        first = RemoteWorkflow(DOUBLE, endpoint=one.endpoint(to_one.url))
        second = RemoteWorkflow(DOUBLE, endpoint=two.endpoint(to_two.url))
        with enter_run() as context:
            context.node = "first"
            between = first.run({"x": x})["y"]
        assert isinstance(between, RemoteHandle)
        assert bits(second.run({"x": between})) == bits({"y": 4 * x})
        assert to_one.to_client < MIB
        assert to_two.to_server < MIB


def test_a_cancelled_token_cancels_the_job(one: EndpointProcess, tmp_path: Path) -> None:
    gate_file, token = GateFile(tmp_path), CancelToken()

    def cancel_soon() -> None:
        gate_file.wait_begun()
        token.cancel("enough")

    threading.Thread(target=cancel_soon).start()
    with pytest.raises(Cancelled, match="enough"):
        workflow(one, prompt=GATE, graph_id="cancelled").call(gate_file.inputs(x=1), RunContext(0, token=token))
    gate_file.open()
    rows = loop_thread().run(one.client().jobs(graph_id="cancelled"))
    assert [row["status"] in ("CANCELLED", "IN_PROGRESS") for row in rows] == [True]


def test_a_host_receives_the_key_and_the_progress(one: EndpointProcess, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    keys: list[str] = []
    reported: list[tuple[float, float]] = []

    def progress(place: str, done: float, total: float, text: str | None) -> None:
        reported.append((done, total))
        gate_file.open()

    context = RunContext(0, ("node",), progress=progress)
    assert workflow(one, prompt=GATE).call(gate_file.inputs(x=5), context, on_key=keys.append) == {"y": 5}
    assert reported[0] == (1.0, 2.0)
    assert [row["status"] for row in loop_thread().run(one.client().jobs()) if row["key"] == keys[0]] == ["COMPLETED"]


def test_a_watcher_receives_the_events_of_a_job_that_finished_at_once(one: EndpointProcess) -> None:
    reported: list[tuple[str, str]] = []
    remote = workflow(one)
    for _ in range(2):
        assert remote.call({"x": 2}, RunContext(0), watch=lambda kind, data: reported.append((kind, str(data.get("text"))))) == {"y": 4}
    assert reported == [("log", "doubling")] * 2


def test_a_preview_method_that_is_none_is_refused(one: EndpointProcess) -> None:
    assert workflow(one).run({"x": 2}, preview_method="latent2rgb") == {"y": 4}
    with pytest.raises(InvalidArgument, match=r"Unknown preview_method 'best'. Available: 'auto', 'default', 'latent2rgb'"):
        workflow(one).run({"x": 2}, preview_method="best")


def test_an_endpoint_whose_queue_is_too_long_is_passed_over(one: EndpointProcess, two: EndpointProcess, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    client = one.client()
    loop_thread().run(client.deploy("gate", {"kind": "graph", "config": one_node("gate", ("path", "x")), "state": None}))
    # Unlike a workflow, a graph of blocks holds its slot while it runs or waits for its block; there are four slots.
    gate = RemoteGraph(endpoint=client, graph_id="gate")
    busy = [InBackground(lambda: gate.run(gate_file.inputs(x=1))) for _ in range(5)]
    until(lambda: loop_thread().run(one.client().health())["queue"]["queued"] == 1)
    try:
        assert workflow(one, two, max_queued=0, graph_id="next").run({"x": 2}) == {"y": 4}
        assert [row["status"] for row in loop_thread().run(two.client().jobs(graph_id="next"))] == ["COMPLETED"]
        with pytest.raises(QueueFull, match="endpoint 'one' has 1 jobs waiting, and the limit for 'next' is 0"):
            workflow(one, max_queued=0, graph_id="next").run({"x": 2})
    finally:
        gate_file.open()
    assert [call.wait() for call in busy] == [{"y": 1}] * 5
    loop_thread().run(client.remove("gate"))


def test_an_unreachable_or_refusing_endpoint_is_named(one: EndpointProcess) -> None:
    down = Endpoint("down", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(EndpointUnreachable, match="endpoint 'down': nothing answers at") as caught:
        RemoteWorkflow(DOUBLE, endpoint=down, retry_policy=RetryPolicy(first=0.1)).run({"x": 4})
    assert caught.value.details["endpoint"] == "down"
    with pytest.raises(AccessDenied, match=r"endpoint 'one' at http.*: The token is wrong"):
        RemoteWorkflow(DOUBLE, endpoint=Endpoint("one", one.url, secret="not-the-token")).run({"x": 4})


def test_a_caller_says_how_long_its_job_goes_on_without_it(one: EndpointProcess, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    with cutter(one) as proxy:
        remote = RemoteWorkflow(
            GATE, "orphan", endpoint=one.endpoint(proxy.url), orphan_after=0.3, retry_policy=RetryPolicy(first=0.2, later=0.2)
        )
        lost = InBackground(lambda: remote.run(gate_file.inputs(x=1)))
        gate_file.wait_begun()
        proxy.cut(times=10_000, after=0)
        proxy.sever()
        with pytest.raises(EndpointUnreachable):
            lost.wait()
        time.sleep(1.0)
        gate_file.open()
    until(lambda: [row["status"] for row in loop_thread().run(one.client().jobs(graph_id="orphan"))] == ["CANCELLED"])


@pytest.mark.parametrize("kind", [RemoteGraph, RemoteStage, RemoteWorld])
def test_orphan_after_is_at_most_a_day(kind: type[RemoteGraph]) -> None:
    assert kind("http://127.0.0.1:9", "graph", orphan_after=90).orphan_after == 90.0
    with pytest.raises(InvalidArgument, match="orphan_after must be greater than 0 and at most 86400 seconds"):
        kind("http://127.0.0.1:9", "graph", orphan_after=0)
