"""What holds for any stage: saving changes nothing, branches at the same time neither, and a state is never changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.projects import REGISTRY, full_state, stage_configs
from samples.worlds import bits
from yggdrasill.foundation import ReusePool
from yggdrasill.stage import Stage

few = settings(max_examples=20, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def build(config: dict[str, Any]) -> Stage:
    return Stage.from_config(config, REGISTRY, validate=True, pool=ReusePool())


@few
@given(config=stage_configs(), archive=st.booleans())
def test_a_loaded_stage_goes_on_bit_for_bit(config: dict[str, Any], archive: bool) -> None:
    stage, state = build(config), full_state(1, 2, 3, 4, 5)
    before = bits(state)
    first = stage.run(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("s.tar" if archive else "s")
        stage.save(path, format="archive" if archive else "dir")
        loaded = Stage.load(path, registry=REGISTRY, pool=ReusePool())

    assert loaded.to_config() == config
    assert bits(loaded.run(first)) == bits(stage.run(first))
    assert bits(state) == before


@few
@given(config=stage_configs(), workers=st.integers(2, 4))
def test_branches_at_the_same_time_give_the_same_bits(config: dict[str, Any], workers: int) -> None:
    state = full_state(4, 5)
    assert bits(build(config).run(state, max_workers=workers)) == bits(build(config).run(state))
