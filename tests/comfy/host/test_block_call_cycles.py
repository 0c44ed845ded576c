"""Call cycles and mutual calls of ComfyUI servers through graphs of blocks, at an endpoint without ComfyUI or in a server's own slots."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from samples.comfy import Server
from samples.comfy_graphs import Caller, InBackground, give, graph_input, graph_output, know, node, remote_node, token_of, until
from samples.endpoints import EndpointProcess
from samples.http_client import one_node
from yggdrasill.errors import YggdrasillError
from yggdrasill.remote import EndpointClient, EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.remote_graph import RemoteGraph

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]

INVERT = {"1": graph_input("x", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "9": graph_output("y", ("2", 0), "IMAGE")}


def slow(seconds: float, salt: str) -> dict[str, Any]:
    """A workflow that inverts after some work."""
    return {**INVERT, "3": node("TestSlow", value=("2", 0), seconds=seconds, salt=salt), "9": graph_output("y", ("3", 0))}


def through(graph: str, endpoint: str) -> dict[str, Any]:
    """A workflow that calls ``graph`` at ``endpoint``."""
    return {"1": graph_input("x", "IMAGE"), "2": remote_node(graph, endpoint, ("1", 0)), "9": graph_output("y", ("2", 0), "IMAGE")}


def pipeline(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    """A pipeline of parts in a row, from port ``x`` to port ``y``."""
    ids = [f"part{index}" for index in range(len(parts))]
    ports = [part.pop("ports", ("x", "y")) for part in parts]
    return {
        "schema_version": "1.0",
        "pipeline_id": name,
        "graphs": [{"pipeline_node_id": own, **part} for own, part in zip(ids, parts, strict=True)],
        "edges": [
            {"source_node": ids[at], "source_port": ports[at][1], "target_node": ids[at + 1], "target_port": ports[at + 1][0]}
            for at in range(len(parts) - 1)
        ],
        "exposed_inputs": [{"pipeline_node_id": ids[0], "port_name": ports[0][0], "name": "x"}],
        "exposed_outputs": [{"pipeline_node_id": ids[-1], "port_name": ports[-1][1], "name": "y"}],
    }


def there(caller: Caller, graph: str) -> dict[str, Any]:
    """A part that the server of ``caller`` runs."""
    return {"endpoint_url": caller.server.url, "graph_id": graph}


def deploy(client: EndpointClient, config: dict[str, Any]) -> RemoteGraph:
    """Serve a pipeline."""
    name = config["pipeline_id"]
    loop_thread().run(client.deploy(name, {"kind": "pipeline", "config": config, "state": None}))
    return RemoteGraph(endpoint=client, graph_id=name)


@pytest.fixture(scope="module")
def blocks(pair: tuple[Caller, Caller], tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointClient]:
    """An endpoint with one slot and without ComfyUI, ``blocks`` for both servers; all three have each other in their registries."""
    process = EndpointProcess("blocks", tmp_path_factory.mktemp("blocks"))
    both: dict[str, Server] = dict(zip("ab", (caller.server for caller in pair), strict=True))
    known = EndpointRegistry()
    for name, server in both.items():
        known.add(name, server.url, token=token_of(server))
    known.to_yaml(process.data_dir / "endpoints.yaml")
    process.begin()
    try:
        process.ready()
        for server in both.values():
            know(server, both, blocks=process)
        yield process.client()
    finally:
        process.kill()
        for server in both.values():
            know(server, both)


def test_a_call_cycle_through_a_pipeline_returns_the_right_bytes(a: Caller, blocks: EndpointClient) -> None:
    a.deploy("end", INVERT)
    deploy(blocks, pipeline("double-end", {"graph_config": one_node("double")}, there(a, "end")))
    ring = a.deploy("start", through("double-end", "blocks"))
    for _ in range(3):
        picture = torch.rand(1, 16, 12, 3)
        assert torch.equal(InBackground(partial(give, ring, picture)).wait(), 1.0 - picture * 2)


def test_a_call_cycle_through_the_servers_slots_ends(a: Caller) -> None:
    a.deploy("end", INVERT)
    deploy(a.client, pipeline("own-slots", there(a, "end"), {"graph_config": {"kind": "comfy", "graph_id": "here", "prompt": INVERT}}))
    ring = a.deploy("start", through("own-slots", "a"))
    picture = torch.rand(1, 16, 12, 3)
    assert torch.equal(InBackground(partial(give, ring, picture)).wait(), 1.0 - (1.0 - picture))


def test_call_cycles_and_mutual_calls_through_blocks_under_load(a: Caller, b: Caller, blocks: EndpointClient) -> None:
    a.deploy("leaf-a", slow(0.1, "around-a"))
    b.deploy("leaf-b", slow(0.1, "around-b"))
    deploy(blocks, pipeline("to-a", there(a, "leaf-a")))
    deploy(blocks, pipeline("to-b", there(b, "leaf-b")))
    kinds = [
        a.deploy("ring-a", through("to-a", "blocks")),
        b.deploy("ring-b", through("to-b", "blocks")),
        a.deploy("cross-a", through("to-b", "blocks")),
        b.deploy("cross-b", through("to-a", "blocks")),
    ]
    pictures = [torch.rand(1, 8, 8, 3) for _ in range(4)]
    calls = [(picture, InBackground(partial(give, served, picture))) for picture in pictures for served in kinds]
    for picture, call in calls:
        assert torch.equal(call.wait(90), 1.0 - picture)


def test_a_call_behind_a_stateful_one_is_part_of_the_cycle(a: Caller, blocks: EndpointClient) -> None:
    """The owner's prompt waits for the second call of a pipeline whose first call is queued behind that prompt."""
    a.deploy("leaf-a", INVERT)
    summed = {"graph_config": one_node("accumulate", outputs=("total",)), "ports": ("x", "total")}
    counted = deploy(blocks, pipeline("counted", summed, there(a, "leaf-a")))
    black = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    busy = node("TestSlow", value=("1", 0), seconds=2.0, salt="counted")
    prompts = [
        a.start({"1": black, "2": second, "3": node("PreviewImage", images=("2", 0))})
        for second in (busy, remote_node("counted", "blocks", ("1", 0)))
    ]
    first = InBackground(partial(give, counted, torch.zeros(1, 8, 8, 3)))
    assert torch.equal(first.wait(), torch.ones(1, 8, 8, 3))
    for prompt_id in prompts:
        entry = until(partial(a.history, prompt_id), 60.0)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]


def test_an_endless_call_cycle_through_blocks_ends_with_an_error(a: Caller, blocks: EndpointClient) -> None:
    a.deploy("endless", INVERT)
    deploy(blocks, pipeline("endless-blocks", there(a, "endless")))
    endless = a.deploy("endless", through("endless-blocks", "blocks"))
    with pytest.raises(YggdrasillError, match="cycle"):
        InBackground(partial(give, endless, torch.rand(1, 8, 8, 3))).wait(60)


def test_a_cancelled_call_cycle_through_blocks_leaves_no_waits(a: Caller, blocks: EndpointClient) -> None:
    a.deploy("long-end", slow(60.0, "around-cancelled"))
    deploy(blocks, pipeline("long-blocks", there(a, "long-end")))
    long = a.deploy("long-start", through("long-blocks", "blocks"))
    call = InBackground(partial(give, long, torch.rand(1, 8, 8, 3)))
    until(lambda: a.jobs(graph_id="long-end", status="IN_PROGRESS"))
    job = until(lambda: a.jobs(graph_id="long-start", status="IN_PROGRESS"))[0]
    loop_thread().run(a.client.cancel(job["job_id"]))
    with pytest.raises(YggdrasillError, match="Cancelled"):
        call.wait(20)
    until(lambda: a.jobs(graph_id="long-end")[0]["status"] == "CANCELLED")
    until(lambda: loop_thread().run(blocks.jobs(graph_id="long-blocks"))[0]["status"] == "CANCELLED")
