"""Copies of a level with other children, the way a project's parts are placed: nothing of the original changes."""

from __future__ import annotations

from typing import Any

from samples.worlds import bits, canonical_world, user_state
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage
from yggdrasill.world import World


def placed(world: World) -> World:
    """The world with its author's graph replaced by another object of the same config, at every level a copy."""
    author = world.get_stage("author")
    pipeline = author.get_pipeline("narrate")
    graph = canonical_world().get_stage("author").get_pipeline("narrate").get_graph("narrate")
    return world.with_children({"author": author.with_children({"narrate": pipeline.with_children({"narrate": graph})})})


def test_a_copy_runs_the_same_and_leaves_the_original_alone(world: World) -> None:
    before, config = world.get_stage("author"), world.to_config()
    copy = placed(world)

    state = copy.run(user_state(1, 2, 3), num_steps=2)

    assert bits(state) == bits(canonical_world().run(user_state(1, 2, 3), num_steps=2))
    assert world.get_stage("author") is before
    assert copy.get_stage("author") is not before
    assert copy.get_stage("creator") is world.get_stage("creator")
    assert (world.content, world.last_state, world.to_config()) == (None, None, config)
    assert copy.to_config() == config


def test_what_is_added_to_a_copy_is_not_added_to_the_original(world: World) -> None:
    environment: Any = world.get_stage("environment")
    copy = environment.with_children({})
    extra = canonical_world().get_stage("author").get_pipeline("narrate")

    copy.add_pipeline(extra, "extra", condition=[1])

    assert isinstance(copy, Stage)
    assert "extra" not in environment.pipelines
    assert "extra" not in environment.pipeline_conditions
    assert environment.to_config() == canonical_world().get_stage("environment").to_config()


def test_a_copy_may_run_while_the_original_does(world: World) -> None:
    copy = world.with_children({})
    passes = world.run(num_steps=2, iterate=True)
    next(passes)
    assert copy.run().passes == 1
    passes.close()


def test_a_pipelines_copy_has_its_edges_and_exposed_ports(world: World) -> None:
    pipeline: Any = world.get_stage("author").get_pipeline("narrate")
    copy = pipeline.with_children({})
    assert isinstance(copy, Pipeline)
    assert copy.to_config() == pipeline.to_config()
    copy.remove_graph("narrate")
    assert pipeline.node_ids == ["narrate"]
