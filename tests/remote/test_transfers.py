"""Transfers of tensors: cut connections, direct transfer between endpoints, and bytes that are not sent."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from samples.endpoints import Cutter, EndpointProcess, cutter, registry_of
from samples.graphs import bits, graph_of
from yggdrasill.errors import CorruptData, EndpointUnreachable, PayloadTooLarge
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import ArtifactClient, Endpoint, RetryPolicy
from yggdrasill.remote.downloads import RemoteHandle, load
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.uploads import upload
from yggdrasill.values.payload import ArraySpec, ArtifactRef
from yggdrasill.values.stores.shared import SharedFolderStore

MIB = 1 << 20


def double(name: str) -> Graph:
    return graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id=name)


def fresh(mib: int = 4) -> torch.Tensor:
    """A tensor that no endpoint has seen."""
    return torch.randn(mib * MIB // 4)


def pair(first: Endpoint | EndpointProcess, second: Endpoint | EndpointProcess, **options: Any) -> Pipeline:
    """Two graphs in sequence, each on a different endpoint."""
    pipeline = Pipeline("pair")
    pipeline.add_graph(double("one"))
    pipeline.add_graph(double("two"))
    pipeline.add_edge("one", "y", "two", "x")
    pipeline.expose_input("one", "x", "x")
    pipeline.expose_output("two", "y", "y")
    placed: Pipeline = pipeline.place(registry_of(first, second, graphs={"one": first.name, "two": second.name}, **options))
    return placed


@pytest.mark.parametrize("after", [100, 1500, 300_000, 3 * MIB, 5 * MIB, 7 * MIB], ids=lambda after: f"after {after} bytes")
def test_a_connection_cut_anywhere_ends_with_the_right_bytes(forge: EndpointProcess, forge_proxy: Cutter, after: int) -> None:
    remote = double("cut").place(registry_of(forge.endpoint(forge_proxy.url), default="forge"))
    x = fresh()
    forge_proxy.cut(times=2, after=after)
    assert bits(remote.run({"x": x})) == bits({"y": x + x})
    assert forge_proxy.cuts < 2


def test_a_cut_while_a_job_runs_finds_the_same_job_again(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    graph = graph_of({"s": ("slow", {"seconds": 1.0}), "k": "accumulate"}, ["s.y -> k.x"], ["s.x = x"], ["k.total = y"], graph_id="once")
    remote = graph.place(registry_of(forge.endpoint(forge_proxy.url), default="forge"))
    assert remote.run({"x": 0}) == {"y": 0}
    threading.Timer(0.5, forge_proxy.sever).start()
    assert remote.run({"x": 1}) == {"y": 1}
    assert remote.run({"x": 1}) == {"y": 2}


def test_an_endpoint_that_stays_lost_is_given_up(forge: EndpointProcess) -> None:
    with cutter(forge) as proxy:
        registry = registry_of(forge.endpoint(proxy.url), default="forge", retry_policy=RetryPolicy(first=0.5, later=0.5))
        remote = double("lost").place(registry)
        proxy.cut(times=10_000, after=200)
        with pytest.raises(EndpointUnreachable):
            remote.run({"x": fresh()})


def test_large_outputs_stay_at_the_endpoint_until_they_are_loaded(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    from yggdrasill.executor.context import enter_run

    remote = double("stays").place(registry_of(forge.endpoint(forge_proxy.url), default="forge"))
    x = fresh()
    with enter_run() as context:
        context.node = "stays"
        out = remote.run({"x": x})["y"]
    assert isinstance(out, RemoteHandle)
    assert forge_proxy.to_client < MIB
    assert bits(out.load()) == bits(x + x)
    assert out.load() is out.load()
    assert 4 * MIB < forge_proxy.to_client < 5 * MIB


def test_a_handle_that_was_cut_while_loading_goes_on_where_it_was(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    from yggdrasill.executor.context import enter_run

    remote = double("resumes").place(registry_of(forge.endpoint(forge_proxy.url), default="forge"))
    x = fresh(8)
    with enter_run() as context:
        context.node = "resumes"
        out = remote.run({"x": x})["y"]
    before = forge_proxy.to_client
    forge_proxy.cut(times=2, after=3 * MIB)
    assert bits(out.load()) == bits(x + x)
    assert forge_proxy.cuts == 0
    assert forge_proxy.to_client - before < 13 * MIB


def test_endpoints_that_may_hand_over_to_each_other_directly(forge: EndpointProcess, attic: EndpointProcess) -> None:
    with cutter(forge) as to_forge, cutter(attic) as to_attic:
        placed = pair(forge.endpoint(to_forge.url), attic.endpoint(to_attic.url))
        x = fresh()
        assert bits(placed.run({"x": x})) == bits({"y": 4 * x})
        assert to_forge.to_server > 4 * MIB
        assert to_forge.to_client < MIB
        assert to_attic.to_server < MIB
        assert 4 * MIB < to_attic.to_client < 5 * MIB


def test_endpoints_that_may_not_are_helped_by_the_caller(forge: EndpointProcess, cave: EndpointProcess) -> None:
    with cutter(forge) as to_forge, cutter(cave) as to_cave:
        placed = pair(forge.endpoint(to_forge.url), cave.endpoint(to_cave.url))
        x = fresh()
        assert bits(placed.run({"x": x})) == bits({"y": 4 * x})
        assert 4 * MIB < to_forge.to_client < 5 * MIB
        assert 4 * MIB < to_cave.to_server < 5 * MIB


def test_a_relay_that_is_cut_on_either_side_ends_with_the_right_bytes(forge: EndpointProcess, cave: EndpointProcess) -> None:
    with cutter(forge) as to_forge, cutter(cave) as to_cave:
        placed = pair(forge.endpoint(to_forge.url), cave.endpoint(to_cave.url))
        for cut in (to_forge, to_cave):
            x = fresh()
            cut.cut(times=1, after=6 * MIB if cut is to_forge else 2 * MIB)
            assert bits(placed.run({"x": x})) == bits({"y": 4 * x})
            assert cut.cuts == 0


def test_unchanged_inputs_move_no_bytes_again(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    remote = graph_of({"a": "add"}, [], ["a.a = a", "a.b = b"], ["a.out = y"], graph_id="sum").place(
        registry_of(forge.endpoint(forge_proxy.url), default="forge")
    )
    x = fresh()
    remote.run({"a": x, "b": 1})
    before = forge_proxy.to_server
    remote.run({"a": x, "b": 2})
    remote.run({"a": x.clone(), "b": 3})
    assert forge_proxy.to_server - before < 64 * 1024
    x += 0.25
    assert bits(remote.run({"a": x, "b": 2})) == bits({"y": x + 2})
    assert forge_proxy.to_server - before > 4 * MIB


def test_with_a_shared_folder_no_tensor_crosses_a_socket(servers: Any) -> None:
    with cutter(servers.annex) as proxy:
        artifact_client = ArtifactClient(SharedFolderStore(servers.shared))
        remote = double("shares").place(registry_of(servers.annex.endpoint(proxy.url), default="annex", artifact_client=artifact_client))
        x = fresh()
        assert bits(remote.run({"x": x})) == bits({"y": x + x})
        assert proxy.to_server < 64 * 1024
        assert proxy.to_client < 64 * 1024


def test_many_inputs_arrive_side_by_side(forge: EndpointProcess) -> None:
    remote = graph_of({"c": "collect"}, [], ["c.first = x"], ["c.out = y"], graph_id="many").place(registry_of(forge, default="forge"))
    value = [torch.randn(9000 + number) for number in range(40)]
    assert bits(remote.run({"x": value})) == bits({"y": {"first": value}})


async def _count_requests(act: Any, client: Any) -> list[tuple[str, str]]:
    """Count the requests of ``client`` during ``act`` by method and last part of the path, except for the artifact folder."""
    asked: list[tuple[str, str]] = []
    whole = client.open

    def counted(method: str, path: str, **rest: Any) -> Any:
        if path != "/artifacts/folder":
            asked.append((method, path.partition("/uploads/")[0].rpartition("/")[2]))
        return whole(method, path, **rest)

    client.open = counted
    await act()
    return asked


def test_small_artifacts_share_a_request_and_large_ones_do_not(forge: EndpointProcess) -> None:
    client, artifact_client = forge.client(), ArtifactClient()
    value = [torch.randn(9000 + number) for number in range(40)] + [fresh(2), fresh(3)]
    with artifact_client.pack(value) as packed:
        names = packed.artifacts
        asked = set(loop_thread().run(_count_requests(lambda: upload(client, names, value, artifact_client, Retry()), client)))
        assert sorted(asked) == sorted([("POST", "batch"), ("PUT", names[40]), ("PUT", names[41])])
        assert loop_thread().run(client.missing(names)) == []


def test_a_batch_that_is_cut_is_sent_again(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    remote = graph_of({"c": "collect"}, [], ["c.first = x"], ["c.out = y"], graph_id="batches").place(
        registry_of(forge.endpoint(forge_proxy.url), default="forge")
    )
    value = [torch.randn(9000 + number) for number in range(40)]
    assert bits(remote.run({"x": []})) == bits({"y": {"first": []}})
    forge_proxy.cut(times=2, after=700_000)
    assert bits(remote.run({"x": value})) == bits({"y": {"first": value}})
    assert forge_proxy.cuts < 2


def test_more_small_artifacts_than_fit_a_batch_go_in_several(forge: EndpointProcess) -> None:
    client, artifact_client = forge.client(), ArtifactClient()
    value = [torch.randn(200_000 + number) for number in range(25)]
    with artifact_client.pack(value) as packed:
        sent = loop_thread().run(upload(client, packed.artifacts, value, artifact_client, Retry()))
        assert sent == sum(tensor.nbytes for tensor in value)
        assert loop_thread().run(client.missing(packed.artifacts)) == []


def test_bytes_that_are_not_those_of_their_name_are_refused(forge: EndpointProcess) -> None:
    client, data = forge.client(), b"y" * 70_000

    async def chunks() -> Any:
        yield data

    with pytest.raises(CorruptData):
        loop_thread().run(client.put_artifact("0" * 64, chunks, len(data)))
    assert loop_thread().run(client.missing(["0" * 64])) == ["0" * 64]


def test_what_is_over_the_endpoints_limit_is_named_and_not_tried_for_long(cave: EndpointProcess) -> None:
    remote = double("narrow").place(registry_of(cave, default="cave"))
    with pytest.raises(PayloadTooLarge, match="max_artifact_bytes"):
        remote.run({"x": fresh(17)})
    with pytest.raises(PayloadTooLarge, match="max_body_bytes"):
        remote.run({"x": ["long" * 100] * 4000})


def test_an_artifact_of_another_length_than_described_is_corrupt(forge: EndpointProcess) -> None:
    from yggdrasill.values.payload import blake3_hex

    client, data = forge.client(), b"z" * 70_000
    name = blake3_hex(memoryview(data))

    async def chunks() -> Any:
        yield data

    loop_thread().run(client.put_artifact(name, chunks, len(data)))
    for nbytes in (60_000, 80_000):
        with pytest.raises(CorruptData, match="call again"):
            load(client, ArtifactRef(name, ArraySpec("uint8", (nbytes,), nbytes)), ArtifactClient())
    assert bytes(load(client, ArtifactRef(name, ArraySpec("uint8", (70_000,), 70_000)), ArtifactClient())) == data


def test_a_killed_endpoint_that_comes_back_gives_the_one_result(cave: EndpointProcess) -> None:
    graph = graph_of({"s": ("slow", {"seconds": 1.5})}, [], ["s.x = x"], ["s.y = y"], graph_id="phoenix")
    remote = graph.place(registry_of(cave, default="cave"))
    x, found = fresh(1), []
    caller = threading.Thread(target=lambda: found.append(remote.run({"x": x})))
    caller.start()
    time.sleep(0.8)
    cave.kill()
    cave.start()
    caller.join(60)
    assert bits(found) == bits([{"y": x}])
    jobs = loop_thread().run(cave.client().jobs(graph_id=remote.contract.graph_id))
    assert [row["kind"] for row in jobs].count("call") == 1
