"""Failures between two servers: the right node reports a helpful error, and both servers keep working."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from samples.comfy import Servers, make_base_directory
from samples.comfy_graphs import Caller, Prompt, data_folder, graph_input, graph_output, know, node, remote_node, until
from samples.endpoints import Cutter
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.timeout(240), pytest.mark.conformance]


def slow(salt: str, seconds: float = 60.0) -> Prompt:
    """A slow workflow."""
    return {"1": graph_input("x"), "8": node("TestSlow", value=("1", 0), seconds=seconds, salt=salt), "3": graph_output("y", ("8", 0))}


def calling(graph: str, endpoint: str = "b") -> Prompt:
    """A prompt of the owner whose node 2 calls a graph."""
    return {"1": node("TestSeveral", count=1), "2": remote_node(graph, endpoint, ("1", 0)), "3": node("TestShow", value=("2", 0))}


def own(salt: str, seconds: float) -> Prompt:
    """A prompt of the owner without calls."""
    return {
        "1": node("TestSeveral", count=1),
        "2": node("TestSlow", value=("1", 0), seconds=seconds, salt=salt),
        "3": node("TestShow", value=("2", 0)),
    }


def error_of(side: Caller, prompt_id: str, seconds: float = 60.0) -> dict[str, Any]:
    """Return the error that ended a prompt."""
    entry = until(lambda: side.history(prompt_id), seconds)
    found: dict[str, Any] = next(facts for kind, facts in entry["status"]["messages"] if kind == "execution_error")
    return found


def interrupted(side: Caller, prompt_id: str) -> bool:
    """Return whether a prompt ended by an interrupt."""
    entry = until(lambda: side.history(prompt_id))
    return bool(entry["status"]["messages"][-1][0] == "execution_interrupted")


def succeeded(side: Caller, prompt_id: str) -> bool:
    entry = until(lambda: side.history(prompt_id), 60.0)
    return bool(entry["status"]["status_str"] == "success")


@pytest.fixture
def peer(servers: Servers, pair: tuple[Caller, Caller]) -> Iterator[Caller]:
    """A server of this test that may be killed; the first server has it in its registry as ``peer``."""
    made = Caller(_start(servers, pair))
    _introduce(pair, made)
    yield made
    made.server.stop()
    _introduce(pair)


def _start(servers: Servers, pair: tuple[Caller, Caller], **settings: Any) -> Any:
    base = make_base_directory(servers.folder / f"peer-{sum(1 for _ in servers.folder.iterdir())}")
    shutil.copy(pair[0].server.base / "custom_nodes" / "nodes_for_tests.py", base / "custom_nodes")
    return servers.start(base=base, **settings)


def _introduce(pair: tuple[Caller, Caller], peer: Caller | None = None) -> None:
    known = {"a": pair[0].server, "b": pair[1].server}
    know(pair[0].server, known if peer is None else {**known, "peer": peer.server})


# -- the owner here stops the prompt --------------------------------------------------------------------------------


def test_an_interrupt_before_the_call_sends_nothing(a: Caller, b: Caller) -> None:
    b.deploy("early", slow("early"))
    prompt = calling("early")
    prompt["1"] = node("TestSlow", value=("4", 0), seconds=30.0, salt="before")
    prompt["4"] = node("TestSeveral", count=1)
    prompt_id = a.start(prompt)
    until(lambda: a.queue()[0] == [prompt_id])
    a.server.post("/interrupt", {"prompt_id": prompt_id})
    assert interrupted(a, prompt_id)
    assert b.jobs(graph_id="early") == []


def test_an_interrupt_removes_only_the_waiting_job_from_the_endpoints_queue(a: Caller, b: Caller) -> None:
    b.deploy("queued", slow("queued"))
    owners = b.start(own("owner of b", 3.0))
    until(lambda: b.queue()[0] == [owners])
    prompt_id = a.start(calling("queued"))
    until(lambda: b.queue()[1])
    a.server.post("/interrupt", {"prompt_id": prompt_id})
    assert interrupted(a, prompt_id)
    until(lambda: b.queue()[1] == [])
    assert b.jobs(graph_id="queued")[0]["status"] == "CANCELLED"
    assert succeeded(b, owners)


def test_an_interrupt_while_the_result_arrives_stops_the_prompt(a: Caller, b: Caller) -> None:
    large = node("EmptyImage", width=4096, height=4096, batch_size=3, color=7)
    b.deploy(
        "large_output", {"1": graph_input("x"), "4": large, "3": graph_output("y", ("4", 0), "IMAGE"), "5": graph_output("x", ("1", 0))}
    )
    prompt_id = a.start(calling("large_output"))
    until(lambda: b.jobs(graph_id="large_output", status="COMPLETED"))
    a.server.post("/interrupt", {"prompt_id": prompt_id})
    assert interrupted(a, prompt_id)


# -- the other server ------------------------------------------------------------------------------------------------


def test_a_cleared_queue_of_the_endpoint_is_reported_on_the_node(a: Caller, b: Caller) -> None:
    b.deploy("cleared", slow("cleared"))
    owners = b.start(own("owner clears", 2.0))
    until(lambda: b.queue()[0] == [owners])
    prompt_id = a.start(calling("cleared"))
    until(lambda: b.queue()[1])
    b.server.post("/queue", {"clear": True})
    error = error_of(a, prompt_id)
    assert error["node_id"] == "2"
    assert "the owner cleared the queue" in error["exception_message"]
    assert succeeded(b, owners)


def test_an_interrupt_at_the_endpoint_is_reported_on_the_node(a: Caller, b: Caller) -> None:
    b.deploy("stopped", slow("stopped"))
    prompt_id = a.start(calling("stopped"))
    until(lambda: b.queue()[0])
    until(lambda: b.jobs(graph_id="stopped")[0]["progress"])
    b.server.post("/interrupt", {})
    error = error_of(a, prompt_id)
    assert error["node_id"] == "2"
    assert "interrupted by the owner" in error["exception_message"]


def test_out_of_memory_at_the_endpoint_is_reported_on_the_node(a: Caller, b: Caller) -> None:
    b.deploy("hungry", {"1": graph_input("x"), "66": node("TestOutOfMemory", value=("1", 0)), "3": graph_output("y", ("66", 0))})
    error = error_of(a, a.start(calling("hungry")))
    assert error["node_id"] == "2"
    assert "hungry/66" in error["exception_message"]
    assert "OutOfMemoryError" in error["exception_message"]


def test_a_deleted_graph_is_reported_on_the_node(a: Caller, b: Caller) -> None:
    b.deploy("gone", slow("gone", 0.01))
    assert succeeded(a, a.start(calling("gone")))
    loop_thread().run(b.client.remove("gone"))
    prompt = calling("gone")
    prompt["1"]["inputs"]["count"] = 2
    error = error_of(a, a.start(prompt))
    assert error["node_id"] == "2"
    assert "Unknown graph 'gone'" in error["exception_message"]


def test_a_value_of_wrong_type_is_refused_by_the_receiving_node(a: Caller, b: Caller) -> None:
    inner = {"1": graph_input("picture", "IMAGE"), "5": node("ImageInvert", image=("1", 0)), "3": graph_output("y", ("5", 0), "IMAGE")}
    b.deploy("typed", inner)
    prompt = calling("typed")
    prompt["1"] = node("PrimitiveString", value="no picture")
    error = error_of(a, a.start(prompt))
    assert error["node_id"] == "2"
    assert "typed/5" in error["exception_message"]


def test_a_wrong_token_is_reported_on_the_node(a: Caller, b: Caller) -> None:
    secrets = data_folder(a.server) / "secrets.yaml"
    right = secrets.read_text(encoding="utf-8")
    b.deploy("closed", slow("closed", 0.01))
    wrong = "x" * 43
    secrets.write_text(right.replace((data_folder(b.server) / "token").read_text(encoding="utf-8").strip(), wrong), encoding="utf-8")
    try:
        error = error_of(a, a.start(calling("closed")))
    finally:
        secrets.write_text(right, encoding="utf-8")
    assert error["node_id"] == "2"
    assert "The token is wrong" in error["exception_message"]
    assert wrong not in error["exception_message"] + a.server.printed()


@pytest.mark.conformance
def test_an_unreachable_peer_is_reported_soon_and_used_when_it_is_back(a: Caller, peer: Caller, servers: Servers) -> None:
    peer.deploy("back", slow("back", 0.01))
    peer.server.stop()
    error = error_of(a, a.start(calling("back", "peer")), 20.0)
    assert error["node_id"] == "2"
    assert f"nothing answers at {peer.server.url}" in error["exception_message"]
    again = servers.start(base=peer.server.base)
    know(a.server, {"peer": again})
    try:
        assert succeeded(a, a.start(calling("back", "peer")))
    finally:
        again.stop()


@pytest.mark.conformance
def test_a_server_without_the_extension_is_reported_on_the_node(a: Caller, b: Caller, peer: Caller, servers: Servers) -> None:
    plain = servers.start(pack=False)
    registry = data_folder(a.server) / "endpoints.yaml"
    registry.write_text(registry.read_text(encoding="utf-8").replace(peer.server.url, plain.url), encoding="utf-8")
    error = error_of(a, a.start(calling("anything", "peer")))
    plain.stop()
    assert error["node_id"] == "2"
    assert "'peer'" in error["exception_message"]
    assert "Yggdrasill" in error["exception_message"]


@pytest.mark.conformance
def test_a_call_to_a_killed_peer_ends_after_the_retry_time(a: Caller, peer: Caller) -> None:
    peer.deploy("dies", slow("dies"))
    prompt_id = a.start(calling("dies", "peer"))
    until(lambda: peer.queue()[0])
    peer.server.kill()
    error = error_of(a, prompt_id, 90.0)
    assert error["node_id"] == "2"
    assert f"nothing answers at {peer.server.url}" in error["exception_message"]


@pytest.mark.conformance
def test_the_callers_settings_define_how_long_an_endpoint_is_tried(b: Caller, servers: Servers, pair: tuple[Caller, Caller]) -> None:
    base = make_base_directory(servers.folder / "impatient")
    shutil.copy(pair[0].server.base / "custom_nodes" / "nodes_for_tests.py", base / "custom_nodes")
    (base / "user" / "yggdrasill").mkdir(parents=True)
    (base / "user" / "yggdrasill" / "settings.yaml").write_text("patience: 1\nfirst_patience: 0\n", encoding="utf-8")
    impatient = Caller(servers.start(base=base))
    way = Cutter(b.server.port)
    know(impatient.server, {"b": b.server})
    file = data_folder(impatient.server) / "endpoints.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(b.server.url, way.url), encoding="utf-8")
    b.deploy("lost", slow("lost"))
    prompt_id = impatient.start(calling("lost"))
    job = until(lambda: b.jobs(graph_id="lost", status="IN_PROGRESS"))[0]
    time.sleep(1.5)  # the call is answered by then, and follows the job
    way.close()
    error = error_of(impatient, prompt_id, 15.0)
    loop_thread().run(b.client.cancel(job["job_id"]))
    impatient.server.stop()
    assert f"nothing answers at {way.url}" in error["exception_message"]


@pytest.mark.conformance
def test_a_call_lost_after_acceptance_does_not_fall_back(a: Caller, peer: Caller) -> None:
    """The endpoint had accepted the call, so the fallback does not apply, although the same workflow is available locally."""
    prompt = {
        "1": graph_input("x"),
        "7": node("TestCount", value=("1", 0)),
        "8": node("TestSlow", value=("7", 0), seconds=20.0, salt="midway"),
        "3": graph_output("y", ("8", 0)),
    }
    for side in (a, peer):
        side.deploy("midway", prompt)
    contract = json.dumps(loop_thread().run(peer.client.contract("midway")))
    outer = {**calling("midway", "peer"), "2": remote_node("midway", "peer", ("1", 0), fallback="local", contract=contract)}
    prompt_id = a.start(outer)
    until(lambda: any(job["progress"] for job in peer.jobs(graph_id="midway")))
    peer.server.kill()
    error = error_of(a, prompt_id, 90.0)
    assert (error["node_id"], error["node_type"]) == ("2", "YggdrasillRemoteGraph")
    assert f"nothing answers at {peer.server.url}" in error["exception_message"]
    assert "not run again locally" in error["exception_message"]
    assert a.jobs(graph_id="midway") == []
    assert "graph 'midway' (hash" not in a.server.printed()
    assert a.queue() == ([], [])


@pytest.mark.conformance
def test_a_call_to_a_killed_peer_is_stopped_at_once(a: Caller, peer: Caller) -> None:
    peer.deploy("dead", slow("dead"))
    prompt_id = a.start(calling("dead", "peer"))
    until(lambda: peer.queue()[0])
    peer.server.kill()
    a.server.post("/interrupt", {"prompt_id": prompt_id})
    assert interrupted(a, prompt_id)


@pytest.mark.conformance
def test_a_restarted_peer_returns_the_result(a: Caller, peer: Caller, servers: Servers) -> None:
    """The peer has another port then, so the registry is changed: the running call ends, and the next one succeeds."""
    peer.deploy("again", slow("again", 0.5))
    assert succeeded(a, a.start(calling("again", "peer")))
    peer.server.kill()
    again = Caller(servers.start(base=peer.server.base))
    know(a.server, {"peer": again.server})
    prompt = calling("again", "peer")
    prompt["1"]["inputs"]["count"] = 3
    try:
        assert succeeded(a, a.start(prompt))
    finally:
        again.server.stop()


@pytest.mark.conformance
def test_nothing_keeps_running_for_a_killed_caller(b: Caller, peer: Caller) -> None:
    b.deploy("left", slow("left", 120.0))
    know(peer.server, {"b": b.server})
    peer.start(calling("left"))
    until(lambda: b.queue()[0])
    peer.server.kill()
    owners = b.start(own("owner waits", 0.1))
    until(lambda: b.jobs(graph_id="left")[0]["status"] == "CANCELLED", 60.0)
    assert succeeded(b, owners)


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent these signals on Windows")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_peer_that_is_stopped_in_order_ends_its_jobs_and_says_so(
    a: Caller, peer: Caller, servers: Servers, number: signal.Signals
) -> None:
    graph = f"stopped-{number.name}"
    peer.deploy(graph, slow(graph))
    prompt_id = a.start(calling(graph, "peer"))
    until(lambda: peer.queue()[0])
    peer.server.process.send_signal(signal.SIGTERM)
    assert "shutting down" in error_of(a, prompt_id)["exception_message"]
    peer.server.process.wait(60)
    servers.start_again(peer.server)
    (job,) = peer.jobs(graph_id=graph)
    assert job["status"] == "CANCELLED"
    assert peer.queue() == ([], [])
