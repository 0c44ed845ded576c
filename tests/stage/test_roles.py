"""What a role implies: the canonical conditions, how to replace them, and the warnings of a stage that departs from them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from samples.worlds import canonical_config, canonical_world, user_state, world_registry
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Condition, Stage, State
from yggdrasill.world import World

#: role -> blocks that must be filled, block that must be empty
CANON = {"philosopher": ((1, 2, 3), 4), "author": ((1, 2, 3, 4), 5), "architect": ((1,), 2), "creator": ((2,), 3)}
by_role = pytest.mark.parametrize("role", CANON)
EVERY = [blocks for size in range(6) for blocks in combinations(range(1, 6), size)]


def filled(blocks: tuple[int, ...]) -> State:
    return State(dict.fromkeys(blocks, "x"))


@by_role
def test_a_role_implies_its_condition(role: str) -> None:
    required, own = CANON[role]
    stage = Stage(role=role)
    for blocks in EVERY:
        assert stage.should_run(filled(blocks)) is (set(required) <= set(blocks) and own not in blocks), blocks


def test_environment_and_a_stage_without_a_role_always_run() -> None:
    for stage in (Stage(role="environment"), Stage()):
        assert all(stage.should_run(filled(blocks)) for blocks in EVERY)
        assert stage.condition is None


@by_role
def test_a_condition_that_is_set_replaces_the_roles(role: str) -> None:
    stage = Stage(role=role)
    stage.set_execution_condition("always")
    assert all(stage.should_run(filled(blocks)) for blocks in EVERY)

    stage.set_execution_condition(lambda state: False)
    assert not any(stage.should_run(filled(blocks)) for blocks in EVERY)

    stage.set_execution_condition(None)
    assert stage.should_run(filled(CANON[role][0]))
    assert not stage.should_run(State())


def test_an_implied_condition_is_not_written_to_the_config_and_always_is() -> None:
    stage = Stage("s", role="author")
    assert "execution_condition" not in stage.to_config()

    stage.set_execution_condition("always")
    loaded = Stage.from_config(stage.to_config())

    assert stage.to_config()["execution_condition"] == "always"
    assert loaded.should_run(State())


def environment(**conditions: Any) -> Stage:
    """The sample world's Environment with these pipeline conditions in place of its own."""
    stage: Stage = canonical_world(by_role=True).get_stage("environment")
    stage.pipeline_conditions.update({name: Condition(given) for name, given in conditions.items()})
    return stage


def test_environment_guards_its_world_update() -> None:
    stage = environment()
    assert stage.pipeline_conditions == {}
    assert "condition" not in stage.to_config()["pipelines"][0]

    incomplete = stage.run(user_state(1, 2, 3, 4).replace(content={}))
    complete = stage.run(user_state(1, 2, 3, 4, 5).replace(content={}))

    assert incomplete.content == {}
    assert len(complete.content["episodes"]) == 1


def test_a_guard_that_is_set_replaces_that_of_environment() -> None:
    guard = environment(world_update=[1]).guard("world_update")
    assert guard is not None
    assert guard.required == (1,)


def test_without_the_role_a_pipeline_of_that_name_is_not_guarded() -> None:
    stage = Stage()
    stage.add_pipeline(Pipeline("world_update"))
    assert stage.guard("world_update") is None


# -- validate ---------------------------------------------------------------------------------------------------


def warnings_of(stage: Stage) -> list[str]:
    return stage.validate(strict=False).warnings


@pytest.mark.parametrize("role", [*CANON, "environment"])
def test_a_stage_with_its_canonical_condition_has_no_warnings(role: str) -> None:
    for world in (canonical_world(), canonical_world(by_role=True)):
        assert warnings_of(world.get_stage(role)) == []


@pytest.mark.parametrize("condition", ["always", [1], "world_update"])
def test_a_condition_other_than_the_roles_is_a_warning(condition: Any) -> None:
    stage = canonical_world().get_stage("author")
    stage.set_execution_condition(condition)
    (warning,) = warnings_of(stage)
    assert warning.startswith(f"the execution condition is {condition!r}; a stage with role 'author' runs when blocks [1, 2, 3, 4] are")


def test_a_list_that_says_the_same_as_the_role_is_no_warning() -> None:
    stage = canonical_world().get_stage("author")
    stage.set_execution_condition([4, 3, 2, 1])
    assert warnings_of(stage) == []


def test_a_callable_condition_is_no_warning() -> None:
    stage = canonical_world().get_stage("author")
    stage.set_execution_condition(lambda state: True)
    assert warnings_of(stage) == []


def test_an_environment_without_world_update_or_development_is_a_warning() -> None:
    stage = environment()
    stage.remove_pipeline("world_update")
    assert any(warning.startswith("World update is missing") for warning in warnings_of(stage))

    stage = environment()
    stage.remove_pipeline("development_of_the_world")
    assert any(warning.startswith("Development is missing") for warning in warnings_of(stage))

    assert any(warning.startswith("World update is missing") for warning in warnings_of(environment(world_update="always")))
    assert any(warning.startswith("Development is missing") for warning in warnings_of(environment(development_of_the_world=[1])))


def test_an_environment_with_a_condition_is_a_warning() -> None:
    stage = environment()
    stage.set_execution_condition([1])
    assert any("a stage with role 'environment' always runs" in warning for warning in warnings_of(stage))


def test_a_world_reports_roles_once_whether_or_not_stages_are_validated() -> None:
    world = canonical_world()
    world.get_stage("author").set_execution_condition("always")
    for nested in (False, True):
        (warning,) = world.validate(validate_stages=nested).warnings
        assert warning.startswith("author: the execution condition is 'always'")


def test_a_stage_whose_id_is_a_role_is_a_warning_of_the_world() -> None:
    config = canonical_config()
    del config["stages"]["philosopher"]["role"], config["stages"]["philosopher"]["execution_condition"]
    world = World.from_config(config, world_registry())
    for nested in (False, True):
        (warning,) = world.validate(validate_stages=nested).warnings
        assert warning.startswith("philosopher: the id is that of a role, but the stage has no role")


# -- repeated mappings ------------------------------------------------------------------------------------------


def test_two_mapping_entries_into_one_port_are_an_error() -> None:
    stage = canonical_world().get_stage("creator")
    stage.set_state_contract([1, 2], [3], [(1, "create", "configuration"), (2, "create", "configuration")], [(3, "create", "artifact")])
    assert stage.validate(strict=False).errors == [
        "input mapping: port create.configuration is fed by 2 entries, [1, 2]; map one block to it"
    ]


def test_two_ports_that_write_one_block_are_an_error() -> None:
    stage = canonical_world().get_stage("environment")
    contract = stage.contract
    outputs = [(1, "development_of_the_world", "happening"), (1, "world_update", "new_content")]
    stage.set_state_contract(contract.input_blocks, [1], contract.mapping_input, outputs, carry=False)
    errors = stage.validate(strict=False).errors
    assert errors == [
        "output mapping: 1 is written by 2 ports, ['development_of_the_world.happening', 'world_update.new_content']; map one port to it"
    ]


def test_a_mapping_that_an_edge_hides_is_a_warning_unless_the_edge_may_be_absent() -> None:
    assert warnings_of(environment()) == []

    (warning,) = [warning for warning in warnings_of(environment(world_update="always")) if "input mapping" in warning]

    assert warning.startswith(
        "input mapping: port development_of_the_world.world is fed by 'content' and by an edge from 'world_update', which always runs"
    )


# -- dry runs ---------------------------------------------------------------------------------------------------


def test_a_dry_run_leaves_the_state_as_it_is_and_walks_the_pipelines() -> None:
    world = canonical_world()
    state = user_state(1, 2, 3, 4, 5).replace(content={"n": 1})
    seen: list[tuple[str, str]] = []

    for stage in world.stages.values():
        assert stage.run(state, dry_run=True, callbacks=lambda name, phase, **_: seen.append((name, phase))) == state

    assert ("create", "before") in seen


def test_a_preview_leaves_the_content_as_it_is() -> None:
    state = user_state(1, 2, 3, 4, 5).replace(content={"n": 1})
    assert environment().preview(state) == State({1: "(written by environment)"}, content={"n": 1})
