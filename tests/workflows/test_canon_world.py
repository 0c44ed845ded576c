"""The shipped canonical world: Scheme 4.8's table holds for it, its chronicle grows, actions are heard, seeds decide."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from yggdrasill.blocks.text.happenings import ACTION_OPENINGS
from yggdrasill.stage import State
from yggdrasill.values import dumps
from yggdrasill.world import CANONICAL_CYCLE, World

#: What is passed, which stages are skipped, whether World update runs.
ROWS = [
    pytest.param(None, ["philosopher", "author"], False, id="nothing"),
    pytest.param([], ["philosopher", "author"], False, id="empty"),
    pytest.param([1], ["philosopher", "author"], False, id="1"),
    pytest.param([1, 2], ["philosopher", "author"], False, id="1,2"),
    pytest.param([1, 2, 3], [], True, id="1,2,3"),
    pytest.param([1, 2, 3, 4], ["philosopher"], True, id="1,2,3,4"),
    pytest.param([1, 2, 3, 4, 5], ["philosopher", "author"], True, id="1-5"),
]
SIZE = 96
PROGRAM = """
import hashlib
from yggdrasill.values import dumps
from yggdrasill.world import World
state = World.from_template("canon_2.0", size=64, seed=5).run(num_steps=2, action="Raise a volcano in the west")
print(hashlib.sha256(dumps(state.to_dict())).hexdigest())
"""


def make(**parameters: Any) -> World:
    return World.from_template("canon_2.0", size=SIZE, **parameters)


def ran(world: World, state: State | None, **options: Any) -> tuple[State, dict[str, list[str]]]:
    phases: dict[str, list[str]] = {"after": [], "skipped": []}

    def note(stage_id: str, phase: str, **facts: Any) -> None:
        phases.setdefault(phase, []).append(stage_id)

    return world.run(state, callbacks=note, **options), phases


@pytest.mark.parametrize("passed, skipped, updated", ROWS)
def test_scheme_4_8_holds(passed: list[int] | None, skipped: list[str], updated: bool, full: State) -> None:
    given = None if passed is None else State({number: full[number] for number in passed})
    state, phases = ran(make(), given)
    assert phases["skipped"] == skipped
    assert phases["after"] == [stage for stage in CANONICAL_CYCLE if stage not in skipped]
    assert state.filled_blocks == [1, 2, 3]
    chronicle = state.content.get("chronicle", [])
    assert len(chronicle) == updated
    if updated:
        assert chronicle[0]["happening"] == full[1]
        assert state[1]["episode"] == full[1]["episode"] + 1


def test_every_later_pass_runs_all_stages_and_adds_one_episode() -> None:
    world = make()
    state, _ = ran(world, None)
    for number in (1, 2, 3):
        state, phases = ran(world, state)
        assert phases["after"] == list(CANONICAL_CYCLE)
        assert [entry["episode"] for entry in state.content["chronicle"]] == list(range(1, number + 1))
    assert world.content == state.content


def test_the_state_has_the_shapes_the_blocks_promise(full: State) -> None:
    assert set(full[1]) == {"episode", "title", "text", "action"}
    assert full[2]["size"] == SIZE
    assert tuple(full[3]["images"][0].shape) == (1, SIZE, SIZE, 3)
    assert full[3]["images"][0].dtype == torch.float32
    assert set(full[4]) == {"text", "measures"}
    assert set(full[5]) == {"episode", "title", "text", "changes", "places"}


def test_an_action_reaches_development_alone_and_shapes_the_next_configuration() -> None:
    start = make().run()
    plain, acted = make().run(start), make().run(start, action="Raise a great volcano in the east")
    assert plain[1]["action"] is None
    assert acted[1]["action"] == "Raise a great volcano in the east"
    assert any(opening in acted[1]["text"] for opening in ACTION_OPENINGS)
    volcano = acted[2]["features"][-1]
    assert (volcano["kind"], volcano["x"] > 0.6) == ("volcano", True)
    assert plain.content == acted.content
    changed = (acted[3]["elevation"] - start[3]["elevation"]).abs()
    assert int(changed.argmax()) % SIZE > SIZE * 0.55


def test_a_world_keeps_its_ground_from_pass_to_pass() -> None:
    states = list(make().run(num_steps=4, iterate=True))
    assert len({state[2]["seed"] for state in states}) == 1
    land = [state[3]["elevation"] > 0 for state in states]
    assert all(float((a == b).float().mean()) > 0.85 for a, b in pairwise(land))


def test_parameters_reach_title_story_and_size() -> None:
    state = World.from_template("canon_2.0", size=64, width_km=500, title="Tor", initial_story="An island in a warm sea.").run()
    assert state.content["title"] == "Tor"
    assert state[1]["text"] == "An island in a warm sea."
    assert (state[2]["size"], state[2]["width_km"]) == (64, 500)


def test_a_world_without_a_title_is_named_by_its_first_update() -> None:
    state = make().run(num_steps=2)
    assert state.content["title"].startswith("The Chronicle of ")


def test_snapshots_go_where_the_parameter_says(tmp_path: Path) -> None:
    make(storage={"state_dir": str(tmp_path), "max_snapshots": 1}).run(num_steps=3)
    assert [path.name for path in sorted(tmp_path.glob("*.ygg"))] == ["canon_2.0-000002.ygg", "canon_2.0-last.ygg"]


def test_another_seed_is_another_world_and_no_seed_is_drawn() -> None:
    one, other = make(seed=1).run(), make(seed=2).run()
    assert not torch.equal(one[3]["elevation"], other[3]["elevation"])
    assert make(seed=None).run().seed != make(seed=None).run().seed


def test_the_same_seed_gives_the_same_bits_in_another_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    state = World.from_template("canon_2.0", size=64, seed=5).run(num_steps=2, action="Raise a volcano in the west")
    assert done.stdout.strip() == hashlib.sha256(dumps(state.to_dict())).hexdigest()
