"""What the tests of the shipped templates share: one full state, and its values to run the parts on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yggdrasill.stage import State
from yggdrasill.world import World


def full_state(**parameters: Any) -> State:
    """The complete state that World update of the second pass gets, with the content before it."""
    caught: list[State] = []

    def watch(stage_id: str, phase: str, **facts: Any) -> None:
        if stage_id == "environment" and phase == "before" and facts["state_before"].is_complete:
            caught.append(facts["state_before"])

    World.from_template("canon_2.0", **parameters).run(num_steps=2, callbacks=watch)
    assert len(caught) == 1
    return caught[0]


@pytest.fixture(scope="session")
def full() -> State:
    return full_state(size=96)


@pytest.fixture(scope="session")
def values(full: State) -> dict[str, Any]:
    """A value for every input of every shipped graph and pipeline, by name; ``measures`` is what a survey has as artifacts."""
    return {
        "happening": full[1],
        "configuration": full[2],
        "artifacts": full[3],
        "description": full[4],
        "account": full[5],
        "content": full.content,
        "world": full.content,
        "action": "Raise a volcano in the east",
        "measures": full[4]["measures"],
        "text": torch.ones(1, 4),
        "timestep": torch.tensor([3.0]),
        "latent": torch.full((1, 4, 6, 3), 0.25),
        "image": torch.full((1, 4, 6, 3), 0.75),
    }
