"""Jobs in ComfyUI's queue beside the owner's prompts: cancelled by id, run in the configured order, never lost silently."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import pytest

from samples.comfy import Servers, make_base_directory
from samples.comfy_graphs import Caller, InBackground, data_folder, give, graph_input, graph_output, node, until
from samples.model_server import WEIGHTS
from samples.model_server import model_server as open_model_server
from yggdrasill.errors import Cancelled, RunError
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")


def slow(salt: str, seconds: float = 60.0) -> dict[str, Any]:
    """A slow workflow."""
    return {"1": graph_input("x"), "8": node("TestSlow", value=("1", 0), seconds=seconds, salt=salt), "3": graph_output("y", ("8", 0))}


def own(salt: str, seconds: float = 1.0) -> dict[str, Any]:
    """A prompt of the owner."""
    return {
        "1": node("TestSeveral", count=1),
        "2": node("TestSlow", value=("1", 0), seconds=seconds, salt=salt),
        "3": node("TestShow", value=("2", 0)),
    }


def cancel(side: Caller, graph_id: str) -> None:
    """Cancel the newest job of a graph."""
    loop_thread().run(side.client.cancel(side.jobs(graph_id=graph_id)[0]["job_id"]))


def succeeded(side: Caller, prompt_id: str) -> bool:
    entry = until(lambda: side.history(prompt_id))
    return bool(entry["status"]["status_str"] == "success")


def test_a_running_job_is_cancelled_and_the_owners_next_prompt_runs(a: Caller) -> None:
    call = InBackground(lambda: a.deploy("running", slow("running")).run({"x": 1}))
    until(lambda: a.queue()[0])
    next_one = a.start(own("next", 0.2))
    cancel(a, "running")
    with pytest.raises(Cancelled, match="Cancelled by request"):
        call.wait()
    assert succeeded(a, next_one)


def test_a_waiting_job_is_cancelled_and_the_owners_running_prompt_continues(a: Caller) -> None:
    running = a.start(own("running", 1.5))
    until(lambda: a.queue()[0] == [running])
    call = InBackground(lambda: a.deploy("waiting", slow("waiting")).run({"x": 1}))
    until(lambda: a.queue()[1])
    cancel(a, "waiting")
    with pytest.raises(Cancelled):
        call.wait()
    until(lambda: a.queue() == ([running], []))
    assert succeeded(a, running)


def test_a_cleared_queue_is_reported_to_the_caller(a: Caller) -> None:
    running = a.start(own("clearing", 1.5))
    until(lambda: a.queue()[0] == [running])
    call = InBackground(lambda: a.deploy("cleared", slow("cleared")).run({"x": 1}))
    until(lambda: a.queue()[1])
    a.server.post("/queue", {"clear": True})
    with pytest.raises(RunError, match="the owner cleared the queue"):
        call.wait()
    assert succeeded(a, running)


def test_the_owners_interrupt_ends_a_job_with_a_message(a: Caller) -> None:
    call = InBackground(lambda: a.deploy("stopped", slow("stopped")).run({"x": 1}))
    until(lambda: a.queue()[0])
    until(lambda: a.jobs(graph_id="stopped")[0]["progress"])
    a.server.post("/interrupt", {})
    with pytest.raises(Cancelled, match="interrupted by the owner"):
        call.wait()


def test_fifo_jobs_and_prompts_run_in_order_of_arrival(a: Caller) -> None:
    first = a.start(own("first", 0.5))
    until(lambda: a.queue()[0] == [first])
    call = InBackground(lambda: a.deploy("second", slow("second", 0.3)).run({"x": 1})["y"])
    until(lambda: a.queue()[1])
    third = a.start(own("third", 0.3))
    assert a.queue()[1][-1] == third
    assert call.wait() == 1
    assert a.history(third) is None
    assert succeeded(a, third)


def test_front_jobs_go_ahead_of_waiting_prompts_but_starve_none(servers: Servers, pair: tuple[Caller, Caller]) -> None:
    base = make_base_directory(servers.folder / "front")
    shutil.copy(pair[0].server.base / "custom_nodes" / "nodes_for_tests.py", base / "custom_nodes")
    (base / "user" / "yggdrasill").mkdir(parents=True)
    (base / "user" / "yggdrasill" / "settings.yaml").write_text("queue: front\n", encoding="utf-8")
    front = Caller(servers.start(base=base))
    served = front.deploy("ahead", slow("ahead", 0.15))
    running = front.start(own("running", 1.0))
    until(lambda: front.queue()[0] == [running])
    waiting = front.start(own("waiting", 0.01))
    calls = [InBackground(partial(give, served, number)) for number in range(12)]
    until(lambda: len(front.queue()[1]) == 13)
    order = [item[1] for item in sorted(front.server.get("/queue")["queue_pending"], key=lambda item: (item[0], item[1]))]
    assert order.index(waiting) == 8
    assert [call.wait() for call in calls] == list(range(12))
    assert succeeded(front, waiting)
    front.server.stop()


def test_nothing_keeps_running_for_a_lost_caller(a: Caller) -> None:
    served = a.deploy("orphan", slow("orphan"))
    body = {"key": "orphan-1", "inputs": {"skeleton": {"x": 1}, "payloads": []}, "options": {}, "run": {}, "orphan_after": 1.0, "wait": 0.0}
    assert loop_thread().run(a.client.submit(served.graph_id, body))[0] == 202
    until(lambda: a.queue()[0])
    until(lambda: a.queue() == ([], []))
    until(lambda: a.jobs(graph_id="orphan")[0]["status"] == "CANCELLED")


def test_a_job_survives_the_servers_death(servers: Servers, pair: tuple[Caller, Caller]) -> None:
    base = make_base_directory(servers.folder / "killed")
    shutil.copy(pair[0].server.base / "custom_nodes" / "nodes_for_tests.py", base / "custom_nodes")
    killed = Caller(servers.start(base=base))
    killed.deploy("resumed", slow("resumed", 1.0))
    body = {"key": "k", "inputs": {"skeleton": {"x": 5}, "payloads": []}, "options": {}, "run": {}, "detached": True, "wait": 0.0}
    _, row = loop_thread().run(killed.client.submit("resumed", body))
    until(lambda: killed.queue()[0])
    killed.server.kill()
    again = Caller(servers.start(base=base))
    status, row = loop_thread().run(again.client.output(row["job_id"], 20.0))
    assert (status, row["status"], row["output"]["skeleton"]) == (200, "COMPLETED", {"y": 5})
    assert (data_folder(again.server) / "jobs.sqlite").exists()
    again.server.stop()


@pytest.mark.conformance
def test_fetching_a_model_survives_the_servers_death(servers: Servers) -> None:
    base = make_base_directory(servers.folder / "fetching")
    (base / "user" / "yggdrasill").mkdir(parents=True)
    with open_model_server() as model_server:
        (base / "user" / "yggdrasill" / "settings.yaml").write_text(f"model_sources: ['{model_server.url}/good']\n", encoding="utf-8")
        killed = Caller(servers.start(base=base))
        wanted = {"key": "k", "url": f"{model_server.url}/good/gated.safetensors", "folder": "loras", "name": "a.safetensors"}
        job_id = loop_thread().run(killed.client.fetch_model(wanted))["job_id"]
        until(lambda: model_server.halves)
        killed.server.kill()
        model_server.gate.set()
        servers.start_again(killed.server)
        status, row = loop_thread().run(killed.client.output(job_id, 20.0))
    assert (status, row["status"]) == (200, "COMPLETED"), row
    assert [path.name for path in (base / "models" / "loras").iterdir() if path.stat().st_size] == ["a.safetensors"]
    assert (base / "models" / "loras" / "a.safetensors").read_bytes() == WEIGHTS
    killed.server.stop()
