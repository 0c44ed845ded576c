"""Server-sent events do not depend on how the bytes are cut, and a followed job costs no needless request."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import LimitExceeded
from yggdrasill.remote.calls import follow_job
from yggdrasill.remote.channel import StreamEvent, read_events
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.uploads import Supply

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


class FinishedJob:
    """The part of a client that `follow_job` uses, for a job that has ended. ``requests`` counts requests for its output."""

    def __init__(self) -> None:
        self.requests = 0

    @asynccontextmanager
    async def events(self, job_id: str, after: str | None = None) -> AsyncIterator[FinishedJob]:
        yield self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b'id: 1\nevent: status\ndata: {"status": "COMPLETED"}\n\n'

    async def output(self, job_id: str, wait: float) -> tuple[int, dict[str, Any]]:
        self.requests += 1
        return 200, {"job_id": job_id, "status": "COMPLETED", "output": {"from": "request"}}


@pytest.mark.parametrize(
    "row, output, requests",
    [
        ({"status": "COMPLETED", "output": {"from": "row"}}, {"from": "row"}, 0),
        ({"status": "COMPLETED"}, {"from": "request"}, 1),
        ({"status": "IN_PROGRESS"}, {"from": "request"}, 1),
    ],
)
def test_the_output_of_a_followed_job_is_requested_only_if_its_row_lacks_it(
    row: dict[str, Any], output: dict[str, Any], requests: int
) -> None:
    job = FinishedJob()
    heard: list[StreamEvent] = []
    client = cast("EndpointClient", job)
    found = loop_thread().run(follow_job(client, {"job_id": "a", **row}, Retry(), cast("Supply", None), heard.append))
    assert found["output"] == output
    assert job.requests == requests
    assert [event.data["status"] for event in heard] == ["COMPLETED"]
