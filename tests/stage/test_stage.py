"""Building, validating and running a stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samples.blocks import register_samples
from yggdrasill.errors import (
    BlockFailed,
    CycleFound,
    DuplicateName,
    InvalidArgument,
    InvalidConfig,
    InvalidEdge,
    InvalidState,
    RunError,
    UnknownName,
)
from yggdrasill.foundation import Graph
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage, State

REGISTRY = BlockRegistry(built_ins=False)
register_samples(REGISTRY)


def one_block(
    name: str, block_type: str, inputs: dict[str, str], outputs: dict[str, str], config: dict[str, Any] | None = None
) -> Pipeline:
    """A pipeline of one graph of one block; ``inputs`` and ``outputs`` give the block's ports their external names."""
    graph = Graph(name, registry=REGISTRY)
    graph.add_node("n", block_type, config=config, auto_connect=False)
    pipeline = Pipeline(name)
    pipeline.add_graph(graph, "g")
    for port, external in inputs.items():
        graph.expose_input("n", port, external)
        pipeline.expose_input("g", external, external)
    for port, external in outputs.items():
        graph.expose_output("n", port, external)
        pipeline.expose_output("g", external, external)
    return pipeline


def add(name: str, a: str = "a", b: str = "b", out: str = "out") -> Pipeline:
    return one_block(name, "sample/add", {"a": a, "b": b}, {"out": out})


def double(name: str, x: str = "x", y: str = "y") -> Pipeline:
    return one_block(name, "sample/double", {"x": x}, {"y": y})


# -- mapping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("1", "2", "3"), ("block_1", "block_2", "block_3")], ids=["number", "block_number"])
def test_ports_named_like_blocks_are_found_by_name(names: tuple[str, str, str]) -> None:
    stage = Stage()
    stage.add_pipeline(one_block("p", "sample/add", {"a": names[1], "b": names[0]}, {"out": names[2]}, {"offset": "."}))
    stage.set_state_contract([1, 2], [3])

    assert stage.run({1: "one", 2: "two, "})[3] == "two, one."
    assert [(entry["block"], entry["port"]) for entry in stage.get_state_input_spec()] == [(1, names[0]), (2, names[1])]
    assert [(entry["block"], entry["port"]) for entry in stage.get_state_output_spec()] == [(3, names[2])]


def test_other_ports_are_taken_in_order() -> None:
    stage = Stage()
    stage.add_pipeline(add("p"))
    stage.set_state_contract([2, 1], [5])

    assert [(entry["block"], entry["port"]) for entry in stage.get_state_input_spec()] == [(2, "a"), (1, "b")]
    assert stage.run({1: 10, 2: 5})[5] == 15


def test_names_go_before_order() -> None:
    stage = Stage()
    stage.add_pipeline(add("p", a="free", b="1"))
    stage.set_state_contract([1, 2], [3])

    assert [(entry["block"], entry["port"]) for entry in stage.get_state_input_spec()] == [(1, "1"), (2, "free")]


def test_ports_inside_edges_are_no_interface() -> None:
    stage = Stage()
    stage.add_pipeline(double("first"))
    stage.add_pipeline(double("second"))
    stage.add_edge("first", "y", "second", "x")
    stage.set_state_contract([1], [2])

    assert stage.run({1: 3}).blocks == {1: 3, 2: 12}
    assert [(e["stage_node_id"], e["port"]) for e in (*stage.get_state_input_spec(), *stage.get_state_output_spec())] == [
        ("first", "x"),
        ("second", "y"),
    ]


@pytest.mark.parametrize("form", ["tuples", "dicts"])
def test_an_explicit_mapping_decides(form: str) -> None:
    stage = Stage()
    stage.add_pipeline(one_block("p", "sample/add", {"a": "a", "b": "b"}, {"out": "out"}, {"offset": "."}))
    into: list[Any] = [(1, "p", "b"), (2, "p", "a")]
    out_of: list[Any] = [("4", "p", "out")]
    if form == "dicts":
        into, out_of = (
            [dict(zip(("block", "stage_node_id", "port"), entry, strict=True)) for entry in entries] for entries in (into, out_of)
        )

    stage.set_state_contract([1, 2], [4], into, out_of)

    assert stage.run({1: "b", 2: "a", 4: "old"}).blocks == {1: "b", 2: "a", 4: "ab."}


@pytest.mark.parametrize("entry", [(1, "p"), "1pa", {"block": 1, "port": "a"}, 5], ids=["too short", "text", "missing key", "number"])
def test_a_mapping_entry_of_another_form_is_refused(entry: Any) -> None:
    with pytest.raises(InvalidArgument, match="a mapping entry"):
        Stage().set_state_contract([1], [], [entry])


def test_a_field_of_the_state_is_a_source_and_a_target() -> None:
    stage = Stage()
    stage.add_pipeline(double("p", x="mood", y="style"))
    stage.set_state_contract(["mood"], ["style"])

    after = stage.run(State({1: "kept"}, {"mood": 4, "other": "kept"}))

    assert dict(after.fields) == {"mood": 4, "other": "kept", "style": 8}
    assert after[1] == "kept"


def test_action_and_content_are_sources_and_content_a_target() -> None:
    stage = Stage()
    stage.add_pipeline(add("p"))
    stage.set_state_contract([], [], [("content", "p", "a"), ("action", "p", "b")], [("content", "p", "out")])

    after = stage.run(State({1: "kept"}, content=40), action=2)

    assert (after.content, after[1]) == (42, "kept")


def test_an_empty_content_is_a_value_an_empty_block_is_none() -> None:
    stage = Stage()
    stage.add_pipeline(one_block("p", "sample/collect", {"first": "block", "single": "content"}, {"out": "out"}))
    stage.set_state_contract([1], [2], [(1, "p", "block"), ("content", "p", "content")], [(2, "p", "out")])

    assert stage.run(State({1: ""}, content={}))[2] == {"single": {}}


def test_without_carry_only_what_is_mapped_comes_out() -> None:
    stage = Stage()
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1], [2], carry=False)

    after = stage.run(State({1: 2, 3: "gone"}, {"mood": "gone"}, content="stays", passes=4, seed=9))

    assert (after.blocks, dict(after.fields)) == ({2: 4}, {})
    assert (after.content, after.passes, after.seed) == ("stays", 4, 9)


def test_the_given_state_is_unchanged() -> None:
    stage = Stage()
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1], [1])
    state = State({1: [1]}, {"f": 1})

    after = stage.run(state)

    assert after is not state
    assert (state.blocks, dict(state.fields)) == ({1: [1]}, {"f": 1})
    assert after[1] == [1, 1]


# -- conditions -------------------------------------------------------------------------------------------------


def test_a_callable_decides_alone_and_cannot_be_saved() -> None:
    stage = Stage()
    stage.set_execution_condition(lambda state: state[1] == "go")

    assert stage.should_run(State({1: "go"}))
    assert not stage.should_run(State({1: "stop"}))
    with pytest.raises(InvalidConfig, match="is a function, which a config cannot hold"):
        stage.to_config()


def test_a_callable_that_raises_is_named() -> None:
    stage = Stage()
    stage.set_execution_condition(lambda state: state["x"]["y"])
    with pytest.raises(RunError, match=r"condition .* raised TypeError"):
        stage.should_run(State())


def test_a_list_asks_for_those_blocks_and_an_empty_own_block() -> None:
    stage = Stage()
    stage.set_state_contract([1, 2], [4])
    stage.set_execution_condition([1, "block_2", "mood"])

    assert stage.should_run(State({1: "a", 2: "b"}, {"mood": "c"}))
    assert not stage.should_run(State({1: "a", 2: "b"}))
    assert not stage.should_run(State({1: "a", 2: "b", 4: "d"}, {"mood": "c"}))


def test_an_own_block_that_is_also_asked_for_may_be_filled() -> None:
    stage = Stage()
    stage.set_state_contract([1], [1])
    stage.set_execution_condition([1])
    assert stage.should_run(State({1: "a"}))


@pytest.mark.parametrize("preset, runs", [("philosopher", {(1, 2, 3)}), ("author", {(1, 2, 3, 4)}), ("world_update", {(1, 2, 3, 4, 5)})])
def test_a_preset_holds_exactly_for_its_row_of_the_table(preset: str, runs: set[tuple[int, ...]]) -> None:
    from itertools import combinations

    stage = Stage()
    stage.set_execution_condition(preset)
    every = [blocks for size in range(6) for blocks in combinations(range(1, 6), size)]

    held = {blocks for blocks in every if stage.should_run(State(dict.fromkeys(blocks, "x")))}
    assert held == (runs | {(1, 2, 3, 5)} if preset == "philosopher" else runs)


@pytest.mark.parametrize("condition", ["philosofer", 5])
def test_an_unknown_condition_is_refused(condition: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"'always', 'architect', 'author', 'creator'|Did you mean 'philosopher'\?"):
        Stage().set_execution_condition(condition)


def test_no_condition_means_always_and_run_itself_never_asks() -> None:
    stage = Stage()
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1], [2])
    assert stage.should_run(State())

    stage.set_execution_condition("world_update")
    assert stage.run({1: 1})[2] == 2


def test_a_guarded_pipeline_runs_only_when_its_condition_holds() -> None:
    stage = Stage()
    stage.add_pipeline(double("always"))
    stage.add_pipeline(double("guarded"), condition=[5])
    stage.set_state_contract([1, 5], [2, 3], [(1, "always", "x"), (5, "guarded", "x")], [(2, "always", "y"), (3, "guarded", "y")])
    seen: list[tuple[str, str]] = []

    assert stage.run({1: 1}, callbacks=lambda name, phase, **_: seen.append((name, phase))).blocks == {1: 1, 2: 2}
    assert seen == [("always", "before"), ("always", "after"), ("guarded", "skipped")]
    assert stage.run({1: 1, 5: 2}).blocks == {1: 1, 2: 2, 3: 4, 5: 2}
    assert stage.run({1: 1, 5: 2, 3: "own block filled"})[3] == "own block filled"


def test_what_a_skipped_pipeline_would_feed_falls_back_to_the_mapped_source() -> None:
    stage = Stage()
    stage.add_pipeline(double("update"), condition=[5])
    stage.add_pipeline(double("next"))
    stage.add_edge("update", "y", "next", "x")
    stage.set_state_contract([1, 5], [2], [(5, "update", "x"), (1, "next", "x")], [(2, "next", "y")])

    assert stage.run({1: 1})[2] == 2
    assert stage.run({1: 1, 5: 10})[2] == 40


# -- building ---------------------------------------------------------------------------------------------------


def test_a_pipeline_is_added_as_an_object_a_config_or_a_file(tmp_path: Path) -> None:
    config = double("p").to_config()
    (tmp_path / "p.json").write_text(json.dumps(config), encoding="utf-8")
    stage = Stage()

    ids = [
        stage.add_pipeline(double("p")),
        stage.add_pipeline(config, "q", registry=REGISTRY),
        stage.add_pipeline(tmp_path / "p.json", "r", registry=REGISTRY),
    ]

    assert ids == ["p", "q", "r"]
    assert len({json.dumps(stage.get_pipeline(name).to_config()) for name in ids}) == 1


def test_a_single_graph_may_stand_for_a_pipeline_and_survives_the_config() -> None:
    graph = double("p").get_graph("g")
    stage = Stage()
    stage.add_pipeline(graph)
    stage.add_pipeline(graph.to_config(), "again", registry=REGISTRY)
    stage.set_state_contract([1, 2], [3, 4])

    loaded = Stage.from_config(stage.to_config(), REGISTRY)

    assert isinstance(loaded.get_pipeline("p"), Graph)
    assert loaded.to_config() == stage.to_config()
    assert loaded.run({1: 1, 2: 5}).blocks == stage.run({1: 1, 2: 5}).blocks == {1: 1, 2: 5, 3: 2, 4: 10}


def test_a_taken_id_an_unknown_pipeline_and_a_stage_as_pipeline_are_refused() -> None:
    stage = Stage("s")
    stage.add_pipeline(double("p"))
    with pytest.raises(DuplicateName, match="stage_node_id 'p' is taken"):
        stage.add_pipeline(double("p"))
    with pytest.raises(UnknownName, match=r"Unknown pipeline 'x'\. Available: 'p'"):
        stage.get_pipeline("x")
    with pytest.raises(InvalidArgument, match="not a stage"):
        stage.add_pipeline(Stage("other"))  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(InvalidArgument, match="takes pipelines"):
        stage.add_pipeline(object())  # type: ignore[arg-type]  # that is what is tested


def test_an_edge_to_no_port_and_a_cycle_are_refused() -> None:
    stage = Stage("s")
    stage.add_pipeline(double("p"))
    stage.add_pipeline(double("q"))
    with pytest.raises(InvalidEdge, match=r"edge p\.z -> q\.x: pipeline 'p': Unknown output 'z'\. Available: 'y'"):
        stage.add_edge("p", "z", "q", "x")
    stage.add_edge("p", "y", "q", "x")
    stage.add_edge("q", "y", "p", "x")

    with pytest.raises(CycleFound, match=r"p\.y -> q\.x, q\.y -> p\.x"):
        stage.run({1: 1})


def test_a_removed_pipeline_takes_its_edges_and_guard_along() -> None:
    stage = Stage()
    stage.add_pipeline(double("p"), condition=[1])
    stage.add_pipeline(double("q"))
    stage.add_edge("p", "y", "q", "x")

    stage.remove_pipeline("p")

    assert (list(stage.pipelines), stage.get_edges(), stage.pipeline_conditions) == (["q"], [], {})


# -- validating -------------------------------------------------------------------------------------------------


def errors_of(stage: Stage) -> list[str]:
    return stage.validate(strict=False).errors


def valid() -> Stage:
    stage = Stage("s")
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1], [2], [(1, "p", "x")], [(2, "p", "y")])
    assert errors_of(stage) == []
    return stage


def test_a_contracted_block_without_a_port_is_an_error() -> None:
    stage = Stage("s")
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1, 2], [3, 4])
    assert [error.split(";")[0] for error in errors_of(stage)] == [
        "contract input 2 has no pipeline port",
        "contract output 4 has no pipeline port",
    ]


def test_a_mapping_to_no_pipeline_or_port_is_an_error() -> None:
    stage = valid()
    stage.set_state_contract([1], [2], [(1, "p", "x"), (1, "pp", "x"), (1, "p", "z")], [(2, "p", "y")])
    assert errors_of(stage) == [
        "contract input 1: Unknown pipeline 'pp'. Available: 'p'. Did you mean 'p'?",
        "contract input 1: pipeline 'p': Unknown input 'z'. Available: 'x'.",
    ]


def test_a_mapping_outside_the_contract_is_an_error() -> None:
    stage = valid()
    stage.set_state_contract([], [2], [(1, "p", "x")], [(2, "p", "y")])
    assert errors_of(stage) == ["input mapping uses 1, which is not among the contract's input blocks []"]


def test_an_action_is_no_output() -> None:
    stage = valid()
    stage.set_state_contract([1], [], [(1, "p", "x")], [("action", "p", "y")])
    assert errors_of(stage) == ["an action comes from outside; no output can be mapped to it"]


def test_a_required_input_nothing_feeds_is_an_error() -> None:
    stage = valid()
    stage.set_state_contract([], [2], [], [(2, "p", "y")])
    assert errors_of(stage) == ["pipeline 'p', input 'x' is required and has no source; map a block to it or connect it"]


def test_a_cycle_is_an_error() -> None:
    stage = valid()
    stage.add_edge("p", "y", "p", "x")
    assert any(error.startswith("stage 's' has a cycle: p.y -> p.x") for error in errors_of(stage))


def test_a_pipeline_that_leads_nowhere_is_a_warning() -> None:
    stage = valid()
    stage.add_pipeline(one_block("lost", "sample/noise", {}, {"noise": "noise"}))
    result = stage.validate()
    assert (result.errors, result.warnings) == ([], ["pipeline 'lost' leads to no state block"])


def test_nested_errors_are_prefixed_at_every_level() -> None:
    stage = valid()
    graph = stage.get_pipeline("p").get_graph("g")
    graph.add_node("open", "sample/double", auto_connect=False)

    assert errors_of(stage) == []
    nested = stage.validate(strict=False, validate_pipelines=True).errors
    assert len(nested) == 1
    assert nested[0].startswith("p: g: node 'open', input 'x' is required")


# -- running ----------------------------------------------------------------------------------------------------


def test_the_path_of_a_failing_block_goes_from_stage_pipeline_to_node() -> None:
    stage = Stage("s")
    stage.add_pipeline(one_block("p", "sample/fail", {}, {"y": "y"}))
    with pytest.raises(BlockFailed, match="node 'p/g/n'"):
        stage.run()


def test_a_state_of_another_form_is_refused() -> None:
    with pytest.raises(InvalidState, match="a state is a State or a dict"):
        Stage().run([1])  # type: ignore[arg-type]  # that is what is tested


def test_a_dry_run_calls_nothing_and_writes_nothing() -> None:
    stage = Stage()
    stage.add_pipeline(one_block("p", "sample/fail", {"x": "x"}, {"y": "y"}))
    stage.set_state_contract([1], [2])
    assert stage.run({1: 1}, dry_run=True).blocks == {1: 1}


@pytest.mark.parametrize("carry", [True, False])
def test_a_dry_run_keeps_the_blocks_that_it_would_write(carry: bool) -> None:
    stage = Stage()
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1], [2], carry=carry)
    assert stage.run({1: 1, 2: "kept"}, dry_run=True).blocks == {1: 1, 2: "kept"}


def test_pipelines_without_a_guard_need_no_output_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    for name in ("p", "q", "r"):
        stage.add_pipeline(double(name))
    stage.set_state_contract([1], [2], [(1, "p", "x"), (1, "q", "x"), (1, "r", "x")], [(2, "p", "y")])
    assert stage.run({1: 1})[2] == 2

    def counted() -> list[Any]:
        raise AssertionError("computed for a guard")

    monkeypatch.setattr(stage, "output_mapping", counted)
    assert stage.run({1: 1})[2] == 2


def test_mappings_follow_the_contract_and_the_structure() -> None:
    stage = Stage()
    stage.add_pipeline(double("p"))
    stage.set_state_contract([1], [2])
    assert stage.run({1: 1}).blocks == {1: 1, 2: 2}
    stage.set_state_contract([1], [3])
    assert stage.run({1: 1}).blocks == {1: 1, 3: 2}
    stage.remove_pipeline("p")
    assert stage.run({1: 1}).blocks == {1: 1}
    stage.add_pipeline(double("q"))
    assert stage.run({1: 1}).blocks == {1: 1, 3: 2}


def test_preview_marks_what_would_be_written() -> None:
    stage = Stage("s")
    stage.add_pipeline(double("p"))
    stage.add_pipeline(double("q"), condition=[5])
    stage.set_state_contract([1, 5], [2, 3], [(1, "p", "x"), (5, "q", "x")], [(2, "p", "y"), (3, "q", "y")])
    assert stage.preview(State({1: 1})).blocks == {1: 1, 2: "(written by s)"}


def test_random_numbers_follow_the_states_seed_and_pass() -> None:
    import torch

    stage = Stage("s")
    stage.add_pipeline(one_block("p", "sample/noise", {}, {"noise": "noise"}))
    stage.set_state_contract([], [3])

    def noise(state: State, **options: Any) -> torch.Tensor:
        value: torch.Tensor = stage.run(state, **options)[3]
        return value

    assert torch.equal(noise(State(seed=1)), noise(State(), seed=1))
    assert not torch.equal(noise(State(seed=1)), noise(State(seed=1, passes=1)))
    assert not torch.equal(noise(State(seed=1)), noise(State(seed=2)))


def test_stages_count_as_no_pipelines_for_walk() -> None:
    stage = Stage("s")
    stage.add_pipeline(double("p"))
    assert ["/".join(path) for path, _ in stage.walk()] == ["p", "p/g"]
