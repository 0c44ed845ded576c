"""A call whose events are observed: one request if the endpoint sends them with its submission, and each event once if a connection breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from samples.scripted_endpoint import GOOD, Answer, Handler, Received, ScriptedEndpoint, answer, events, refusal, scripted_endpoint
from yggdrasill.errors import BlockFailed, JobConflict
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import Call, execute_remote_call
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import RetryPolicy

SUBMIT, EVENTS, OUTPUT = "POST /graphs/g/jobs", "GET /jobs/j/events", "GET /jobs/j/output"
WIRE: dict[str, Any] = {"skeleton": 1, "payloads": []}
ROW = {"job_id": "j", "key": "k", "graph_id": "g", "status": "IN_QUEUE", "error": None}
DONE = {**ROW, "status": "COMPLETED"}
RESULT = {**DONE, "output": {"skeleton": 2, "payloads": []}}
LOGS = [("log", {"text": str(number)}) for number in range(4)]
END = ("status", {"status": "COMPLETED"})


def message(kind: str, data: Any, seq: int | None = None) -> bytes:
    number = "" if seq is None else f"id: {seq}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def stream(*messages: bytes, status: int = 200, breaks: bool = False) -> Answer:
    async def chunks() -> AsyncIterator[bytes]:
        for entry in messages:
            yield entry
        if breaks:
            await asyncio.sleep(0.2)  # what was not read before the break is lost
            raise ConnectionResetError("as the test scripts it")

    return Answer(status, chunks, {**GOOD, "Content-Type": "text/event-stream"})


def numbered(first: int, last: int) -> list[bytes]:
    return [message(*LOGS[number], number + 1) for number in range(first, last)]


def call(endpoint: ScriptedEndpoint, watch: Callable[[str, Any], None] | None, **facts: Any) -> dict[str, Any]:
    made = Call("g", WIRE, 1, ArtifactClient.shared(), {"seed": None}, watch=watch, key="k", retry_policy=RetryPolicy(5.0, 5.0), **facts)
    return loop_thread().run(execute_remote_call(endpoint.client(), made))


def followed(*script: Answer | type[Exception], **facts: Any) -> tuple[dict[str, Any], list[str], list[str], list[Received]]:
    """Return the row, the texts of the events, the routes and the requests of a call that is answered by the script."""
    answers = list(script)

    async def handler(received: Received) -> Answer:
        found = answers.pop(0)
        if isinstance(found, Answer):
            return found
        raise found

    texts: list[str] = []
    with scripted_endpoint(handler) as endpoint:
        row = call(endpoint, lambda kind, data: texts.append(data["text"]), **facts)
    assert not answers
    return row, texts, endpoint.routes, endpoint.received


def test_a_call_and_its_events_are_one_request() -> None:
    row, texts, routes, (received,) = followed(
        stream(message("job", DONE), *numbered(0, 4), message(*END, 5), message("result", RESULT)),
    )
    assert row == RESULT
    assert texts == ["0", "1", "2", "3"]
    assert routes == [SUBMIT]
    assert received.headers["Accept"] == "text/event-stream"
    assert received.document["wait"] > 0


def test_an_endpoint_that_sends_json_is_followed_with_a_second_request() -> None:
    row, texts, routes, _ = followed(answer(ROW, 202), events(*LOGS, END), answer(RESULT))
    assert row == RESULT
    assert texts == ["0", "1", "2", "3"]
    assert routes == [SUBMIT, EVENTS, OUTPUT]


def test_a_broken_stream_continues_after_its_last_event() -> None:
    row, texts, routes, received = followed(
        stream(message("job", ROW), *numbered(0, 2), status=202, breaks=True),
        stream(*numbered(2, 4), message(*END, 5)),
        answer(RESULT),
    )
    assert row == RESULT
    assert texts == ["0", "1", "2", "3"]
    assert routes == [SUBMIT, EVENTS, OUTPUT]
    assert received[1].headers["Last-Event-ID"] == "2"


def test_a_response_that_breaks_before_the_row_is_requested_again_with_the_same_key() -> None:
    row, texts, routes, received = followed(
        ConnectionError, stream(breaks=True), stream(message("job", DONE), *numbered(0, 4), message(*END, 5), message("result", RESULT))
    )
    assert row == RESULT
    assert texts == ["0", "1", "2", "3"]
    assert routes == [SUBMIT, SUBMIT, SUBMIT]
    assert {entry.document["key"] for entry in received} == {"k"}


def test_a_result_that_is_left_out_is_requested() -> None:
    row, texts, routes, _ = followed(stream(message("job", DONE), *numbered(0, 1), message(*END, 2)), answer(RESULT))
    assert row == RESULT
    assert texts == ["0"]
    assert routes == [SUBMIT, OUTPUT]


def test_the_caller_waits_for_an_unfinished_job_only() -> None:
    for row, expected in ((ROW, [["k"], ["k", "other"]]), (DONE, [])):
        waits: list[list[str]] = []
        blocked = [message("blocked", {"by": ["other"]}, 1)] if expected else []
        followed(
            stream(message("job", row), *blocked, message(*END, 2), message("result", RESULT)),
            on_wait=lambda keys, found=waits: found.append(keys),
        )
        assert waits == expected


def test_the_error_of_the_job_is_raised() -> None:
    failed = {**ROW, "status": "FAILED", "error": BlockFailed("it failed", node="n").to_dict(), "output": None}
    with pytest.raises(BlockFailed, match="it failed") as caught:
        followed(stream(message("job", failed), message("status", {"status": "FAILED"}, 1), message("result", failed)))
    assert caught.value.details["job"] == "j"


def test_a_call_that_is_not_observed_gets_one_json_response() -> None:
    async def handler(received: Received) -> Answer:
        assert "text/event-stream" not in received.headers.get("Accept", "")
        return answer(RESULT)

    given: Handler = handler
    with scripted_endpoint(given) as endpoint:
        assert call(endpoint, None) == RESULT
    assert endpoint.routes == [SUBMIT]


def test_a_call_with_an_earlier_contract_names_its_hash() -> None:
    refused = refusal(JobConflict("replaced", reason="contract", hash="new"), 409)
    with pytest.raises(JobConflict, match="replaced"):
        followed(refused, graph_hash="old")
    _, _, _, (received,) = followed(stream(message("job", DONE), message(*END, 1), message("result", RESULT)), graph_hash="old")
    assert received.headers["If-Match"] == '"old"'
