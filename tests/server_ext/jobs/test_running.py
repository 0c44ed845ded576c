"""Calls of deployed graphs, pipelines, stages and worlds: values, errors, keys."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import torch

from samples.graphs import sample_registry
from samples.http_client import GateFile, Http, error_of, events_of, in_background, one_node
from yggdrasill.executor.context import enter_run
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.server_ext.deployment import deployment_hash
from yggdrasill.stage import Stage
from yggdrasill.stage.state import State
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack
from yggdrasill.world import World


def pipeline_config() -> dict[str, Any]:
    pipeline = Pipeline("twice")
    for name in ("first", "second"):
        pipeline.add_graph(one_node("double"), name, registry=sample_registry())
    pipeline.add_edge("first", "y", "second", "x")
    pipeline.expose_input("first", "x", "x")
    pipeline.expose_output("second", "y", "y")
    return pipeline.to_config()


def stage_config(stage_id: str = "stage") -> dict[str, Any]:
    stage = Stage(stage_id)
    stage.add_pipeline(pipeline_config(), "twice", registry=sample_registry())
    stage.set_state_contract([1], [2], [(1, "twice", "x")], [(2, "twice", "y")])
    stage.set_execution_condition([1])
    return stage.to_config()


def world_config() -> dict[str, Any]:
    world = World("small", seed=5)
    world.add_stage(stage_config("only"), registry=sample_registry())
    world.set_cycle(["only"])
    return world.to_config()


@pytest.mark.parametrize("value", [3, -2.5, "ab", [1], (1, "a"), float("inf")], ids=repr)
def test_a_remote_graph_gives_the_local_result(server: Http, value: Any) -> None:
    assert server.run("double", {"x": value}) == {"y": value + value}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("side", [3, 300])
def test_tensors_come_back_bit_for_bit_inline_and_as_artifacts(server: Http, dtype: torch.dtype, side: int) -> None:
    x = (torch.arange(side * side).reshape(side, side) % 120).to(dtype).t()
    y = server.run("double", {"x": x})["y"]
    assert (y.dtype, y.shape, y.stride()) == (dtype, x.shape, (x + x).stride())
    assert torch.equal(y, x + x)


def test_random_numbers_follow_the_callers_run_context(server: Http) -> None:
    run = {"seed": 11, "path": ["stage", "noise"], "pass_index": 2}
    remote = server.run("noise", {}, run=run)["noise"]
    graph = Graph.from_config(one_node("noise", (), ("noise",)), sample_registry())
    with enter_run(seed=11, path=("stage", "noise"), pass_index=2):
        local = graph.run({})["noise"]
    assert torch.equal(remote, local)
    assert not torch.equal(remote, server.run("noise", {}, run={**run, "pass_index": 3})["noise"])


def test_a_pipeline_accepts_handles_and_runs_whole(server: Http) -> None:
    server.deploy("twice", pipeline_config(), "pipeline")
    x = torch.randn(9000)
    assert torch.equal(server.run("twice", {"x": x}, options={"max_workers": 2})["y"], 4 * x)


def test_a_stage_takes_and_returns_a_state(server: Http) -> None:
    server.deploy("stage", stage_config(), "stage")
    state = State({1: 3.5, 3: torch.ones(9000)}, content={"land": "flat"}, passes=2, seed=9)
    after = State.from_dict(server.run("stage", {"state": state.to_dict(), "action": None})["state"])
    assert (after[1], after[2], after.content, after.passes, after.seed) == (3.5, 14.0, {"land": "flat"}, 2, 9)
    assert torch.equal(after[3], torch.ones(9000))
    contract = server.get("/graphs/stage/contract").json()["stage"]
    assert contract["execution_condition"] == [1]
    assert contract["outputs"] == [{"block": 2, "stage_node_id": "twice", "port": "y", "dtype": "any"}]


def test_a_world_runs_its_passes(server: Http) -> None:
    server.deploy("world", world_config(), "world")
    start = State({1: 2}).to_dict()
    after = State.from_dict(server.run("world", {"state": start, "action": None}, options={"num_steps": 3, "seed": 4})["state"])
    assert (after[2], after.passes, after.seed) == (8, 3, 4)


def test_a_dry_run_calls_no_blocks_and_loop_steps_repeat(server: Http) -> None:
    assert server.run("fail", {"x": 1}, options={"dry_run": True}) == {"y": None}
    ring = one_node("accumulate", ("x",), ("total",))
    ring["edges"] = [{"source_node": "node", "source_port": "total", "target_node": "node", "target_port": "x"}]
    server.deploy("ring", ring)
    assert server.run("ring", {"x": 1}, options={"num_loop_steps": 4}) == {"total": 8}


def test_a_contract_describes_inputs_and_outputs(server: Http) -> None:
    contract = server.get("/graphs/noise/contract").json()
    assert contract["outputs"] == [{"node_id": "node", "port_name": "noise", "name": "noise", "dtype": "tensor", "optional": False}]
    assert (contract["kind"], contract["deterministic"], contract["stateful"]) == ("graph", False, False)
    assert server.get("/graphs/double/contract").json()["deterministic"] is True
    assert server.get("/graphs/keeper/contract").json()["stateful"] is True


def test_a_failure_names_type_and_node_and_shows_no_traceback(server: Http) -> None:
    answer = server.submit("fail", {"x": 1}, run={"seed": 1, "path": ["stage", "part"], "pass_index": 0}).json()
    assert (answer["status"], answer["output"]) == ("FAILED", None)
    error = answer["error"]
    assert (error["type"], error["details"]["node"], error["details"]["cause"]) == ("BlockFailed", "stage/part/node", "ValueError")
    assert "failed on purpose" in error["message"]
    assert "Traceback" not in str(answer)
    assert "ValueError: failed on purpose" in server.process.log()


def test_a_missing_input_is_named(server: Http) -> None:
    error = server.submit("double", {}).json()["error"]
    assert (error["type"], error["details"]["ports"]) == ("MissingInput", ["x"])


def test_inputs_of_a_wrong_shape_or_name_fail_the_job(server: Http) -> None:
    assert server.submit("double", {"z": 1}).json()["error"]["type"] == "UnknownName"
    assert server.submit("double", [1]).json()["error"]["type"] == "InvalidArgument"


@pytest.mark.parametrize("options", [{"training": True}, {"device": "cuda"}, {"num_loop_steps": "3"}, {"num_steps": 2}, {"dry_run": 7}])
def test_invalid_run_options_are_refused(server: Http, options: dict[str, Any]) -> None:
    assert error_of(server.submit("double", {"x": 1}, options=options)) == (400, "InvalidArgument")


def test_the_same_key_returns_the_same_job(server: Http) -> None:
    key = uuid.uuid4().hex
    first, again = (server.submit("noise", {}, key=key).json() for _ in range(2))
    assert first == again


def test_the_same_key_with_another_body_is_refused(server: Http) -> None:
    key = uuid.uuid4().hex
    server.submit("double", {"x": 1}, key=key, run={"seed": None})
    for graph, value, seed in (("double", 2, None), ("say", 1, None), ("double", 1, 5)):
        assert error_of(server.submit(graph, {"x": value}, key=key, run={"seed": seed})) == (409, "JobConflict")


def test_two_requests_with_one_key_at_the_same_time_run_once(server: Http, gate_file: GateFile) -> None:
    key = uuid.uuid4().hex
    calls = [in_background(server.submit, "gate", gate_file.inputs(x=1), key=key) for _ in range(4)]
    gate_file.wait_begun()
    gate_file.open()
    answers = [call.result().json() for call in calls]
    assert len({answer["job_id"] for answer in answers}) == 1
    assert gate_file.runs == 1


def test_a_wait_ends_after_its_time_and_the_output_can_be_read_later(server: Http, gate_file: GateFile) -> None:
    answer = server.submit("gate", gate_file.inputs(x=7), wait=0.2)
    assert (answer.status_code, answer.json()["status"]) == (202, "IN_PROGRESS")
    job_id = answer.json()["job_id"]
    assert server.get(f"/jobs/{job_id}/output").status_code == 202
    gate_file.open()
    outcome = server.result(job_id)
    assert server.value(outcome["output"]) == {"y": 7}
    assert outcome["timing"]["run_s"] >= 0.2
    row = server.get(f"/jobs/{job_id}").json()
    assert row["created"] <= row["started"] <= row["finished"]
    assert job_id in [entry["job_id"] for entry in server.get("/jobs?graph_id=gate&status=COMPLETED").json()["jobs"]]


def test_deploying_an_equal_config_changes_nothing_and_another_replaces_it(server: Http, gate_file: GateFile) -> None:
    config = one_node("gate", ("path", "x"))
    first = server.deploy("replaced", config)
    assert first == {"graph_id": "replaced", "kind": "graph", "hash": deployment_hash("graph", config), "created": True}
    assert server.deploy("replaced", config)["created"] is False
    job_id = server.start("replaced", gate_file.inputs(x=1))
    gate_file.wait_begun()
    other = server.deploy("replaced", one_node("double"))
    assert (other["created"], other["hash"] != first["hash"]) == (True, True)
    assert server.run("replaced", {"x": 4}) == {"y": 8}
    gate_file.open()
    assert server.value(server.result(job_id)["output"]) == {"y": 1}


def test_a_state_is_deployed_with_the_config(server: Http) -> None:
    def body(state: Any) -> dict[str, Any]:
        with pack(state, MemoryStore()) as packed:
            return {"kind": "graph", "config": one_node("linear"), "state": packed.wire}

    right = body({"node": {"weight": 2 * torch.eye(3), "bias": torch.ones(3)}})
    created, again = (server.put("/graphs/linear", json=right) for _ in range(2))
    assert (created.status_code, again.status_code) == (201, 200)
    assert torch.equal(server.run("linear", {"x": torch.ones(3)})["y"], torch.full((3,), 3.0))
    assert error_of(server.put("/graphs/linear", json=body({"nobody": {"weight": 1}}))) == (400, "CheckpointMismatch")


def test_a_removed_graph_is_unknown_and_similar_names_are_suggested(server: Http) -> None:
    server.deploy("passing", one_node("double"))
    assert server.session.delete(server.url + "/graphs/passing").status_code == 204
    answer = server.submit("passing", {"x": 1})
    assert error_of(answer) == (404, "UnknownGraph")
    assert "'double'" in answer.json()["error"]["message"]
    assert error_of(server.get("/jobs/nothing")) == (404, "UnknownJob")
    assert error_of(server.get("/nowhere")) == (404, "UnknownName")


def test_any_printable_id_is_accepted_and_reaches_no_other_file(server: Http) -> None:
    before = set(server.process.data_dir.rglob("*.json"))
    for name in ("stage%2Fpipeline%2Fgraph", "..%2F..%2Fetc", "a%20b%C3%A9", "con"):
        assert server.put(f"/graphs/{name}", json={"kind": "graph", "config": one_node("double")}).status_code == 201
        assert server.run(name, {"x": 1}) == {"y": 2}
    folder = server.process.data_dir / "graphs"
    assert all(file.parent == folder for file in {*server.process.data_dir.rglob("*.json")} - before)


def test_calls_of_one_stateful_graph_do_not_overlap(server: Http, gate_file: GateFile) -> None:
    first, second = (server.start("keeper", gate_file.inputs()) for _ in range(2))
    gate_file.wait_begun()
    assert server.status(second) == "IN_QUEUE"
    gate_file.open()
    results = [server.value(server.result(job)["output"])["y"] for job in (first, second)]
    assert results[1] == results[0] + 1


HALF = "half an emoji: \ud83d"


def test_a_text_with_half_an_emoji_is_a_value_like_any_other(server: Http) -> None:
    assert server.run("double", {"x": HALF}) == {"y": HALF + HALF}
    job_id = server.start("say", {"x": HALF})
    events = events_of(server.get(f"/jobs/{job_id}/events", stream=True))
    assert [event["data"]["text"] for event in events if event["event"] == "log"] == [f"I was given {HALF}"]


def test_an_error_with_half_an_emoji_arrives_and_ends_the_job(server: Http) -> None:
    server.deploy("fail-half", one_node("fail", message=HALF))
    outcome = server.submit("fail-half", {"x": 1}).json()
    assert (outcome["status"], outcome["error"]["type"]) == ("FAILED", "BlockFailed")
    assert HALF in outcome["error"]["message"]
    assert server.get("/graphs/fail-half").json()["config"]["nodes"][0]["config"] == {"message": HALF}
    events = events_of(server.get(f"/jobs/{outcome['job_id']}/events", stream=True))
    assert HALF in events[-1]["data"]["error"]["message"]
