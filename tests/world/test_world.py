"""Building, validating and running a world."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from samples.events import Events
from samples.worlds import INITIAL_WORLD, bits, block_of, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.errors import (
    Cancelled,
    DuplicateName,
    HookFailed,
    InvalidArgument,
    InvalidState,
    InvalidStructure,
    MissingFile,
    UnknownName,
)
from yggdrasill.executor.context import CancelToken, enter_run
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage, StageLike, State
from yggdrasill.values import Handle
from yggdrasill.world import CANONICAL_CYCLE, World

# -- building ---------------------------------------------------------------------------------------------------


def test_a_stage_is_added_as_an_object_a_config_or_a_file(tmp_path: Path) -> None:
    config = canonical_config()["stages"]["author"]
    (tmp_path / "author.json").write_text(json.dumps(config), encoding="utf-8")
    world = World()

    ids = [
        world.add_stage(Stage.from_config(config, world_registry())),
        world.add_stage(config, "second", registry=world_registry()),
        world.add_stage(tmp_path / "author.json", "third", registry=world_registry()),
        world.add_stage(str(tmp_path / "author.json"), "fourth", registry=world_registry()),
    ]

    assert ids == ["author", "second", "third", "fourth"]
    assert len({json.dumps(world.get_stage(name).to_config()) for name in ids}) == 1


def test_a_taken_stage_id_is_refused(world: World) -> None:
    with pytest.raises(DuplicateName, match="'author' is taken"):
        world.add_stage(Stage("author"))


def test_a_pipeline_is_no_stage(world: World) -> None:
    with pytest.raises(InvalidArgument, match="takes stages"):
        world.add_stage(Pipeline("p"))  # type: ignore[arg-type]  # that is what is tested


def test_an_unknown_stage_is_named_with_near_ones(world: World) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'author'"):
        world.get_stage("auther")


@pytest.mark.parametrize(
    "cycle, complaint",
    [
        (["a", "b", "b"], "'b'.* are repeated"),
        (["a", "c", "b"], "'c'.* do not exist"),
        (["a"], "'b'.* are missing"),
        ([], "'a', 'b'.* are missing"),
    ],
)
def test_a_cycle_names_every_stage_exactly_once(cycle: list[str], complaint: str) -> None:
    world = World()
    world.add_stage(Stage("a"))
    world.add_stage(Stage("b"))

    with pytest.raises(InvalidArgument, match=complaint):
        world.set_cycle(cycle)
    assert world.cycle == []


def test_the_canonical_cycle_is_found_by_role() -> None:
    world = World()
    for number, role in enumerate(reversed(CANONICAL_CYCLE)):
        world.add_stage(Stage(f"s{number}", role=role))

    world.set_canonical_cycle()

    assert world.cycle == ["s4", "s3", "s2", "s1", "s0"]


def test_the_canonical_cycle_needs_each_role_once() -> None:
    world = World()
    world.add_stage(Stage("one", role="author"))
    with pytest.raises(InvalidArgument, match="has no philosopher, environment, architect, creator"):
        world.set_canonical_cycle()
    world.add_stage(Stage("two", role="author"))
    with pytest.raises(InvalidArgument, match="'one' and 'two' are both author"):
        world.set_canonical_cycle()


def test_an_id_stands_for_a_missing_role() -> None:
    world = World()
    for role in CANONICAL_CYCLE:
        world.add_stage(Stage(role))
    world.set_canonical_cycle()

    assert world.cycle == list(CANONICAL_CYCLE)


class FarStage:
    """What a proxy looks like to a world: a stage that is no Stage, here in front of a real one."""

    def __init__(self, near: Stage) -> None:
        self.near = near
        self.stage_id = near.stage_id
        self.role = near.role

    def should_run(self, state: State) -> bool:
        return self.near.should_run(state)

    def run(self, state: State, *, action: Any = None, **options: Any) -> State:
        return State.from_dict(self.near.run(State.from_dict(state.to_dict()), action=action, **options).to_dict())

    def preview(self, state: State) -> State:
        return self.near.preview(state)

    def to_config(self) -> dict[str, Any]:
        return {"endpoint_url": "http://far.example", "graph_id": self.stage_id}


def test_a_stage_elsewhere_stands_in_the_ring() -> None:
    world = World("tiny", seed=7)
    for stage in canonical_world().stages.values():
        far = FarStage(stage)
        assert isinstance(far, StageLike)
        world.add_stage(far)  # type: ignore[arg-type]  # a proxy is accepted by its shape
    world.set_canonical_cycle()
    world.set_initial_world(INITIAL_WORLD)
    near = canonical_world()

    assert bits(world.run(num_steps=3)) == bits(near.run(num_steps=3))
    assert bits(world.content) == bits(near.content)
    assert world.run(dry_run=True).filled_blocks == [1, 2, 3]
    assert world.to_config()["stages"]["author"] == {"endpoint_url": "http://far.example", "graph_id": "author"}
    assert world.validate(validate_stages=True).is_valid


# -- validating -------------------------------------------------------------------------------------------------


def test_the_sample_world_is_valid(world: World) -> None:
    result = world.validate(validate_stages=True)
    assert (result.errors, result.warnings) == ([], [])


def test_a_world_without_stages_is_not_valid_and_does_not_run() -> None:
    assert World().validate(strict=False).errors == ["world 'world' has no stages; add some and set the cycle"]
    assert World.from_config(World().to_config()).to_config() == World().to_config()
    with pytest.raises(InvalidArgument, match="has no stages"):
        World().run()


def test_a_stage_outside_the_cycle_is_an_error_in_validate_and_run(world: World) -> None:
    world.add_stage(Stage("sixth"))

    with pytest.raises(InvalidStructure, match=r"'sixth'.* are missing"):
        world.validate()
    with pytest.raises(InvalidArgument, match=r"'sixth'.* are missing"):
        world.run()


def test_a_block_outside_the_schema_is_an_error(world: World) -> None:
    world.get_stage("author").set_execution_condition([1, "mood"])
    assert any("stage 'author': Unknown block or field 'mood'. Available: '1'" in error for error in world.validate(strict=False).errors)

    world.set_state_schema(["mood"])
    assert world.validate(strict=False).errors == []


def test_a_field_of_another_dtype_than_its_port_is_an_error() -> None:
    world = World()
    stage = Stage("s")
    pipeline = Pipeline("p")
    graph = {
        "nodes": [{"node_id": "n", "block_type": "sample/linear"}],
        "exposed_inputs": [{"node_id": "n", "port_name": "x", "name": "x"}],
        "exposed_outputs": [{"node_id": "n", "port_name": "y", "name": "y"}],
    }
    pipeline.add_graph(graph, "g", registry=world_registry())
    pipeline.expose_input("g", "x", "x")
    pipeline.expose_output("g", "y", "y")
    stage.add_pipeline(pipeline)
    stage.set_state_contract(["mood"], [2], [("mood", "p", "x")])
    world.add_stage(stage)
    world.set_cycle(["s"])
    world.set_state_schema({"mood": "text"})

    assert world.validate(strict=False).errors == ["stage 's': state field 'mood' is 'text', port p.x is 'tensor'"]


@pytest.mark.parametrize("name", ["1", "action", "content"])
def test_a_field_cannot_take_the_name_of_a_block_or_source(world: World, name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"'{name}' has the name of a block"):
        world.set_state_schema([name])


def test_nested_errors_carry_the_stage_id(world: World) -> None:
    world.get_stage("author").set_state_contract([1], [5], [(1, "nowhere", "x")], [])

    errors = world.validate(strict=False, validate_stages=True).errors

    assert any(error.startswith("author: contract input 1: Unknown pipeline 'nowhere'. Available: 'narrate'.") for error in errors)


def test_storage_that_cannot_be_used_is_an_error(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    world.set_storage(tmp_path / "file" / "inside")

    assert any("is not a folder" in error for error in world.validate(strict=False).errors)


def test_a_world_id_that_cannot_be_a_file_name_is_an_error_with_storage(tmp_path: Path) -> None:
    world = canonical_world(world_id="a/b")
    assert world.validate(strict=False).is_valid
    world.set_storage(tmp_path)

    assert any("'a/b' cannot be part of a file name" in error for error in world.validate(strict=False).errors)
    with pytest.raises(InvalidArgument, match="'a/b' cannot be part of a file name"):
        world.run()


# -- running ----------------------------------------------------------------------------------------------------


def test_three_steps_equal_three_runs_of_one(world: World) -> None:
    whole = canonical_world()
    together = whole.run(num_steps=3, seed=11)

    state = world.run(seed=11)
    for _ in range(2):
        state = world.run(state)

    assert bits(state) == bits(together)
    assert bits(world.content) == bits(whole.content)
    assert (state.passes, state.seed) == (3, 11)


def test_a_seed_decides_everything_and_another_seed_something_else() -> None:
    runs = [canonical_world().run(num_steps=2, seed=seed) for seed in (1, 1, 2)]

    assert bits(runs[0]) == bits(runs[1])
    assert bits(runs[0][3]) != bits(runs[2][3])


def test_the_seed_is_the_argument_else_the_states_else_the_worlds() -> None:
    assert canonical_world(seed=5).run(State(seed=4), seed=3).seed == 3
    assert canonical_world(seed=5).run(State(seed=4)).seed == 4
    assert canonical_world(seed=5).run().seed == 5
    assert canonical_world(seed=None).run().seed != canonical_world(seed=None).run().seed


def test_random_numbers_differ_from_pass_to_pass(world: World) -> None:
    first, second = world.run(num_steps=2, iterate=True)
    assert bits(first[3]) != bits(second[3])


def test_iterate_gives_the_state_of_each_pass(world: World) -> None:
    states = list(world.run(num_steps=3, iterate=True))

    assert [state.passes for state in states] == [1, 2, 3]
    assert bits(states[-1]) == bits(canonical_world().run(num_steps=3))


def test_no_steps_give_the_state_back(world: World) -> None:
    state = user_state(1, 2)
    assert bits(world.run(state, num_steps=0, seed=1)) == bits(state.replace(content=INITIAL_WORLD, seed=1))
    assert world.last_state is None


@pytest.mark.parametrize("steps", [-1, 1.5, True, "2"])
def test_num_steps_is_a_whole_number(world: World, steps: Any) -> None:
    with pytest.raises(InvalidArgument, match="num_steps must be an integer"):
        world.run(num_steps=steps)


def test_a_state_given_in_stays_as_it_was(world: World) -> None:
    state = user_state(1, 2, 3)
    before = bits(state)

    world.run(state, num_steps=2)

    assert bits(state) == before


def test_an_unknown_state_field_is_refused(world: World) -> None:
    world.set_state_schema(["style"])
    with pytest.raises(InvalidState, match=r"Unknown state field 'stile'\. Available: 'style'\."):
        world.run({"stile": "noir"})


def test_hooks_get_the_states_around_a_stage(stored: World, events: Events) -> None:
    stored.run(user_state(1, 2, 3), callbacks=events)

    order = ["philosopher", "author", "environment", "architect", "creator"]
    expected = [(name, phase) for name in order for phase in ("before", *(["snapshot"] if name == "environment" else []), "after")]
    assert events.seen == expected
    by_phase = {"before": {"state_before"}, "after": {"state_before", "state_after"}, "snapshot": {"path", "state_before"}}
    assert all(set(facts) == by_phase[phase] for (_, phase), facts in zip(events.seen, events.facts, strict=True))
    at_author = dict(zip(events.seen, events.facts, strict=True))["author", "after"]
    assert (at_author["state_before"].filled_blocks, at_author["state_after"].filled_blocks) == ([1, 2, 3, 4], [1, 2, 3, 4, 5])


def test_dry_run_walks_order_and_conditions_and_calls_nothing(stored: World, events: Events) -> None:
    real: list[Any] = []
    canonical_world().run(user_state(1, 2, 3), num_steps=2, callbacks=lambda name, phase, **_: real.append((name, phase)))

    state = stored.run(user_state(1, 2, 3), num_steps=2, dry_run=True, callbacks=events)

    assert events.seen == real
    assert state.filled_blocks == [1, 2, 3]
    assert (state.content, state.passes) == (INITIAL_WORLD, 2)
    assert all(block_of(stored, stage_id).calls == 0 for stage_id in stored.cycle)
    assert (stored.content, stored.last_state) == (None, None)
    assert stored.storage is not None
    assert not stored.storage.state_dir.exists()


def test_two_runs_at_once_are_refused(world: World) -> None:
    def second(name: str, phase: str, **_: Any) -> None:
        if (name, phase) == ("creator", "before"):
            world.run()

    with pytest.raises(InvalidArgument, match="is running already"):
        world.run(callbacks=second)
    assert world.run().passes == 1


def test_two_threads_at_once_are_refused(world: World) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(name: str, phase: str, **_: Any) -> None:
        if (name, phase) == ("creator", "before"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=lambda: world.run(callbacks=wait))
    thread.start()
    assert entered.wait(10)
    try:
        with pytest.raises(InvalidArgument, match="is running already"):
            world.run()
    finally:
        leave.set()
        thread.join(10)
    assert world.last_state is not None


def test_closing_an_iterator_frees_the_world_and_keeps_the_passes_it_gave(world: World) -> None:
    passes = world.run(num_steps=3, iterate=True)
    first = next(passes)
    with pytest.raises(InvalidArgument, match="is running already"):
        world.run()

    passes.close()

    assert world.last_state is first
    assert bits(world.run(first, num_steps=2)) == bits(canonical_world().run(num_steps=3))


def test_a_forgotten_iterator_frees_the_world_too(world: World) -> None:
    passes = world.run(num_steps=3, iterate=True)
    next(passes)
    del passes
    gc.collect()

    assert world.run().passes == 1


def test_an_iterator_nobody_starts_blocks_nothing(world: World) -> None:
    passes = world.run(iterate=True)
    assert world.run().passes == 1
    assert next(passes).passes == 1


def test_cancelling_stops_between_stages(world: World) -> None:
    token = CancelToken()

    def cancel(name: str, phase: str, **_: Any) -> None:
        if (name, phase) == ("environment", "after"):
            token.cancel("enough")

    with enter_run(seed=1, token=token), pytest.raises(Cancelled, match="enough"):
        world.run(callbacks=cancel)
    assert block_of(world, "architect").calls == 0


def test_options_reach_the_graphs(world: World) -> None:
    assert bits(world.run(user_state(1, 2, 3), num_steps=2, num_loop_steps=2, max_workers=2)) == bits(
        canonical_world().run(user_state(1, 2, 3), num_steps=2)
    )
    with pytest.raises(InvalidArgument, match="max_workers"):
        world.run(max_workers=0)
    with pytest.raises(InvalidArgument, match="num_loop_steps"):
        world.run(num_loop_steps=-1)


def test_training_mode_reaches_the_blocks(world: World) -> None:
    world.run(training=True)
    assert block_of(world, "creator").training is True
    world.run()
    assert block_of(world, "creator").training is False


def test_a_raising_hook_is_named(world: World) -> None:
    def broken(name: str, phase: str, **_: Any) -> None:
        raise RuntimeError("no")

    with pytest.raises(HookFailed, match="'philosopher', phase 'skipped'"):
        world.run(callbacks=broken)


class Reference(Handle):
    """A handle to a value that is in memory."""

    dtype = "float32"
    shape: tuple[int, ...] = ()
    hash = "0" * 64

    def __init__(self, value: Any) -> None:
        self.value = value
        self.shape = tuple(value.shape)

    def load(self) -> Any:
        return self.value


def test_what_a_world_returns_and_keeps_are_values_not_handles(stored: World) -> None:
    artifact = user_state(3)[3]

    stored.run(user_state(1, 2, 3).replace({3: Reference(artifact)}))
    plain = canonical_world()
    plain.run(user_state(1, 2, 3))

    assert bits(stored.content) == bits(plain.content)
    assert stored.storage is not None
    progress = stored.storage.read(stored.storage.snapshots("tiny")[0][1])
    assert bits(progress.state[3]) == bits(artifact)


class FarCreator:
    """A pipeline elsewhere: what it makes stays there, and a handle comes back."""

    def __init__(self, near: Any) -> None:
        self.near = near
        self.get_input_spec, self.get_output_spec, self.to_config = near.get_input_spec, near.get_output_spec, near.to_config

    def run(self, inputs: Any, **options: Any) -> dict[str, Any]:
        return {key: Reference(value) for key, value in self.near.run(inputs, **options).items()}


def test_a_pass_ends_with_values_wherever_they_were_made(world: World) -> None:
    creator: Any = world.get_stage("creator")
    far = world.with_children({"creator": creator.with_children({"create": FarCreator(creator.get_pipeline("create"))})})

    states = list(far.run(num_steps=2, iterate=True))

    assert not any(isinstance(state[3], Reference) for state in states)
    assert bits(states[-1]) == bits(canonical_world().run(num_steps=2))


# -- the first content ------------------------------------------------------------------------------------------


def test_initial_world_texts_may_be_files(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("an island rises", encoding="utf-8")
    (tmp_path / "style.yaml").write_text("palette: [ash, blue]\n", encoding="utf-8")
    config = canonical_config()
    config["initial_world"] = {"initial_story": {"ref": "story.txt"}, "style": {"ref": "style.yaml"}, "rules": ["one"]}

    world = World.from_config(config, world_registry(), base_dir=tmp_path)

    assert world.initial_world == {"initial_story": "an island rises", "style": {"palette": ["ash", "blue"]}, "rules": ["one"]}
    assert "an island rises" in world.run()[1]


def test_a_missing_text_file_is_named(tmp_path: Path) -> None:
    config = {**canonical_config(), "initial_world": {"initial_story": {"ref": "gone.md"}}}
    with pytest.raises(MissingFile, match=r"initial_world\.initial_story: 'ref' names .*gone\.md"):
        World.from_config(config, world_registry(), base_dir=tmp_path)


def test_an_empty_initial_world_is_allowed() -> None:
    world = canonical_world()
    world.set_initial_world()
    assert "after 'nothing'" in world.run()[1]


def test_the_initial_world_is_copied_not_shared() -> None:
    story = {"initial_story": "one", "rules": ["a"]}
    world = canonical_world()
    world.set_initial_world(story)
    story["rules"] = ["b"]
    world.run()

    world.content["rules"].append("c")

    assert world.initial_world == {"initial_story": "one", "rules": ["a"]}
