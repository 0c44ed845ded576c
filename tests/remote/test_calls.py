"""Server-sent events: the events do not depend on how the bytes are cut."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import LimitExceeded
from yggdrasill.remote.channel import StreamEvent, read_events
from yggdrasill.remote.loop_thread import loop_thread

STREAM = (
    b': hello\n\nid: 1\nevent: status\ndata: {"status": "IN_QUEUE"}\n\n'
    b'id: 2\r\nevent: progress\r\ndata: {"place":\r\ndata: "\xc3\xa4"}\r\n\r\n:\n\nevent: log\ndata: no json\n\ndata: [1]\n\ndata: {"last": 1}\n\n'
)
EVENTS = [
    StreamEvent("status", {"status": "IN_QUEUE"}, "1"),
    StreamEvent("progress", {"place": "ä"}, "2"),
    StreamEvent("message", {"last": 1}, None),
]


def read(pieces: list[bytes]) -> list[StreamEvent]:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def collect() -> list[StreamEvent]:
        return [event async for event in read_events(chunks())]

    return loop_thread().run(collect())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(STREAM))))
def test_events_do_not_depend_on_how_the_stream_is_cut(places: list[int]) -> None:
    bounds = [0, *sorted(places), len(STREAM)]
    assert read([STREAM[start:end] for start, end in itertools.pairwise(bounds)]) == EVENTS


def test_an_event_that_was_not_finished_is_left_out() -> None:
    assert read([STREAM + b'data: {"cut": 1}\n']) == EVENTS


def test_a_line_without_end_is_bounded() -> None:
    with pytest.raises(LimitExceeded):
        read([b"data: " + b"x" * 1_000_000, b"y" * 100_000])
