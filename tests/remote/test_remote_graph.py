"""A graph at an endpoint runs like the local graph: results, errors, seeds, loops, progress, cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from typing import Any

import pytest
import torch

from samples.endpoints import TOKEN, EndpointProcess, registry_of
from samples.events import Events
from samples.graphs import bits, graph_of
from yggdrasill.errors import (
    AccessDenied,
    BlockFailed,
    BuildMismatch,
    Cancelled,
    CannotTravel,
    EndpointUnreachable,
    InvalidArgument,
    MissingInput,
    TimedOut,
    UnknownBlockType,
    UnknownGraph,
    UnknownName,
)
from yggdrasill.executor.context import CancelToken, enter_run
from yggdrasill.foundation import AbstractBaseBlock, Graph, Port, PortDirection
from yggdrasill.remote import EndpointClient, RemoteGraph, RetryPolicy
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.values.handles import Handle, load_handles


def placed(graph: Graph, endpoint: EndpointProcess) -> Any:
    return graph.place(registry_of(endpoint, default=endpoint.name))


def noisy() -> Graph:
    return graph_of(
        {"n": ("noise", {"shape": [40, 200]}), "s": "scale"},
        ["n.noise -> s.x"],
        ["s.factor = factor"],
        ["s.y = out", "n.noise = noise"],
        graph_id="noisy",
    )


def test_the_result_is_the_local_one_bit_for_bit(forge: EndpointProcess) -> None:
    local, remote = noisy(), placed(noisy(), forge)
    for factor in (2.0, torch.randn(40, 200).t().contiguous().t(), torch.tensor([float("nan")])):
        assert bits(remote.run({"factor": factor}, seed=5)) == bits(local.run({"factor": factor}, seed=5))
    assert bits(remote.run({}, seed=6)) != bits(local.run({}, seed=5))


def test_a_remote_graph_draws_by_its_place_in_the_run(forge: EndpointProcess) -> None:
    local, remote = noisy(), placed(noisy(), forge)
    results = []
    for graph in (local, remote):
        with enter_run(seed=3, path=("stage", "pipeline"), pass_index=2) as context:
            context.node = "noisy"
            out = graph.run({})
            results.append(bits({key: value.load() if isinstance(value, Handle) else value for key, value in out.items()}))
    assert results[0] == results[1]


class Thrice(AbstractBaseBlock):
    """Runs a graph three times in one call."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.graph = graph

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": [load_handles(self.graph.run({"factor": 2.0})["noise"]) for _ in range(3)]}


def test_several_remote_runs_in_one_call_draw_what_local_ones_draw(forge: EndpointProcess) -> None:
    results = []
    for inner in (noisy(), placed(noisy(), forge)):
        graph = Graph("outer")
        graph.add_node(Thrice(inner), node_id="o")
        graph.expose_output("o", "y", "y")
        results.append([bits(noise) for noise in graph.run(seed=4)["y"]])
    assert results[0] == results[1]
    assert len(set(results[0])) == 3


def test_its_spec_and_config_are_those_of_the_graph(forge: EndpointProcess) -> None:
    local, remote = noisy(), placed(noisy(), forge)
    for include_dtype in (False, True):
        assert remote.get_input_spec(include_dtype) == local.get_input_spec(include_dtype)
        assert remote.get_output_spec(include_dtype) == local.get_output_spec(include_dtype)
    assert remote.to_config() == local.to_config()
    assert remote.state_dict() == {}
    assert not remote.deterministic
    assert not remote.stateful


def test_a_url_and_an_id_suffice(forge: EndpointProcess) -> None:
    served = placed(noisy(), forge).contract.graph_id
    remote = RemoteGraph(forge.url, served, token=TOKEN)
    assert remote.to_config() == {"endpoint_url": forge.url, "graph_id": served}
    assert bits(remote.run({}, seed=1)) == bits(noisy().run({}, seed=1))


def test_loops_options_and_dry_runs_cross(forge: EndpointProcess) -> None:
    ring = graph_of({"a": "add"}, ["a.out -> a.a"], ["a.a = start", "a.b = step"], ["a.out = out"], graph_id="ring")
    remote = placed(ring, forge)
    for steps in (1, 4):
        assert remote.run({"start": 1, "step": 2}, num_loop_steps=steps) == ring.run({"start": 1, "step": 2}, num_loop_steps=steps)
    assert remote.run({"start": 1, "step": 2}, dry_run=True) == {"out": None}
    with pytest.raises(InvalidArgument, match="'warp'"):
        remote.run({"start": 1, "step": 2}, warp=9)


def test_state_is_kept_between_calls_and_belongs_to_one_placing(forge: EndpointProcess) -> None:
    def graph() -> Graph:
        return graph_of({"a": ("accumulate", {"start": 10})}, [], ["a.x = x"], ["a.total = total"], graph_id="sum")

    one, two, local = placed(graph(), forge), placed(graph(), forge), graph()
    assert one.stateful
    for x in (1, 2, 3):
        assert one.run({"x": x}) == local.run({"x": x})
    assert two.run({"x": 5}) == {"total": 15}
    served = loop_thread().run(forge.client().get(f"/graphs/{one.contract.graph_id}"))
    assert served["idle_after"] == 86400.0


def test_a_placed_graph_is_removed_when_idle_and_deployed_again_by_its_next_call(forge: EndpointProcess) -> None:
    remote, client = placed(noisy(), forge), forge.client()
    graph_id = remote.contract.graph_id
    served = loop_thread().run(client.get(f"/graphs/{graph_id}"))
    assert served["idle_after"] == 3600.0
    loop_thread().run(client.remove(graph_id))
    assert bits(remote.run({}, seed=1)) == bits(noisy().run({}, seed=1))


def test_weights_in_no_checkpoint_travel_with_the_structure(forge: EndpointProcess) -> None:
    graph = graph_of({"l": ("linear", {"size": 200})}, [], ["l.x = x"], ["l.y = y"], graph_id="linear")
    graph.get_node("l").block.load_state_dict({"weight": torch.randn(200, 200), "bias": torch.randn(200)})
    x = torch.randn(7, 200)
    assert bits(placed(graph, forge).run({"x": x})["y"].detach()) == bits(graph.run({"x": x})["y"].detach())


# -- errors ---------------------------------------------------------------------------------------------------------


def test_a_failing_block_raises_what_it_raises_locally(forge: EndpointProcess) -> None:
    graph = graph_of({"f": ("fail", {"message": "no more ink"})}, [], ["f.x = x"], ["f.y = y"], graph_id="failing")
    errors = []
    for runnable in (graph, placed(graph, forge)):
        with pytest.raises(BlockFailed, match="no more ink") as caught:
            runnable.run({"x": 1})
        errors.append((type(caught.value), caught.value.message, caught.value.details["node"]))
    assert errors[0] == errors[1]


def test_a_missing_input_is_named_by_its_path(forge: EndpointProcess) -> None:
    graph = graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="needs")
    for runnable in (graph, placed(graph, forge)):
        with enter_run(path=("pipe",)) as context:
            context.node = "needs"
            with pytest.raises(MissingInput) as caught:
                runnable.run({})
        assert caught.value.details["ports"] == ["x"]
        assert caught.value.details["node"] == "pipe/needs/d"


def test_an_input_nothing_takes_is_an_unknown_name(forge: EndpointProcess) -> None:
    graph = graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="needs")
    for runnable in (graph, placed(graph, forge)):
        with pytest.raises(UnknownName, match="'z'"):
            runnable.run({"z": 1})


def test_a_non_transferable_value_is_named_before_anything_is_sent(forge: EndpointProcess) -> None:
    remote = placed(noisy(), forge)
    with pytest.raises(CannotTravel) as caught:
        remote.run({"factor": [1, threading.Lock()]})
    assert "lock" in caught.value.message
    assert "factor" in caught.value.message


def test_an_endpoint_that_is_down_is_unreachable_and_soon(forge: EndpointProcess) -> None:
    del forge
    remote = RemoteGraph("http://127.0.0.1:9", "x", token="t", retry_policy=RetryPolicy(first=0.3))
    start = time.perf_counter()
    with pytest.raises(EndpointUnreachable, match=r"nothing answers at http://127\.0\.0\.1:9"):
        remote.run({})
    assert time.perf_counter() - start < 10


def test_a_wrong_token_is_refused_and_not_shown(forge: EndpointProcess) -> None:
    for token in ("wrong-and-secret", None):
        with pytest.raises(AccessDenied) as caught:
            RemoteGraph(endpoint=EndpointClient(forge.url, token=token), graph_id="x").run({})
        assert "wrong-and-secret" not in str(caught.value)


def test_an_unknown_graph_is_named(forge: EndpointProcess) -> None:
    with pytest.raises(UnknownGraph, match="'nowhere'"):
        RemoteGraph(endpoint=forge.client(), graph_id="nowhere").run({})


def test_block_types_the_endpoint_lacks_are_named_before_anything_is_deployed(forge: EndpointProcess) -> None:
    class Exotic(type(graph_of({"d": "double"}).get_node("d").block)):  # type: ignore[misc]  # the sample's own class
        block_type = "sample/exotic"

    graph = Graph("odd")
    graph.add_node(Exotic("e"))
    with pytest.raises(UnknownBlockType, match=r"'sample/exotic'.*graph 'odd' needs 'sample/exotic' at endpoint 'forge'"):
        placed(graph, forge)


def test_training_is_refused(forge: EndpointProcess) -> None:
    with pytest.raises(InvalidArgument, match="cannot train"):
        placed(noisy(), forge).run({}, training=True)


def test_another_torch_build_is_named(forge: EndpointProcess) -> None:
    client = forge.client()
    loop_thread().run(client.capabilities())

    class Elsewhere(EndpointClient):
        async def capabilities(self, *, fresh: bool = False) -> dict[str, Any]:
            return {**await super().capabilities(fresh=fresh), "torch": {"version": "1.0+other", "git": None}}

    served = placed(noisy(), forge).contract.graph_id
    other = Elsewhere(forge.url, token=TOKEN, name="elsewhere")
    with pytest.warns(RuntimeWarning, match=r"BuildMismatch: .*'elsewhere'.*1\.0\+other"):
        assert RemoteGraph(endpoint=other, graph_id=served).run({}, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RemoteGraph(endpoint=other, graph_id=served).run({}, seed=1)
    with pytest.raises(BuildMismatch, match="last bits"):
        RemoteGraph(endpoint=other, graph_id=served, strict_build=True).run({}, seed=1)


# -- while it runs --------------------------------------------------------------------------------------------------


def slow(seconds: float) -> Graph:
    return graph_of({"s": ("slow", {"seconds": seconds})}, [], ["s.x = x"], ["s.y = y"], graph_id="slow")


def test_progress_of_the_nodes_inside_reaches_the_run(forge: EndpointProcess) -> None:
    seen: list[tuple[str, float, float]] = []
    remote = placed(slow(0.6), forge)
    with enter_run(path=("pipe",), progress=lambda place, done, total, text: seen.append((place, done, total))) as context:
        context.node = "slow"
        remote.run({"x": 1})
    assert {place for place, _, _ in seen} == {"pipe/slow/s"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1:] == (10.0, 10.0)


def test_hooks_see_the_graph_as_one_node(forge: EndpointProcess) -> None:
    events = Events()
    placed(slow(0.01), forge).run({"x": 1}, callbacks=events)
    assert events.seen == [("slow", "before"), ("slow", "after")]
    assert events.facts == [{"inputs": {"x": 1}}, {"outputs": {"y": 1}}]


@pytest.mark.parametrize("with_progress", [False, True], ids=["waiting", "following"])
def test_a_cancelled_run_cancels_the_remote_job_at_once(forge: EndpointProcess, with_progress: bool) -> None:
    remote, token = placed(slow(20), forge), CancelToken()
    remote.run({"x": 0}, dry_run=True)
    threading.Timer(0.5, token.cancel, ["enough"]).start()
    start = time.perf_counter()
    sink = (lambda *_: None) if with_progress else None
    with enter_run(token=token, progress=sink), pytest.raises(Cancelled, match="enough"):
        remote.run({"x": 1})
    assert time.perf_counter() - start < 10
    rows = loop_thread().run(forge.client().jobs(graph_id=remote.contract.graph_id))
    deadline = time.monotonic() + 15
    while rows[0]["status"] == "IN_PROGRESS" and time.monotonic() < deadline:
        time.sleep(0.05)
        rows = loop_thread().run(forge.client().jobs(graph_id=remote.contract.graph_id))
    assert rows[0]["status"] == "CANCELLED"


def test_a_call_that_takes_too_long_times_out_and_is_cancelled(forge: EndpointProcess) -> None:
    served = placed(slow(20), forge).contract.graph_id
    start = time.perf_counter()
    with pytest.raises(TimedOut):
        RemoteGraph(endpoint=forge.client(), graph_id=served, timeout=0.5).run({"x": 1})
    assert time.perf_counter() - start < 12


async def test_run_async_gives_the_same_and_leaves_the_loop_free(forge: EndpointProcess) -> None:
    remote = await asyncio.to_thread(placed, slow(0.4), forge)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.005)

    heart = asyncio.create_task(beat())
    assert await asyncio.gather(*(remote.run_async({"x": number}) for number in range(2))) == [{"y": 0}, {"y": 1}]
    heart.cancel()
    assert beats > 10
    noise = await asyncio.to_thread(placed, noisy(), forge)
    assert bits(await noise.run_async({}, seed=4)) == bits(noisy().run({}, seed=4))


async def test_cancelling_the_task_cancels_the_remote_job(forge: EndpointProcess) -> None:
    remote = await asyncio.to_thread(placed, slow(6), forge)
    task = asyncio.create_task(remote.run_async({"x": 1}))
    await asyncio.sleep(0.4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    client, status = forge.client(), "IN_PROGRESS"
    for _ in range(100):
        status = (await loop_thread().run_async(client.jobs(graph_id=remote.contract.graph_id)))[0]["status"]
        if status == "CANCELLED":
            break
        await asyncio.sleep(0.05)
    assert status == "CANCELLED"
