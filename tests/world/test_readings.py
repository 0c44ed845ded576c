"""The recommended readings of the canon (its section 16) that concern worlds, each under its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.events import Events
from samples.worlds import bits, block_of, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.stage import Stage, State
from yggdrasill.world import World


@pytest.mark.parametrize(
    "blocks, runs",
    [
        pytest.param((1, 2, 3), True, id="inputs filled, own block empty"),
        pytest.param((1, 2, 3, 4), False, id="own block filled"),
        pytest.param((1, 3), False, id="an input empty"),
    ],
)
def test_16_1_a_stage_runs_iff_its_inputs_are_filled_and_its_own_block_is_empty(world: World, blocks: tuple[int, ...], runs: bool) -> None:
    assert world.get_stage("philosopher").should_run(user_state(*blocks)) is runs


@pytest.mark.parametrize("missing", [1, 2, 3, 4, 5])
def test_16_2_world_update_needs_all_five_blocks(missing: int) -> None:
    world = canonical_world()
    environment = world.get_stage("environment")

    after = environment.run(user_state(*({1, 2, 3, 4, 5} - {missing})).replace(content={}))

    assert after.content == {}
    assert environment.run(user_state(1, 2, 3, 4, 5).replace(content={})).content != {}


@pytest.mark.parametrize("blocks", [(1,), (1, 2)])
def test_16_3_a_users_incomplete_state_never_reaches_the_architect(blocks: tuple[int, ...], events: Events) -> None:
    canonical_world().run(user_state(*blocks), callbacks=events)

    at_architect = next(
        facts for (name, phase), facts in zip(events.seen, events.facts, strict=True) if (name, phase) == ("architect", "before")
    )
    assert at_architect["state_before"].filled_blocks == [1]
    assert at_architect["state_before"][1] != user_state(1)[1]


@pytest.mark.parametrize("empty", [None, "", [], {}, (), b""], ids=repr)
def test_16_4_an_empty_block_counts_as_absent(empty: Any, events: Events) -> None:
    state = user_state(1, 2, 3).replace({4: empty})

    canonical_world().run(state, callbacks=events)

    assert "philosopher" in events.of("after")


@pytest.mark.parametrize("value", [0, 0.0, False], ids=repr)
def test_16_4_a_zero_is_a_value(value: Any, events: Events) -> None:
    canonical_world().run(user_state(1, 2, 3).replace({4: value}), callbacks=events)

    assert "philosopher" in events.of("skipped")


def test_16_5_block_5_that_a_user_passes_is_kept_by_skipping_the_author(world: World) -> None:
    world.run(user_state(1, 2, 3, 4, 5))

    assert block_of(world, "author").calls == 0
    assert world.content["episodes"][0]["account"] == user_state(5)[5]


def test_16_6_environment_always_runs_and_gives_developments_new_state(world: World, events: Events) -> None:
    environment = world.get_stage("environment")
    assert environment.execution_condition is None
    assert all(environment.should_run(user_state(*range(1, count + 1))) for count in range(6))

    world.run(user_state(1, 2, 3), callbacks=events)

    after = next(
        facts["state_after"]
        for (name, phase), facts in zip(events.seen, events.facts, strict=True)
        if (name, phase) == ("environment", "after")
    )
    assert after.filled_blocks == [1]


def test_16_7_one_action_reaches_the_first_pass_only(world: World) -> None:
    states = list(world.run(action="dig a canal", num_steps=2, iterate=True))

    assert ["dig a canal" in state[1] for state in states] == [True, False]


def test_16_7_a_list_of_actions_is_one_per_pass(world: World) -> None:
    states = list(world.run(action=["dig", None, "rest"], num_steps=3, iterate=True))

    assert [state[1].split(", ")[1] for state in states] == ["dig", "by itself", "rest"]


def test_16_7_more_actions_than_passes_are_refused(world: World) -> None:
    with pytest.raises(InvalidArgument, match="3 actions for 2 passes"):
        world.run(action=["a", "b", "c"], num_steps=2)


def test_16_7_an_action_reaches_no_other_stage() -> None:
    world = canonical_world()
    author = world.get_stage("author")
    contract = author.contract
    author.set_state_contract(
        contract.input_blocks, contract.output_blocks, [*contract.mapping_input, ("action", "narrate", "world")], contract.mapping_output
    )

    world.run(user_state(1, 2, 3), action="unseen")

    assert "after 0 episodes" in world.content["episodes"][0]["account"]


def test_16_8_the_world_owns_its_content_and_a_save_keeps_it(world: World, tmp_path: Path) -> None:
    world.run(user_state(1, 2, 3), num_steps=2)

    world.save(tmp_path / "saved")
    loaded = World.load(tmp_path / "saved", registry=world_registry())

    assert bits(loaded.content) == bits(world.content)
    assert len(loaded.content["episodes"]) == 2


def test_16_8_the_author_sees_the_content_that_is_not_yet_updated_and_the_architect_the_updated_one(events: Events) -> None:
    world = canonical_world()
    seen = {}

    def hook(name: str, phase: str, **facts: Any) -> None:
        if phase == "before":
            seen[name] = len(facts["state_before"].content.get("episodes", []))

    world.run(user_state(1, 2, 3), callbacks=hook)

    assert seen == {"philosopher": 0, "author": 0, "environment": 0, "architect": 1, "creator": 1}


def test_16_16_a_world_config_has_stages_not_nodes() -> None:
    config = canonical_config()
    config["nodes"] = config.pop("stages")

    with pytest.raises(InvalidConfig, match=r"stages: Field required"):
        World.from_config(config, world_registry())


def test_16_16_a_role_outside_the_five_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"'idealizer'.*'architect', 'author', 'creator', 'environment', 'philosopher'"):
        Stage("idea", role="idealizer")


def test_16_18_save_writes_json_and_load_reads_yaml_too(world: World, tmp_path: Path) -> None:
    world.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").is_file()

    (tmp_path / "saved" / "config.json").unlink()
    world.save_config(tmp_path / "saved" / "config.yaml")

    assert World.load(tmp_path / "saved", registry=world_registry()).to_config() == world.to_config()


def test_16_19_only_an_exact_ref_is_a_reference(tmp_path: Path) -> None:
    stage = canonical_config()["stages"]["author"]
    (tmp_path / "author.json").write_text(__import__("json").dumps(stage), encoding="utf-8")
    config = canonical_config()
    config["stages"]["author"] = {"ref": "author.json"}
    assert World.from_config(config, world_registry(), base_dir=tmp_path).to_config() == canonical_config()

    config["stages"]["author"] = {"ref": "author.json", "role": "author"}
    with pytest.raises(InvalidConfig, match="ref"):
        World.from_config(config, world_registry(), base_dir=tmp_path)


def test_a_state_without_content_gets_the_worlds(world: World) -> None:
    world.run(user_state(1, 2, 3))
    again = world.run(State({1: "x", 2: {"rows": 1, "scale": 1}, 3: user_state(3)[3]}))

    assert len(again.content["episodes"]) == 2
