"""The acceptance oracle, Scheme 4.8, with every graph of the world on an endpoint and the orchestration here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.canonical_scheme import by_row, given
from samples.events import Events
from samples.recorders import Recordered, exact, witnessed
from samples.servers import ENDPOINTS, Servers
from samples.worlds import INITIAL_WORLD, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.foundation import BlockRegistry
from yggdrasill.remote import RemoteGraph
from yggdrasill.stage import State
from yggdrasill.world import CANONICAL_CYCLE, World

ALL = list(CANONICAL_CYCLE)
UPDATE = "environment/world_update/world_update/world_update"
DEVELOPMENT = "environment/development_of_the_world/development_of_the_world/development_of_the_world"
GRAPHS = {
    "describe": "forge",
    "narrate": "attic",
    "world_update/world_update": "cave",
    "development_of_the_world/development_of_the_world": "attic",
    "configure": "cave",
    "create": "forge",
}


@pytest.fixture(scope="module", params=["placed", "from its config"])
def remote(request: pytest.FixtureRequest, servers: Servers) -> World:
    """The canonical world without any graph here; nothing of it keeps state but the world."""
    if request.param == "placed":
        paths = {f"{name}/{name}" if "/" not in name else name: where for name, where in GRAPHS.items()}
        world: World = canonical_world().place(servers.registry(**paths))
    else:
        world = World.from_config(canonical_config(), BlockRegistry(built_ins=False), endpoints=servers.registry("attic"))
    return world


@pytest.fixture
def world(remote: World, tmp_path: Path) -> World:
    remote.content, remote.last_state = None, None
    remote.set_storage(tmp_path / "remote")
    return remote


def graphs_of(world: World) -> list[Any]:
    return [part for path, part in world.walk() if len(path) == 3]


def bits(state: State) -> bytes:
    return exact(state.loaded().to_dict())


def first_pass(servers: Servers, world: World, state: State | None, events: Events) -> tuple[State, Recordered]:
    with witnessed(servers.heard) as heard:
        after: State = world.run(state, callbacks=events)
    return after, heard


def test_every_graph_is_remote(world: World) -> None:
    assert len(graphs_of(world)) == 6
    assert all(isinstance(graph, RemoteGraph) for graph in graphs_of(world))


@by_row
def test_first_pass(
    servers: Servers, world: World, passed: tuple[int, ...] | None, skipped: list[str], updates: bool, tmp_path: Path
) -> None:
    events = Events()
    state, heard = first_pass(servers, world, given(passed), events)

    assert events.of("skipped") == skipped
    assert events.of("after") == [stage for stage in ALL if stage not in skipped]
    assert state.filled_blocks == [1, 2, 3]
    assert len(heard.get(UPDATE, [])) == int(updates)
    assert len(heard[DEVELOPMENT]) == 1
    assert len(world.content.get("episodes", [])) == int(updates)
    assert events.of("snapshot") == (["environment"] if updates else [])
    assert len(list((tmp_path / "remote").glob("tiny-0*.ygg"))) == int(updates)
    assert bits(state) == bits(canonical_world().run(given(passed)))


@by_row
def test_second_pass_runs_every_stage_and_updates_the_world(
    world: World, passed: tuple[int, ...] | None, skipped: list[str], updates: bool, tmp_path: Path
) -> None:
    local = canonical_world()
    local.set_storage(tmp_path / "local")
    events = Events()
    first = world.run(given(passed))

    second = world.run(first, callbacks=events)

    assert events.of("after") == ALL
    assert events.of("skipped") == []
    assert events.of("snapshot") == ["environment"]
    assert len(world.content["episodes"]) == int(updates) + 1
    assert second.filled_blocks == [1, 2, 3]
    assert bits(second) == bits(local.run(given(passed), num_steps=2))
    assert snapshots(tmp_path / "remote") == snapshots(tmp_path / "local")


def snapshots(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ygg"))


@by_row
def test_the_update_applies_exactly_what_was_passed(
    world: World, passed: tuple[int, ...] | None, skipped: list[str], updates: bool
) -> None:
    world.run(given(passed))

    if updates:
        assert passed is not None
        episode, expected = world.content["episodes"][0], user_state(*passed)
        names = ["happening", "configuration", "artifact", "description", "account"]
        assert all(exact(episode[names[block - 1]]) == exact(expected[block]) for block in passed)
        assert set(episode) == set(names)
    else:
        assert exact(world.content) == exact(INITIAL_WORLD)


def test_a_new_world_here_goes_on_from_the_snapshots_of_remote_graphs(world: World, tmp_path: Path) -> None:
    expected = canonical_world().run(user_state(1, 2, 3), num_steps=4)
    world.run(user_state(1, 2, 3), num_steps=2)

    later = World.from_config(canonical_config(), world_registry())
    later.set_storage(tmp_path / "remote", load_last_state=True)

    assert bits(later.run(num_steps=2)) == bits(expected)


def test_the_template_world_is_the_same_with_every_graph_remote(servers: Servers, tmp_path: Path) -> None:
    template: dict[str, Any] = {"size": 64, "seed": 5}
    local = World.from_template("canon_2.0", **template, storage={"state_dir": str(tmp_path / "local")})
    made = World.from_template("canon_2.0", **template, storage={"state_dir": str(tmp_path / "remote")})
    paths = ["/".join(path) for path, part in made.walk() if len(path) == 3]
    graphs = {path: ENDPOINTS[number % 3] for number, path in enumerate(paths)}
    placed = made.place(servers.registry(**graphs))
    assert len(paths) >= 6
    assert all(isinstance(graph, RemoteGraph) for graph in graphs_of(placed))

    here, there = Events(), Events()
    states = [
        world.run(num_steps=2, action="Raise a volcano in the west", callbacks=events) for world, events in ((local, here), (placed, there))
    ]

    assert there.seen == here.seen
    assert here.of("snapshot") == ["environment"]
    assert bits(states[1]) == bits(states[0])
    assert exact(placed.content) == exact(local.content)
    assert snapshots(tmp_path / "remote") == snapshots(tmp_path / "local") != []
    resumed = World.from_template("canon_2.0", **template, storage={"state_dir": str(tmp_path / "remote"), "load_last_state": True})
    assert bits(resumed.run()) == bits(local.run(states[0]))
