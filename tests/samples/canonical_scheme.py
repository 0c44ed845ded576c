"""The canonical scheme as data: the first pass of a canonical world for each state that a user may pass."""

from __future__ import annotations

import pytest

from samples.worlds import user_state
from yggdrasill.stage import State

__all__ = ["ROWS", "by_row", "given"]

#: what is passed, stages that are skipped, whether World update runs
ROWS = [
    pytest.param(None, ["philosopher", "author"], False, id="nothing"),
    pytest.param((), ["philosopher", "author"], False, id="empty"),
    pytest.param((1,), ["philosopher", "author"], False, id="1"),
    pytest.param((1, 2), ["philosopher", "author"], False, id="1,2"),
    pytest.param((1, 2, 3), [], True, id="1,2,3"),
    pytest.param((1, 2, 3, 4), ["philosopher"], True, id="1,2,3,4"),
    pytest.param((1, 2, 3, 4, 5), ["philosopher", "author"], True, id="1-5"),
]
by_row = pytest.mark.parametrize("passed, skipped, updates", ROWS)


def given(passed: tuple[int, ...] | None) -> State | None:
    """Return the state that a user passes in a row."""
    return None if passed is None else user_state(*passed)
