"""The request ``endpoint``: requests of the endpoint protocol, run by the headless service of a worker without ComfyUI."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import samples.served_blocks  # noqa: F401 - registers blocks
from yggdrasill.foundation import BlockRegistry, Graph
from yggdrasill.protocol.version import PROTOCOL
from yggdrasill.remote.serverless.common_stores import open_store
from yggdrasill.remote.serverless.messages import EVENTS, read_inline
from yggdrasill.values.payload import blake3_hex, to_base64
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack, unpack
from yggdrasill.worker.handler import WorkerHost
from yggdrasill.worker.service import WorkerService
from yggdrasill.worker.settings import Settings

pytestmark = pytest.mark.timeout(300)
TESTS = Path(__file__).resolve().parent.parent
FAR = 120.0


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerHost]:
    """A worker whose headless host has the sample blocks, with a folder of graphs and an artifact store."""
    folder, before = tmp_path_factory.mktemp("worker"), os.environ.get("PYTHONPATH")
    (folder / "graphs").mkdir()
    (folder / "graphs" / "sums.json").write_text(json.dumps(graph_of("total", "x").to_config()), encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [before])])
    worker = WorkerHost(
        Settings(
            root=folder / "workspace",
            comfy_home=folder / "comfy",
            models_dir=folder / "comfy" / "models",
            versions=(folder / "versions",),
            cache_root=folder / "cache",
            state_dir=folder / "state",
            graphs_dir=folder / "graphs",
            worker_id="test",
            host_python=Path(sys.executable),
            host_plugins=("samples.plugin", "samples.served_blocks"),
            artifact_store=str(folder / "common"),
        )
    )
    yield worker
    worker.close()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def graph_of(block: str, *inputs: str) -> Graph:
    graph = Graph(block, registry=BlockRegistry.global_registry())
    graph.add_node("n", f"sample/{block}", auto_connect=False)
    for name in inputs:
        graph.expose_input("n", name, name)
    graph.expose_output("n", "y", "y")
    return graph


def deploy(graph: Graph) -> dict[str, Any]:
    return {"graph_id": graph.id, "kind": "graph", "config": graph.to_config(), "state": None, "idle_after": 60}


def call(graph: Graph, value: Any) -> dict[str, Any]:
    """Return the input of a job that deploys a graph and calls it, with its artifacts inside."""
    store = MemoryStore()
    with pack(value, store) as packed:
        artifacts = {name: to_base64(store.read(name)) for name in packed.artifacts}
        body = {"key": uuid.uuid4().hex, "inputs": packed.wire, "options": {}, "run": {"seed": 3}, "wait": 0}
    return {"type": "endpoint", "protocol": PROTOCOL, "deploy": deploy(graph), "graph_id": graph.id, "call": body, "artifacts": artifacts}


async def ask(worker: WorkerHost, given: dict[str, Any], report: Any = None) -> dict[str, Any]:
    result = await worker.handle({"id": "job", "input": {"type": "endpoint", "protocol": PROTOCOL, **given}}, report)
    assert "endpoint" in result, result
    envelope: dict[str, Any] = result["endpoint"]
    return envelope


def value_of(envelope: dict[str, Any]) -> Any:
    data = read_inline(envelope["artifacts"])
    return unpack(envelope["row"]["output"], lambda ref: memoryview(bytearray(data[ref.hash])))


async def test_a_worker_answers_what_only_reads_and_nothing_else(host: WorkerHost, tmp_path: Path) -> None:
    answer = (await ask(host, {"request": {"method": "GET", "path": "/capabilities"}}))["answer"]
    assert (answer["host"], "sample/total" in answer["block_types"]) == ("headless", True)
    assert not {"peer_url", "store_id", "platform"} & answer.keys()
    assert str(host.service.settings.root.parent) not in json.dumps(answer)
    contract = (await ask(host, {"request": {"method": "GET", "path": "/graphs/sums/contract"}}))["answer"]
    assert [entry["name"] for entry in contract["inputs"]] == ["x"]
    graphs = (await ask(host, {"request": {"method": "GET", "path": "/graphs"}}))["answer"]["graphs"]
    assert [graph["graph_id"] for graph in graphs] == ["sums"]
    for method, path in (("GET", "/jobs"), ("DELETE", "/graphs/sums"), ("GET", "/artifacts/folder"), ("POST", "/models")):
        error = (await ask(host, {"request": {"method": method, "path": path}}))["error"]
        assert error["type"] == "InvalidArgument"
    unknown = (await ask(host, {"request": {"method": "GET", "path": "/graphs/nothing/contract"}}))["error"]
    assert unknown["type"] == "UnknownGraph"


async def test_a_call_returns_the_row_the_bits_and_its_failures(host: WorkerHost) -> None:
    large = torch.arange(300_000, dtype=torch.int32)
    envelope = await ask(host, call(graph_of("spread", "x", "count"), {"x": 4, "count": 100_000}))
    assert envelope["row"]["status"] == "COMPLETED"
    assert torch.equal(value_of(envelope)["y"], graph_of("spread", "x", "count").run({"x": 4, "count": 100_000})["y"])
    assert value_of(await ask(host, call(graph_of("total", "x"), {"x": large}))) == graph_of("total", "x").run({"x": large})
    contract = (await ask(host, {"deploy": deploy(graph_of("keeper", "path", "x"))}))["contract"]
    assert contract["stateful"] is True
    failed = await ask(host, call(graph_of("spread", "x", "count"), {"x": "no number", "count": 3}))
    assert failed["row"]["status"] == "FAILED"
    assert failed["row"]["error"]["type"] == "BlockFailed"
    assert "output" not in failed["row"]


async def test_messages_that_do_not_fit_together_are_refused(host: WorkerHost) -> None:
    for given, kind, word in (
        ({"protocol": 99, "future": {}}, "ProtocolMismatch", "Install the same version"),
        ({}, "InvalidArgument", "none of"),
        ({"stored": {"0" * 64: 3}, "store": {"kind": "s3", "id": "s3://b/"}}, "InvalidConfig", "is not the caller's"),
        ({"artifacts": {"0" * 64: "AAAA"}}, "CorruptData", "do not match"),
        ({"graph_id": "x", "call": {"key": "k"}}, "InvalidConfig", "wire form"),
    ):
        error = (await ask(host, given))["error"]
        assert (error["type"], word in error["message"]) == (kind, True), error
    missing = await host.handle({"id": "x", "input": {"type": "endpoint"}})
    assert missing["code"] == "invalid_input"


async def test_what_a_response_cannot_have_goes_to_the_store_or_is_an_error(host: WorkerHost, tmp_path: Path) -> None:
    folder = host.service.settings.artifact_store
    given = call(graph_of("spread", "x", "count"), {"x": 4, "count": 10_000_000})
    error = (await ask(host, given))["error"]
    assert (error["type"], error["details"]["code"]) == ("PayloadTooLarge", "result_too_large")
    assert "not the caller's" in error["message"]
    assert str(folder) not in json.dumps(error)
    store = open_store(str(folder))
    envelope = await ask(host, {**given, "store": store.mark})
    (name,) = envelope["stored"]
    assert envelope["stored"] == {name: 10_000_000}
    assert bytes(await store.read(name)) == bytes(graph_of("spread", "x", "count").run({"x": 4, "count": 10_000_000})["y"].numpy())
    data = os.urandom(1000)
    wire = call(graph_of("total", "x"), {"x": torch.frombuffer(bytearray(data), dtype=torch.uint8)})
    assert (await ask(host, {**wire, "store": store.mark, "stored": {name: 10_000_000}}))["row"]["status"] == "COMPLETED"
    lost = blake3_hex(memoryview(data * 2))
    error = (await ask(host, {**wire, "store": store.mark, "stored": {lost: 2000}}))["error"]
    assert (error["type"], error["details"]["missing"]) == ("UnknownArtifact", [lost])


async def test_progress_arrives_in_order_and_the_result_repeats_what_must_not_be_lost(host: WorkerHost) -> None:
    messages: list[dict[str, Any]] = []
    envelope = await ask(host, call(graph_of("slow", "x"), {"x": 1}), messages.append)
    assert value_of(envelope) == {"y": 1}
    said = await ask(host, call(graph_of("say", "x"), {"x": "good morning"}), messages.append)
    assert any(kind == "log" and "good morning" in json.dumps(data) for _, kind, data, _ in said["events"])
    assert all(message["type"] == EVENTS for message in messages)
    assert not [data for _, kind, data, _ in envelope["events"] if kind == "progress"]


async def test_a_cancel_stops_the_node_and_a_lost_host_is_started_again(host: WorkerHost, tmp_path: Path) -> None:
    graph = graph_of("watched", "path", "x")
    running = asyncio.create_task(ask(host, call(graph, {"path": str(tmp_path / "a"), "x": 1})))
    await happened((tmp_path / "a.runs").exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await happened((tmp_path / "a.cancelled").exists)
    doomed = asyncio.create_task(ask(host, call(graph, {"path": str(tmp_path / "b"), "x": 1})))
    await happened((tmp_path / "b.runs").exists)
    running_host = host.service.hosts._headless._running
    assert running_host is not None
    os.kill(running_host.process.pid, signal.SIGKILL)
    error = (await asyncio.wait_for(doomed, FAR))["error"]
    assert error["details"]["code"] == "host_crashed"
    assert str(tmp_path) not in json.dumps(error)
    (tmp_path / "c").touch()
    assert value_of(await ask(host, call(graph, {"path": str(tmp_path / "c"), "x": 7}))) == {"y": 7}


async def test_a_host_that_does_not_start_is_one_clear_error(start: Callable[..., Any], tmp_path: Path) -> None:
    worker = await start(host_python=Path(sys.executable), host_plugins=("no_such_plugin",))
    error = (await asked(worker, {"request": {"method": "GET", "path": "/capabilities"}}))["error"]
    assert error["details"]["code"] == "host_start_failed"
    assert "no_such_plugin" in error["message"]
    assert str(tmp_path) not in error["message"]
    worker = await start(host_python=tmp_path / "no-python")
    error = (await asked(worker, {"request": {"method": "GET", "path": "/capabilities"}}))["error"]
    assert "HOST_PYTHON" in error["message"]


async def asked(worker: WorkerService, given: dict[str, Any]) -> dict[str, Any]:
    envelope: dict[str, Any] = (await worker.handle({"input": {"type": "endpoint", "protocol": PROTOCOL, **given}}))["endpoint"]
    return envelope


async def happened(what: Callable[[], bool]) -> None:
    end = time.monotonic() + FAR
    while not what():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)
