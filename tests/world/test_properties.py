"""What holds for any canonical world: passing the state back, saving, resuming and threads change no bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.projects import REGISTRY, full_state, world_configs
from samples.worlds import bits
from yggdrasill.errors import HookFailed
from yggdrasill.foundation import ReusePool
from yggdrasill.world import CANONICAL_CYCLE, World

few = settings(max_examples=10, deadline=None)
first_states = st.sampled_from([(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5)])


@pytest.fixture(autouse=True, scope="module")
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def build(config: dict[str, Any]) -> World:
    return World.from_config(config, REGISTRY, pool=ReusePool())


@few
@given(config=world_configs(), given_blocks=first_states)
def test_three_steps_equal_three_runs_with_a_save_and_a_load_between(config: dict[str, Any], given_blocks: tuple[int, ...]) -> None:
    together = build(config)
    expected = together.run(full_state(*given_blocks), num_steps=3)

    world = build(config)
    state = world.run(full_state(*given_blocks))
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            world.save(Path(folder) / "w.zip", format="archive")
            world = World.load(Path(folder) / "w.zip", registry=REGISTRY, pool=ReusePool())
        assert world.to_config() == config
        state = world.run(world.last_state)

    assert bits(state) == bits(expected)
    assert bits(world.state_dict()) == bits(together.state_dict())
    assert bits(world.content) == bits(together.content)


@few
@given(config=world_configs(), workers=st.integers(2, 4))
def test_branches_at_the_same_time_give_the_same_bits(config: dict[str, Any], workers: int) -> None:
    state = full_state(1, 2, 3)
    assert bits(build(config).run(state, num_steps=2, max_workers=workers)) == bits(build(config).run(state, num_steps=2))


@few
@given(config=world_configs(), stop=st.tuples(st.integers(0, 2), st.sampled_from(CANONICAL_CYCLE)))
def test_a_new_process_goes_on_where_the_storage_ends(config: dict[str, Any], stop: tuple[int, str]) -> None:
    whole = build(config)
    expected = whole.run(full_state(1, 2, 3), num_steps=3)

    def interrupt(name: str, phase: str, **facts: Any) -> None:
        if (facts["state_before"].passes, name) == stop and phase == "after":
            raise RuntimeError("stop")

    with tempfile.TemporaryDirectory() as folder:
        world = build(config)
        world.set_storage(folder)
        with pytest.raises(HookFailed):
            world.run(full_state(1, 2, 3), num_steps=3, callbacks=interrupt)
        after = build(config)
        after.set_storage(folder, load_last_state=True)
        assert after.storage is not None
        progress = after.storage.newest("invented")
        state = after.run(num_steps=3 - progress.passes) if progress else after.run(full_state(1, 2, 3), num_steps=3)

    assert bits(state) == bits(expected)
    assert bits(after.state_dict()) == bits(whole.state_dict())
