"""Stages, worlds and states composed with nodes in a real ComfyUI: configs and runs equal those of Python."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, data_folder, node, until
from samples.endpoints import EndpointProcess
from samples.level_nodes import error_of, pasted, value_of, values_of
from yggdrasill.foundation.templates import render_template
from yggdrasill.remote.comfy_ports import port_values
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.placement import ProjectPart
from yggdrasill.stage import Stage, State
from yggdrasill.values import dumps
from yggdrasill.values.files import FileLock
from yggdrasill.world import World

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

SMALL: dict[str, Any] = {"size": 32, "world_id": "small"}


def small(world_id: str = "small", **settings: Any) -> dict[str, Any]:
    values = {"size": 32, "world_id": world_id, **settings}
    return node("YggdrasillWorld", source="template: canon_2.0", **{f"source.{name}": value for name, value in values.items()})


def run_node(world: tuple[str, int], steps: Any = 2, **inputs: Any) -> dict[str, Any]:
    return node("YggdrasillRunWorld", world=world, **{"action": "", "steps": steps, "seed": -1, "keep": False, **inputs})


def stage_node(*pipelines: tuple[str, int], **inputs: Any) -> dict[str, Any]:
    links = {f"pipelines.p{index}": link for index, link in enumerate(pipelines)}
    texts = dict.fromkeys(("connections", "condition", "reads", "writes", "conditions", "names"), "")
    return node("YggdrasillStage", **{"stage_id": "stage", "role": "none", "carry": True, **texts, **inputs}, **links)


def equal(one: Any, other: Any) -> bool:
    return bool(dumps(one) == dumps(other))


# -- configs ------------------------------------------------------------------------------------------------------


def test_a_world_from_a_template_equals_that_of_python(comfy: Caller) -> None:
    found = values_of(
        comfy, {"1": small(), "2": pasted("world", World.from_template("canon_2.0", **SMALL).to_config())}, one=("1", 0), two=("2", 0)
    )
    assert found["one"] == found["two"] == World.from_template("canon_2.0", **SMALL).to_config()


def test_a_stage_composed_on_the_canvas_equals_that_of_python(comfy: Caller) -> None:
    template = render_template("stage", "environment_stage", {})
    parts = {entry["stage_node_id"]: entry["pipeline_config"] for entry in template["pipelines"]}
    lines = "world_update.world -> development_of_the_world.world\n" + "\n".join(
        [f"{entry['block']} -> {entry['stage_node_id']}.{entry['port']}" for entry in template["state_contract"]["mapping_input"]]
        + [f"{entry['stage_node_id']}.{entry['port']} -> {entry['block']}" for entry in template["state_contract"]["mapping_output"]]
    )
    prompt = {
        "1": pasted("pipeline", parts["world_update"]),
        "2": pasted("pipeline", parts["development_of_the_world"]),
        "3": stage_node(
            ("1", 0),
            ("2", 0),
            stage_id="environment",
            role="environment",
            connections=lines,
            conditions="world_update: world_update",
            carry=False,
        ),
        "4": pasted("stage", template),
    }
    found = values_of(comfy, prompt, made=("3", 0), loaded=("4", 0))
    assert found["made"] == found["loaded"] == Stage.from_config(template).to_config()


def test_a_world_composed_on_the_canvas_equals_that_of_python(comfy: Caller) -> None:
    world = World.from_template("canon_2.0", **SMALL)
    names = [*world.stages][::-1]
    prompt = {str(number): pasted("stage", world.get_stage(name).to_config()) for number, name in enumerate(names)}
    stages = {f"stages.s{number}": (str(number), 0) for number in range(len(names))}
    story = json.dumps(world.initial_world)
    texts = {"world_id": "small", "description": world.description, "initial_world": story, "cycle": "", "fields": "", "names": ""}
    prompt["8"] = node("YggdrasillWorldFromStages", world_seed=7, **texts, **stages)
    made = value_of(comfy, prompt, ("8", 0))
    made.pop("tags", None)
    config = world.to_config()
    config.pop("tags")
    assert made == config
    assert [*made["cycle"]] == ["philosopher", "author", "environment", "architect", "creator"]


def test_python_reads_what_save_nodes_write(comfy: Caller) -> None:
    folder = data_folder(comfy.server)
    prompt = {"1": small(), "2": run_node(("1", 0)), "3": node("YggdrasillSaveWorld", world=("1", 0), state=("2", 0), name="kept")}
    prompt["4"] = node("YggdrasillSaveConfig", config=("1", 0), name="small.json")
    prompt["5"] = node("YggdrasillLoadWorld", name="kept")
    assert comfy.server.run({key: prompt[key] for key in "1234"})["status"]["status_str"] == "success"
    saved = World.load(folder / "worlds" / "kept")
    assert (
        saved.to_config()
        == World.from_yaml(folder / "configs" / "small.json").to_config()
        == World.from_template("canon_2.0", **SMALL).to_config()
    )
    assert saved.last_state is not None
    found = values_of(comfy, {"5": prompt["5"]}, world=("5", 0), state=("5", 1))
    assert found["world"] == saved.to_config()
    assert equal(found["state"], saved.last_state.to_dict())
    assert equal(found["state"], World.from_template("canon_2.0", **SMALL).run(num_steps=2).to_dict())


# -- runs ---------------------------------------------------------------------------------------------------------


def test_a_world_run_equals_that_of_python_with_pictures_and_texts(comfy: Caller) -> None:
    prompt = {"1": small(), "2": run_node(("1", 0), 3, action="Raise a volcano in the north\n---\n---\nSink the coast", seed=11)}
    found = values_of(comfy, prompt, state=("2", 0), images=("2", 1), chronicle=("2", 3))
    world = World.from_template("canon_2.0", **SMALL)
    states = list(world.run(num_steps=3, action=["Raise a volcano in the north", None, "Sink the coast"], seed=11, iterate=True))
    assert equal(found["state"], states[-1].to_dict())
    for picture, state in zip(port_values(found["images"]), states, strict=True):
        assert torch.equal(picture, state[3]["images"][0])
    assert str(states[-1].content["title"]) in found["chronicle"]
    assert str(states[-1].content["chronicle"][-1]["account"]["text"]) in found["chronicle"]


def test_a_state_is_passed_between_runs_and_edited_in_between(comfy: Caller) -> None:
    prompt = {
        "1": small(),
        "2": run_node(("1", 0), 1),
        "3": run_node(("1", 0), 1, state=("2", 0)),
        "4": node("YggdrasillState", state=("3", 0), edits="1: {episode: 9, title: Calm, text: All is calm.}\n2: null\n3: null"),
        "5": node("YggdrasillReadState", state=("3", 0)),
    }
    found = values_of(comfy, prompt, two=("3", 0), edited=("4", 0), block=("5", 1), images=("5", 5), passes=("5", 8))
    two = World.from_template("canon_2.0", **SMALL).run(num_steps=2)
    assert equal(found["two"], two.to_dict())
    assert equal(found["edited"], two.replace({1: {"episode": 9, "title": "Calm", "text": "All is calm."}, 2: None, 3: None}).to_dict())
    assert equal(found["block"], two[2])
    assert torch.equal(found["images"], two[3]["images"][0])
    assert found["passes"] == 2


def test_a_stage_runs_if_its_condition_holds(comfy: Caller) -> None:
    config = render_template("stage", "architect_stage", {"keep": {"size": 32}})
    prompt = {
        "1": pasted("stage", config),
        "2": node("YggdrasillState", edits="1: A cold land of lakes"),
        "3": node("YggdrasillRunStage", stage=("1", 0), state=("2", 0), action="", seed=3),
        "4": node("YggdrasillRunStage", stage=("1", 0), state=("3", 0), action="", seed=4),
    }
    found = values_of(comfy, prompt, once=("3", 0), again=("4", 0))
    expected = Stage.from_config(config).run(State({1: "A cold land of lakes"}), seed=3)
    assert equal(found["once"], expected.to_dict())
    assert equal(found["again"], found["once"])


def test_a_world_with_parts_on_an_endpoint_is_the_same(comfy: Caller, place: Callable[..., None]) -> None:
    expected = World.from_template("canon_2.0", **SMALL).run(num_steps=2)
    prompt = {"1": small(), "2": run_node(("1", 0))}
    for places in ({"creator": "forge", "philosopher": "forge"}, {"environment": "forge"}, {"small": "forge"}):
        place(**places)
        assert equal(value_of(comfy, prompt, ("2", 0)), expected.to_dict()), places


def test_a_part_has_the_same_key_in_a_stage_as_in_the_world(comfy: Caller, place: Callable[..., None], forge: EndpointProcess) -> None:
    config = render_template("stage", "architect_stage", {"keep": {"size": 32}})
    paths = [part.name for part in ProjectPart.of_config((), config).walk() if part.path and not part.children]
    place(**{f"{config['stage_id']}/{paths[-1]}": "forge"})
    state = State({1: "A cold land of lakes"})
    prompt = {
        "1": pasted("stage", config),
        "2": node("YggdrasillState", edits="1: A cold land of lakes"),
        "3": node("YggdrasillRunStage", stage=("1", 0), state=("2", 0), action="", seed=5),
    }
    before = _calls(forge)
    assert equal(value_of(comfy, prompt, ("3", 0)), Stage.from_config(config).run(state, seed=5).to_dict())
    assert _calls(forge) == before + 1


def _calls(end: EndpointProcess) -> int:
    return sum(row["kind"] == "call" for row in loop_thread().run(end.client().jobs(limit=1000)))


def test_endpoint_info_reports_health_and_graphs(comfy: Caller, place: Callable[..., None]) -> None:
    place()
    found = values_of(comfy, {"1": node("YggdrasillEndpointInfo", endpoint="forge")}, ready=("1", 0), info=("1", 1))
    assert found["ready"] is True
    assert "forge:" in found["info"]
    refused = comfy.refused({"1": node("YggdrasillEndpointInfo", endpoint="mill")})
    assert "Unknown endpoint 'mill'. Available: 'forge'" in json.dumps(refused["node_errors"]["1"])


# -- stopping -----------------------------------------------------------------------------------------------------


def interrupt_after_a_pass(comfy: Caller, prompt: dict[str, Any], last: Path) -> None:
    """Queue a prompt and interrupt it after it has stored the state of one more pass."""
    before = last.stat().st_mtime_ns if last.exists() else 0

    def written() -> bool:
        return last.exists() and last.stat().st_mtime_ns > before

    prompt_id = comfy.start(prompt)
    until(written)
    time.sleep(0.3)
    comfy.server.post("/interrupt", {"prompt_id": prompt_id})

    def ended() -> dict[str, Any] | None:
        return comfy.history(prompt_id)

    assert until(ended)["status"]["messages"][-1][0] == "execution_interrupted"


def test_an_interrupted_world_run_resumes_with_the_same_result(comfy: Caller) -> None:
    steps = 60
    prompt = {"1": small("stopped"), "2": run_node(("1", 0), steps, keep=True)}
    folder = data_folder(comfy.server) / "worlds" / "stopped" / "run"
    for _ in range(2):
        interrupt_after_a_pass(comfy, prompt, folder / "stopped-last.ygg")
    passes = State.from_dict(value_of(comfy, {"1": node("YggdrasillLoadWorld", name="stopped")}, ("1", 1))).passes
    assert 0 < passes < steps
    whole = World.from_template("canon_2.0", size=32, world_id="stopped").run(num_steps=steps)
    found = values_of(comfy, prompt, state=("2", 0), images=("2", 1))
    assert equal(found["state"], whole.to_dict())
    assert len(port_values(found["images"])) <= steps - passes
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["done"] is True


@pytest.mark.conformance
@pytest.mark.parametrize("places", [{"creator": "forge", "environment": "forge"}, {"far": "forge"}], ids=["parts", "whole"])
def test_a_world_on_an_endpoint_resumes_or_restarts_on_request(comfy: Caller, place: Callable[..., None], places: dict[str, str]) -> None:
    place(**places)
    prompt = {"1": small("far"), "2": run_node(("1", 0), 12, keep=True, seed=3)}
    interrupt_after_a_pass(comfy, prompt, data_folder(comfy.server) / "worlds" / "far" / "run" / "far-last.ygg")
    python = World.from_template("canon_2.0", size=32, world_id="far")
    assert equal(value_of(comfy, prompt, ("2", 0)), python.run(num_steps=12, seed=3).to_dict())
    anew = World.from_template("canon_2.0", size=32, world_id="far").run(num_steps=2, seed=4)
    assert equal(value_of(comfy, {"1": prompt["1"], "2": run_node(("1", 0), 2, keep=True, seed=4)}, ("2", 0)), anew.to_dict())


def test_a_run_of_a_world_that_another_process_runs_is_refused_without_damage(comfy: Caller) -> None:
    folder = data_folder(comfy.server) / "worlds" / "twice"
    folder.mkdir(parents=True, exist_ok=True)
    prompt = {"1": small("twice"), "2": run_node(("1", 0), 1, keep=True)}
    lock = FileLock(folder / "lock")
    assert lock.acquire(wait=False)
    try:
        error = error_of(comfy, prompt)
    finally:
        lock.release()
    assert "World 'twice' is already running" in error["exception_message"]
    expected = World.from_template("canon_2.0", size=32, world_id="twice").run(num_steps=1)
    assert equal(value_of(comfy, prompt, ("2", 0)), expected.to_dict())


def test_two_runs_of_a_world_in_one_prompt_run_one_after_the_other(comfy: Caller) -> None:
    first, second = (run_node(("1", 0), 2, keep=True, seed=seed) for seed in (1, 2))
    entry = comfy.server.run({"1": small("in-turn"), "2": first, "3": second})
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]


# -- bad input ----------------------------------------------------------------------------------------------------


def test_an_unwritable_world_folder_is_named(comfy: Caller) -> None:
    worlds = data_folder(comfy.server) / "worlds"
    worlds.mkdir(exist_ok=True)
    Path(worlds / "blocked").write_text("no folder", encoding="utf-8")
    error = error_of(comfy, {"1": small("blocked"), "2": run_node(("1", 0), keep=True)})
    assert "World 'blocked' cannot be stored in" in error["exception_message"]
    assert "switch 'keep' off" in error["exception_message"]


@pytest.mark.parametrize("content", ["", '{"key": "x", "done"', '{"key": "x", "done": false}', "[]"])
def test_a_damaged_run_record_is_named_with_a_remedy(comfy: Caller, content: str) -> None:
    run = data_folder(comfy.server) / "worlds" / "torn" / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(content, encoding="utf-8")
    for prompt in (
        {"1": small("torn"), "2": run_node(("1", 0), keep=True, seed=len(content))},
        {"1": node("YggdrasillLoadWorld", name="torn"), "2": node("YggdrasillReadState", state=("1", 1))},
    ):
        said = error_of(comfy, prompt)["exception_message"]
        assert "The record of a run is damaged" in said
        assert "run.json" in said
        assert "away to start again" in said


@pytest.mark.parametrize(
    "nodes, said",
    [
        ({"1": node("YggdrasillWorld", source="template: removed")}, "Unknown world template 'removed'. Available: 'art_generation'"),
        ({"1": pasted("world", {"schema_version": "3.0", "world_id": "w", "cycle": [], "stages": {}})}, "newer than '2.0'"),
        (
            {"1": small(artifacts="map"), "2": node("YggdrasillState", edits="1: a\n3: b"), "3": run_node(("1", 0), state=("2", 0))},
            "The state has a gap",
        ),
        ({"1": small(), "2": node("PrimitiveInt", value=-1), "3": run_node(("1", 0), ("2", 0))}, "steps must be at least 0, got -1"),
        ({"1": small("../up"), "2": run_node(("1", 0), keep=True)}, "must consist of letters, digits"),
        ({"1": small(), "2": run_node(("1", 0), 1, action="a\n---\nb")}, "Got 2 actions for 1 passes"),
        ({"1": node("YggdrasillState", edits="7: x")}, "a state has blocks 1, 2, 3, 4 and 5, not 7"),
        ({"1": node("YggdrasillLoadWorld", name="nowhere")}, "Unknown world 'nowhere'. Available: "),
        ({"1": node("YggdrasillLoadWorld", name="../..")}, "must consist of letters, digits"),
        ({"1": small(), "2": node("YggdrasillSaveConfig", config=("1", 0), name="../x.yaml")}, "is not a valid file name"),
        (
            {"1": pasted("graph", render_template("graph", "creator", {})), "2": stage_node(("1", 0), connections="2 -> creator.colour")},
            "colour",
        ),
    ],
)
def test_errors_are_reported_on_the_node(comfy: Caller, nodes: dict[str, Any], said: str) -> None:
    error = error_of(comfy, nodes)
    assert said in error["exception_message"]


def test_links_of_wrong_type_are_refused(comfy: Caller) -> None:
    refused = comfy.refused({"1": small(), "2": run_node(("1", 0), state=("1", 0))})
    assert "received_type(YGGDRASILL_WORLD)" in json.dumps(refused["node_errors"]["2"])
    refused = comfy.refused({"1": small(), "2": run_node(("1", 0), -1)})
    assert "Value -1 smaller than min of 0" in json.dumps(refused["node_errors"]["2"])
