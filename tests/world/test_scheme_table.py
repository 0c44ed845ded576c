"""The acceptance oracle: Scheme 4.8, what the first pass does for each thing a user may pass, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.canonical_scheme import by_row, given
from samples.events import Events
from samples.worlds import bits, block_of, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.stage import State
from yggdrasill.world import CANONICAL_CYCLE, World

ALL = list(CANONICAL_CYCLE)
FORMS = ["built in code", "from its config", "assembled by role", "from the config of one assembled by role"]
by_form = pytest.mark.parametrize("form", FORMS)


def build(form: str, folder: Path) -> World:
    if form == "from its config":
        world = World.from_config(canonical_config(), world_registry())
    else:
        world = canonical_world(by_role="by role" in form)
        if "config" in form:
            world = World.from_config(world.to_config(), world_registry())
    world.set_storage(folder)
    return world


@by_form
@by_row
def test_first_pass(form: str, passed: tuple[int, ...] | None, skipped: list[str], updates: bool, tmp_path: Path, events: Events) -> None:
    world = build(form, tmp_path)

    state = world.run(given(passed), callbacks=events)

    assert events.of("skipped") == skipped
    assert events.of("after") == [stage for stage in ALL if stage not in skipped]
    assert state.filled_blocks == [1, 2, 3]
    assert block_of(world, "environment", "world_update").calls == int(updates)
    assert block_of(world, "environment", "development_of_the_world").calls == 1
    assert len(world.content.get("episodes", [])) == int(updates)
    assert events.of("snapshot") == (["environment"] if updates else [])
    assert len(list(tmp_path.glob("tiny-0*.ygg"))) == int(updates)


@by_form
@by_row
def test_second_pass_runs_every_stage_and_updates_the_world(
    form: str, passed: tuple[int, ...] | None, skipped: list[str], updates: bool, tmp_path: Path, events: Events
) -> None:
    world = build(form, tmp_path)
    first = world.run(given(passed))

    second = world.run(first, callbacks=events)

    assert events.of("after") == ALL
    assert events.of("skipped") == []
    assert events.of("snapshot") == ["environment"]
    assert len(world.content["episodes"]) == int(updates) + 1
    assert second.filled_blocks == [1, 2, 3]


@by_row
def test_the_update_applies_exactly_what_was_passed(
    passed: tuple[int, ...] | None, skipped: list[str], updates: bool, tmp_path: Path
) -> None:
    world = build("built in code", tmp_path)
    world.run(given(passed))

    if updates:
        assert passed is not None
        names = ["happening", "configuration", "artifact", "description", "account"]
        episode = world.content["episodes"][0]
        expected = user_state(*passed)
        assert all(bits(episode[names[block - 1]]) == bits(expected[block]) for block in passed)
        assert set(episode) == set(names)
    else:
        assert "episodes" not in world.content


@by_row
def test_passing_the_state_back_in_equals_running_on(
    passed: tuple[int, ...] | None, skipped: list[str], updates: bool, tmp_path: Path
) -> None:
    together = canonical_world().run(given(passed), num_steps=3)

    apart: State | None = given(passed)
    for _ in range(3):
        world = canonical_world()
        apart = world.run(apart)

    assert bits(apart) == bits(together)


def test_an_incomplete_state_is_discarded_at_environment(world: World) -> None:
    assert bits(world.run(user_state(1, 2))) == bits(canonical_world().run())


@pytest.mark.parametrize("empty", [None, State(), {}, State({1: "", 2: {}, 3: [], 4: None})], ids=["None", "State", "dict", "empty blocks"])
def test_no_state_starts_at_development_by_ordinary_skipping(world: World, empty: Any, events: Events) -> None:
    state = world.run(empty, callbacks=events)

    assert events.seen[:3] == [("philosopher", "skipped"), ("author", "skipped"), ("environment", "before")]
    assert bits(state) == bits(canonical_world().run())
