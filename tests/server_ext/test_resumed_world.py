"""A run of a world node that was stopped goes on with the actions that its passes have not applied yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from samples.worlds import bits, block_of, canonical_world, user_state
from yggdrasill.errors import BlockFailed
from yggdrasill.server_ext.comfy.levels.world_run import WorldCall, _Passes
from yggdrasill.world import WorldStorage

ACTIONS = ["dig", "rest", "sing"]


class Folder:
    """The storage of a run that is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def storage(self, *, resume: bool) -> WorldStorage:
        return WorldStorage(self.path, load_last_state=resume)


def states_of(folder: Folder, stopped: Any, stop_in: str | None = None, stop_in_pass: int = 0) -> list[Any]:
    world = canonical_world(stateful=True)
    call = WorldCall({}, None, ACTIONS, 3, 7, True)
    passes = _Passes(MagicMock(), call, world, folder, user_state(1, 2, 3), stopped)  # type: ignore[arg-type]  # all it uses
    states = []
    for state in passes._states():
        states.append(state)
        if stop_in is not None and len(states) == stop_in_pass:
            block_of(world, stop_in).failures = 1
    return states


@pytest.mark.parametrize("stage", ["author", "architect", "creator"])
@pytest.mark.parametrize("number", [1, 2])
def test_actions_continue_where_the_run_was_stopped(stage: str, number: int, tmp_path: Path) -> None:
    expected = canonical_world(stateful=True).run(user_state(1, 2, 3), num_steps=3, action=ACTIONS, seed=7)
    folder = Folder(tmp_path)
    with pytest.raises(BlockFailed):
        states_of(folder, None, stage, number)
    stopped = folder.storage(resume=False).newest("tiny")
    assert stopped is not None
    assert stopped.phase == ("pass" if stage == "author" else "update")

    states = states_of(folder, stopped)

    assert bits(states[-1]) == bits(expected)
