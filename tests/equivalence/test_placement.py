"""Wherever the parts of a project run, it gives the bits, skips, hooks and inputs it has in one process.

A case is an invented project, an invented placement of its parts at every level, and a few runs of both. What is equal:
outputs as the codec's bytes, errors with their words, hooks with their facts, and, for every node, the inputs it was given
in their order, which the blocks themselves note wherever they compute (`samples.recorders`).

Endpoints know parts by their content, so cases share what is deployed. A graph that keeps state between calls is
different: every placing of a project makes it anew at the endpoint, with the state it has in its config, as every build
does here. So each case builds the project twice, places one of the two, and runs both several times: the state they
keep is equal because everything that comes of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from samples.case_counts import CASE_COUNTS
from samples.graphs import GraphCase, graph_cases
from samples.placements import Layout, deployable, extended_world_configs, layouts
from samples.projects import pipeline_configs, pipeline_inputs, stage_configs, world_configs
from samples.recorders import REGISTRY, Recordered, exact, witnessed
from samples.servers import ENDPOINTS, Servers
from samples.worlds import user_state
from yggdrasill.errors import YggdrasillError
from yggdrasill.foundation import Graph, ReusePool
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.remote_graph import RemotePart
from yggdrasill.stage import Stage, State
from yggdrasill.values.handles import load_handles
from yggdrasill.world import World

#: Invented cases per test; `test_at_least_300_cases_ran` adds them up.
CASES = {"graph": 100, "pipeline": 90, "stage": 80, "world": 30, "canonical world": 30}

ROLES = st.sampled_from([None, "philosopher", "author", "environment", "architect", "creator"])
#: Enough rows for a tensor to travel beside the message, or None for one that travels inside.
ROWS = st.sampled_from([None, None, 1500])
FILLED = st.sampled_from([(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5), (2, 4, 5), (1, 3, 5)])


def cases(level: str) -> settings:
    return settings(
        max_examples=CASES[level],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class Told:
    """Hooks in their order, with their facts as bytes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []

    def __call__(self, name: str, phase: str, **facts: Any) -> None:
        self.seen.append((name, phase, {key: plain(value) for key, value in facts.items()}))


def plain(value: Any) -> bytes:
    """The exact bytes of what a run gives or a hook is told, with values in place of handles."""
    return exact(value.loaded().to_dict() if isinstance(value, State) else load_handles(value))


def outcome(run: Callable[[], Any]) -> Any:
    """What came of a run: bytes, or the error with its words and place."""
    try:
        return plain(run())
    except YggdrasillError as error:
        return type(error), error.message, error.details.get("node")


Runs = Sequence[Callable[[Any, Told], Any]]


def compare(servers: Servers, local: Any, placed: Any, runs: Runs) -> list[Any]:
    """Run both, one after the other, and give the outcomes, which are equal."""
    told, heard, outcomes = [], [], []
    for project in (local, placed):
        hooks = Told()
        with witnessed(servers.heard) as inputs:
            outcomes.append([outcome(lambda: run(project, hooks)) for run in runs])  # noqa: B023 - called at once
        told.append(hooks.seen)
        heard.append(inputs)
    assert outcomes[1] == outcomes[0]
    assert_same_inputs(heard[1], heard[0])
    if not isinstance(placed, RemotePart):
        assert told[1] == told[0]
    return outcomes[0]


def assert_same_inputs(found: Recordered, expected: Recordered) -> None:
    assert set(found) == set(expected)
    for place, given_inputs in expected.items():
        assert found[place] == given_inputs, place


def build(cls: Any, config: Mapping[str, Any]) -> Any:
    return cls.from_config(config, REGISTRY, pool=ReusePool())


def place(cls: Any, config: Mapping[str, Any], layout: Layout, registry: EndpointRegistry, built_first: bool) -> Any:
    """The project with its parts where the layout says, by either way there is."""
    layout.into(registry)
    if built_first:
        return build(cls, config).place(registry)
    return cls.from_config(config, REGISTRY, pool=ReusePool(), endpoints=registry)


def proxies_in(project: Any) -> int:
    if isinstance(project, RemotePart):
        return 1
    return sum(isinstance(part, RemotePart) for _, part in project.walk()) if not isinstance(project, Graph) else 0


def case_counter(level: str, placed: Any, layout: Layout, local: Any) -> None:
    CASE_COUNTS[level] += 1
    CASE_COUNTS["cases with remote parts"] += bool(proxies_in(placed))
    CASE_COUNTS["placed whole"] += isinstance(placed, RemotePart)
    CASE_COUNTS["with several remote parts"] += proxies_in(placed) > 1
    CASE_COUNTS["with replicas"] += layout.has_replicas
    CASE_COUNTS["with state"] += any(block.stateful for block in local.blocks())


def enlarged(value: torch.Tensor, rows: int | None) -> torch.Tensor:
    return value if rows is None else torch.stack([value + row for row in range(rows)])


@cases("graph")
@given(case=graph_cases(max_nodes=6), data=st.data(), seed=st.integers(0, 99), dry=st.sampled_from([False, False, False, True]))
def test_graphs(servers: Servers, shared_registry: EndpointRegistry, case: GraphCase, data: st.DataObject, seed: int, dry: bool) -> None:
    local = build(Graph, case.config)
    layout = data.draw(layouts(case.config, ENDPOINTS, "case"))
    placed = place(Graph, case.config, layout, shared_registry, built_first=True)
    missing = data.draw(st.sampled_from([None, None, *case.inputs]))
    less = {name: value for name, value in case.inputs.items() if name != missing}
    more = {name: value + 1 for name, value in case.inputs.items()}

    compare(
        servers,
        local,
        placed,
        [
            lambda graph, told: graph.run(case.inputs, num_loop_steps=case.steps, seed=seed, dry_run=dry),
            lambda graph, told: graph.run(less, num_loop_steps=case.steps, seed=seed),
            lambda graph, told: graph.run(more, num_loop_steps=case.steps, seed=seed + 1),
        ],
    )
    assert placed.to_config() == local.to_config()
    CASE_COUNTS["with cycles"] += "cycle" in case.traits
    case_counter("graph", placed, layout, local)


@cases("pipeline")
@given(config=pipeline_configs(), data=st.data(), seed=st.integers(0, 99), rows=ROWS, built_first=st.booleans())
def test_pipelines(
    servers: Servers,
    shared_registry: EndpointRegistry,
    config: dict[str, Any],
    data: st.DataObject,
    seed: int,
    rows: int | None,
    built_first: bool,
) -> None:
    config = deployable(config, servers.model, rows)
    local = build(Pipeline, config)
    layout = data.draw(layouts(config, ENDPOINTS, "pipeline" if built_first else None))
    placed = place(Pipeline, config, layout, shared_registry, built_first)
    inputs = {name: enlarged(value, rows) for name, value in pipeline_inputs(config).items()}
    missing = data.draw(st.sampled_from([None, None, *inputs]))
    less = {name: value for name, value in inputs.items() if name != missing}
    steps = data.draw(st.sampled_from([None, 1, 3]))

    compare(
        servers,
        local,
        placed,
        [
            lambda pipeline, told: pipeline.run(inputs, seed=seed, num_loop_steps=steps, callbacks=told),
            lambda pipeline, told: pipeline.run(less, seed=seed, callbacks=told),
            lambda pipeline, told: pipeline.run(inputs, seed=seed + 1, max_workers=3),
        ],
    )
    assert placed.to_config() == local.to_config()
    case_counter("pipeline", placed, layout, local)


@cases("stage")
@given(role=ROLES, data=st.data(), seed=st.integers(0, 99), rows=ROWS, built_first=st.booleans(), filled=st.tuples(FILLED, FILLED))
def test_stages(
    servers: Servers,
    shared_registry: EndpointRegistry,
    role: str | None,
    data: st.DataObject,
    seed: int,
    rows: int | None,
    built_first: bool,
    filled: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    config = deployable(data.draw(stage_configs(role=role)), servers.model, rows)
    local = build(Stage, config)
    layout = data.draw(layouts(config, ENDPOINTS, local.id if built_first else None))
    placed = place(Stage, config, layout, shared_registry, built_first)
    states = [state_of(blocks, rows, seed) for blocks in filled]

    for state in states:
        assert placed.should_run(state) == local.should_run(state)
        assert plain(placed.preview(state)) == plain(local.preview(state))
        CASE_COUNTS["stages whose condition does not hold"] += not local.should_run(state)
    compare(
        servers,
        local,
        placed,
        [
            lambda stage, told: stage.run(states[0], callbacks=told),
            lambda stage, told: stage.run(states[1], seed=seed + 1, callbacks=told),
            lambda stage, told: stage.run(states[0], num_loop_steps=3, callbacks=told),
        ],
    )
    assert placed.to_config() == local.to_config()
    case_counter("stage", placed, layout, local)


def state_of(blocks: tuple[int, ...], rows: int | None, seed: int | None = 3) -> State:
    values = {block: enlarged(torch.arange(4.0) - block, rows) for block in blocks}
    return State(values, content={"story": ["a lake"], "map": torch.zeros(2)}, seed=seed, passes=2)


@cases("world")
@given(config=world_configs(), data=st.data(), filled=FILLED, rows=ROWS, built_first=st.booleans())
def test_worlds(
    servers: Servers,
    shared_registry: EndpointRegistry,
    config: dict[str, Any],
    data: st.DataObject,
    filled: tuple[int, ...],
    rows: int | None,
    built_first: bool,
) -> None:
    same_worlds(servers, shared_registry, deployable(config, servers.model, rows), data, state_of(filled, rows), "world", built_first)


@cases("canonical world")
@given(config=extended_world_configs(), data=st.data(), filled=FILLED, built_first=st.booleans())
def test_canonical_worlds(
    servers: Servers,
    shared_registry: EndpointRegistry,
    config: dict[str, Any],
    data: st.DataObject,
    filled: tuple[int, ...],
    built_first: bool,
) -> None:
    same_worlds(servers, shared_registry, deployable(config, servers.model), data, user_state(*filled), "canonical world", built_first)


def same_worlds(
    servers: Servers, registry: EndpointRegistry, config: dict[str, Any], data: st.DataObject, state: State, level: str, built_first: bool
) -> None:
    local = build(World, config)
    layout = data.draw(layouts(config, ENDPOINTS, local.id if built_first else None))
    placed = place(World, config, layout, registry, built_first)
    action = data.draw(st.sampled_from([None, "raise a mountain", ["first", "second"]]))

    compare(
        servers,
        local,
        placed,
        [
            lambda world, told: world.run(state, num_steps=2, action=action, callbacks=told),
            lambda world, told: world.run(state, callbacks=told),
        ],
    )
    if isinstance(placed, World):
        assert plain(placed.content) == plain(local.content)
        assert placed.to_config() == local.to_config()
    CASE_COUNTS["worlds whose first pass skips stages"] += not {1, 2, 3} <= set(state.filled_blocks)
    case_counter(level, placed, layout, local)


def test_at_least_300_cases_ran(request: pytest.FixtureRequest) -> None:
    """The count, and that the cases are of every kind."""
    tests = {item.name for item in request.session.items if item.path == request.path}
    if not {"test_graphs", "test_pipelines", "test_stages", "test_worlds", "test_canonical_worlds"} <= tests:
        pytest.skip("only some of the invented cases were asked for")
    assert sum(CASE_COUNTS[level] for level in CASES) >= sum(CASES.values()) >= 300
    assert all(CASE_COUNTS[level] >= count for level, count in CASES.items())
    least = {
        "cases with remote parts": 300,
        "with several remote parts": 60,
        "placed whole": 40,
        "with replicas": 60,
        "with state": 60,
        "with cycles": 20,
    }
    assert {name: CASE_COUNTS[name] for name, count in least.items() if CASE_COUNTS[name] < count} == {}
