"""Config, folder and archive of a stage, and the readings of the canon that concern them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samples.worlds import bits, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.errors import CheckpointMismatch, InvalidConfig, MissingFile, UnknownName
from yggdrasill.foundation.templates import register_template
from yggdrasill.stage import Stage, State

ENVIRONMENT = canonical_config()["stages"]["environment"]


def environment() -> Stage:
    stage = canonical_world().get_stage("environment")
    assert isinstance(stage, Stage)
    return stage


def test_a_config_keeps_guards_carry_mapping_edges_and_condition() -> None:
    stage = Stage.from_config(ENVIRONMENT, world_registry(), validate=True)

    assert stage.to_config() == ENVIRONMENT
    state = user_state(1, 2, 3, 4, 5).replace(content={}, seed=1)
    assert bits(stage.run(state)) == bits(environment().run(state))


@pytest.mark.parametrize("condition", ["author", [1, 2, "mood"]])
def test_a_preset_and_a_list_survive_the_config(condition: Any) -> None:
    stage = Stage()
    stage.set_execution_condition(condition)
    assert Stage.from_config(stage.to_config()).to_config()["execution_condition"] == condition


@pytest.mark.parametrize("name", ["saved", "saved.zip", "saved.tar"])
def test_a_saved_stage_runs_the_same(tmp_path: Path, name: str) -> None:
    creator = canonical_world(stateful=True).get_stage("creator")
    state = State({2: {"rows": 2, "scale": 3}}, seed=4)
    creator.run(state)
    creator.save(tmp_path / name, format="archive" if "." in name else "dir")

    loaded = Stage.load(tmp_path / name, registry=world_registry())

    assert bits(loaded.run(state)) == bits(creator.run(state))


def test_the_folder_has_the_layout_of_the_canon(tmp_path: Path) -> None:
    environment().save(tmp_path)
    meta = json.loads((tmp_path / "checkpoints/stage_meta.json").read_text(encoding="utf-8"))
    assert meta == {"stage_id": "environment", "node_ids": ["world_update", "development_of_the_world"], "version": "1.0"}
    assert (tmp_path / "checkpoints/world_update/config.json").is_file()


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path) -> None:
    environment().save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(canonical_config()["stages"]["author"]), encoding="utf-8")
    with pytest.raises(CheckpointMismatch, match=r"stage_meta\.json' is a checkpoint of stage 'environment'"):
        Stage.load(tmp_path, registry=world_registry())


def test_no_config_in_the_folder_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"holds no config\.json or config\.yaml"):
        Stage.load(tmp_path)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"role": "painter"}, "role"),
        ({"execution_condition": 3}, "execution_condition"),
        ({"state_contract": {"input_block": [1]}}, r"state_contract\.input_block"),
        ({"pipelines": [{"stage_node_id": "x"}]}, r"pipelines\[0\] needs exactly one of 'pipeline_config', 'ref' and 'endpoint_url'"),
        ({"pipelines": [{"stage_node_id": "x", "ref": "a", "endpoint_url": "b"}]}, "needs exactly one of"),
    ],
    ids=["role", "condition", "contract", "no pipeline", "two pipelines"],
)
def test_a_mistake_in_a_config_is_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidConfig, match=complaint):
        Stage.from_config({**ENVIRONMENT, **change}, world_registry())


def test_a_template_of_the_level_builds_a_stage() -> None:
    register_template("stage", "tiny_test_stage", lambda: ENVIRONMENT)
    assert Stage.from_template("tiny_test_stage", registry=world_registry()).to_config() == ENVIRONMENT
    with pytest.raises(UnknownName):
        Stage.from_template("no such stage")


def test_trainable_flags_survive_the_config() -> None:
    stage = environment()
    stage.set_trainable("world_update", False)
    loaded = Stage.from_config(stage.to_config(), world_registry())
    assert [loaded.is_trainable(name) for name in loaded.pipelines] == [False, True]


# -- readings of the canon's section 16 -------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2)], ids=str)
def test_16_1_the_author_runs_iff_1_to_4_are_filled_and_5_is_empty(blocks: tuple[int, ...]) -> None:
    assert canonical_world().get_stage("author").should_run(user_state(*blocks)) is (blocks == (1, 2, 3, 4))


def test_16_6_world_update_is_a_guarded_pipeline_and_the_output_is_developments_state() -> None:
    stage = environment()
    seen: list[tuple[str, str]] = []

    def note(name: str, phase: str, **_: Any) -> None:
        seen.append((name, phase))

    incomplete = stage.run(user_state(1, 2, 3).replace(seed=1), callbacks=note)
    assert seen == [("world_update", "skipped"), ("development_of_the_world", "before"), ("development_of_the_world", "after")]
    assert incomplete.filled_blocks == [1]

    seen.clear()
    complete = stage.run(user_state(1, 2, 3, 4, 5).replace(seed=1), callbacks=note)
    assert [name for name, phase in seen if phase == "after"] == ["world_update", "development_of_the_world"]
    assert complete.filled_blocks == [1]


def test_16_8_content_comes_back_updated_from_environment() -> None:
    before = user_state(1, 2, 3, 4, 5).replace(content={"episodes": []}, seed=1)
    after = environment().run(before)
    assert (len(before.content["episodes"]), len(after.content["episodes"])) == (0, 1)


def test_16_14_a_block_nobody_wrote_is_absent_not_none() -> None:
    registry = world_registry()
    graph = {
        "nodes": [{"node_id": "n", "block_type": "sample/branch"}],
        "exposed_inputs": [{"node_id": "n", "port_name": "x", "name": "x"}],
        "exposed_outputs": [{"node_id": "n", "port_name": port, "name": port} for port in ("positive", "negative")],
    }
    stage = Stage()
    stage.add_pipeline(graph, "p", registry=registry)
    stage.set_state_contract([1], [2, 3], [(1, "p", "x")], [(2, "p", "positive"), (3, "p", "negative")])

    assert stage.run({1: 5}).blocks == {1: 5, 2: 5}
    assert stage.run({1: 5, 3: "kept"}).blocks == {1: 5, 2: 5, 3: "kept"}


def test_16_18_save_writes_json_and_load_reads_yaml(tmp_path: Path) -> None:
    environment().save(tmp_path)
    (tmp_path / "config.json").unlink()
    environment().save_config(tmp_path / "config.yaml")
    assert Stage.load(tmp_path, registry=world_registry()).to_config() == ENVIRONMENT


def test_16_19_a_ref_with_another_key_beside_it_is_none() -> None:
    config = {**ENVIRONMENT, "pipelines": [{"stage_node_id": "x", "pipeline_config": {"ref": "p.json", "pipeline_id": "x"}}]}
    with pytest.raises(InvalidConfig, match="ref"):
        Stage.from_config(config, world_registry())
