"""The client against scripted servers: invalid responses, retries, cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import Any

import pytest

from samples.graphs import graph_of
from samples.http_client import until
from samples.scripted_endpoint import GOOD, TOKEN, Answer, Handler, Received, ScriptedEndpoint, answer, events, refusal, scripted_endpoint
from yggdrasill.errors import (
    EndpointFailed,
    EndpointUnreachable,
    InvalidArgument,
    JobConflict,
    LimitExceeded,
    PayloadTooLarge,
    ProtocolMismatch,
    QueueFull,
    UnknownArtifact,
    UnknownName,
    YggdrasillError,
)
from yggdrasill.remote import Endpoint, EndpointClient, EndpointRegistry, RemoteGraph, RetryPolicy
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import Call, execute_remote_call, follow
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Retry
from yggdrasill.values.stores.memory import MemoryStore

CONTRACT = {"graph_id": "g", "kind": "graph", "hash": "h", "inputs": [{"name": "x"}], "outputs": [{"name": "y", "dtype": "any"}]}
QUICK = RetryPolicy(first=0.2, later=0.3)
Start = Callable[[Handler], ScriptedEndpoint]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start scripted endpoints that end with the test."""
    with ExitStack() as stack:
        yield lambda handler: stack.enter_context(scripted_endpoint(handler))


def always(given: Answer | None) -> Handler:
    """Return the same response to every request, or break the connection."""

    async def handler(received: Received) -> Answer:
        if given is None:
            raise ConnectionResetError
        return given

    return handler


class Script:
    """An endpoint whose jobs return the given responses in order, then the last one repeatedly. None breaks the connection."""

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers)
        self.keys: list[str] = []
        self.sent: list[bytes] = []

    async def __call__(self, received: Received) -> Answer:
        assert received.headers["Authorization"] == f"Bearer {TOKEN}"
        if received.path == "/capabilities":
            return answer({"protocol": 2})
        if received.path.endswith("/contract"):
            return answer(CONTRACT)
        if received.path == "/health":
            return answer({"queue": {"queued": 0, "running": 0, "slots": 1}, "protocol": 2})
        if received.method == "PUT" and received.path.startswith("/graphs"):
            return answer({"created": True})
        if received.path.startswith("/artifacts"):
            self.sent.append(received.body)
            return answer({}, 201)
        if "/cancel" in received.path:
            return answer({"status": "CANCELLED"})
        self.keys.append(received.document["key"])
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if given is None:
            raise ConnectionResetError
        return given

    def graph(self, start: Start, **options: Any) -> RemoteGraph:
        return RemoteGraph(endpoint=start(self).client(), graph_id="g", retry_policy=QUICK, **options)


DONE = answer({"job_id": "j", "status": "COMPLETED", "output": {"skeleton": {"y": 2}, "payloads": []}, "error": None})


@pytest.mark.parametrize(
    "given, kind, said",
    [
        (Answer(200, b"{}"), ProtocolMismatch, "no Yggdrasill protocol"),
        (Answer(200, b"<html>", GOOD), ProtocolMismatch, "not a JSON object"),
        (Answer(200, b"[1]", GOOD), ProtocolMismatch, "not a JSON object"),
        (Answer(200, b"{}", {"X-Yggdrasill-Protocol": "0"}), ProtocolMismatch, "protocol version 0"),
        (Answer(404, b"not here"), ProtocolMismatch, "no Yggdrasill protocol"),
        (Answer(302, b"", {"Location": "http://other.example"}), ProtocolMismatch, "no Yggdrasill protocol"),
        (Answer(500, b"oops", GOOD), EndpointFailed, "HTTP 500"),
        (Answer(503, b"starting"), EndpointUnreachable, "HTTP 503"),
        (refusal(ProtocolMismatch("this endpoint speaks 2"), 426), ProtocolMismatch, "speaks 2"),
        (refusal(PayloadTooLarge("over the limit"), 413), PayloadTooLarge, "over the limit"),
        (answer({"error": {"type": "Surprise", "message": "new"}}, 500), EndpointFailed, "new"),
        (None, EndpointUnreachable, "broke"),
        (Answer(200, b" " * (65 << 20), GOOD), LimitExceeded, "larger than"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_bad_answer_is_named_and_shows_no_token(start: Start, given: Answer | None, kind: type[YggdrasillError], said: str) -> None:
    with pytest.raises(kind) as caught:
        loop_thread().run(start(always(given)).client().health())
    assert said in caught.value.message
    assert TOKEN not in str(caught.value) + str(caught.value.details)


@pytest.mark.parametrize("document", [{}, {**CONTRACT, "inputs": None}, {**CONTRACT, "outputs": [{}]}, {**CONTRACT, "hash": 3}])
def test_an_invalid_contract_is_a_protocol_mismatch(start: Start, document: Any) -> None:
    with pytest.raises(ProtocolMismatch, match="'memory'"):
        _ = RemoteGraph(endpoint=start(always(answer(document))).client(), graph_id="g").contract


@pytest.mark.parametrize("url", ["", "127.0.0.1:8400", "ftp://h", "http://", "http://a:b@h", "http://h?token=x", "http://h#x", 7])
def test_what_is_no_url_of_an_endpoint_is_refused(url: Any) -> None:
    with pytest.raises(InvalidArgument):
        EndpointClient(url)


def test_a_lost_connection_is_tried_again_with_the_same_key(start: Start) -> None:
    script = Script(None, None, DONE)
    assert script.graph(start).run({"x": 1}) == {"y": 2}
    assert len(script.keys) == 3
    assert len(set(script.keys)) == 1


def test_two_calls_have_two_keys(start: Start) -> None:
    script = Script(DONE)
    graph = script.graph(start)
    graph.run({"x": 1})
    graph.run({"x": 1})
    assert len(set(script.keys)) == 2


def test_what_the_endpoint_lacks_is_sent_and_asked_for_again_with_the_same_key(start: Start) -> None:
    data = bytes(100_000)
    missing = UnknownArtifact("missing", missing=["e" * 64])
    script = Script(refusal(missing, 409), DONE)
    with pytest.raises(UnknownArtifact, match="no longer available here"):
        script.graph(start).run({"x": data})
    from yggdrasill.values.payload import blake3_hex

    name = blake3_hex(memoryview(data))
    script = Script(refusal(UnknownArtifact("missing", missing=[name]), 409), DONE)
    assert script.graph(start).run({"x": data}) == {"y": 2}
    assert script.sent == [data]
    assert len(set(script.keys)) == 1


def test_uploads_to_an_endpoint_that_keeps_losing_an_artifact_are_bounded(start: Start) -> None:
    from yggdrasill.values.payload import blake3_hex

    data = bytes(100_000)
    script = Script(refusal(UnknownArtifact("missing", missing=[blake3_hex(memoryview(data))]), 409))
    with pytest.raises(UnknownArtifact):
        script.graph(start).run({"x": data})
    assert len(script.sent) == 5


@pytest.mark.parametrize("error", [JobConflict("used"), QueueFull("full"), InvalidArgument("no")], ids=lambda error: type(error).__name__)
def test_what_the_endpoint_refuses_arrives_as_it_is_and_is_not_tried_again(start: Start, error: YggdrasillError) -> None:
    script = Script(refusal(error, 409))
    with pytest.raises(type(error), match=error.message):
        script.graph(start).run({"x": 1})
    assert len(script.keys) == 1


def test_a_job_that_ends_without_output_or_error_is_the_endpoints_failure(start: Start) -> None:
    with pytest.raises(EndpointFailed, match="without output or error"):
        Script(answer({"job_id": "j", "status": "COMPLETED"})).graph(start).run({"x": 1})


def test_the_retry_policy_is_short_before_the_first_response_and_longer_after() -> None:
    async def lose(retry: Retry) -> float:
        async def for_ever() -> None:
            while True:
                await retry.pause(EndpointUnreachable("gone"))

        start = time.perf_counter()
        with pytest.raises(EndpointUnreachable):
            await for_ever()
        return time.perf_counter() - start

    async def both() -> tuple[float, float]:
        first, later = Retry(RetryPolicy(first=0.1, later=0.8)), Retry(RetryPolicy(first=0.1, later=0.8))
        later.answered()
        return await lose(first), await lose(later)

    first, later = loop_thread().run(both())
    assert first < 0.2 < later < 1.0


def test_a_full_endpoint_hands_over_to_the_next(start: Start) -> None:
    full, free = Script(refusal(QueueFull("full"), 429, Retry_After="1")), Script(DONE)
    endpoints = {name: Endpoint(name, start(script).url, secret=TOKEN) for name, script in (("full", full), ("free", free))}
    registry = EndpointRegistry(endpoints, default={"replicas": ["full", "free"], "policy": "first"})
    placed = graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="g").place(registry)
    assert placed.run({"x": 1}) == {"y": 2}
    assert len(full.keys) == len(free.keys) == 1


def call_of(**options: Any) -> Call:
    return Call("g", {"skeleton": 1, "payloads": []}, 1, ArtifactClient(MemoryStore()), {}, **options)


@pytest.mark.parametrize("knows_keys", [True, False])
def test_a_cancelled_call_is_cancelled_by_its_key_and_not_submitted_again(start: Start, knows_keys: bool) -> None:
    async def handler(received: Received) -> Answer:
        if received.path.endswith("/jobs"):
            await asyncio.sleep(30)
        if received.path.startswith("/jobs/keys/") and knows_keys:
            return answer({"job_id": "j", "key": "k", "status": "CANCELLED"})
        return refusal(UnknownName("Unknown route."), 404)

    server = start(handler)
    calling = loop_thread().start(execute_remote_call(server.client(), call_of(key="k/1")))
    until(lambda: server.received)
    calling.cancel()
    with pytest.raises(CancelledError):
        calling.future.result(5)
    assert [received.path for received in server.received] == ["/graphs/g/jobs", "/jobs/keys/k%2F1/cancel"]


@pytest.mark.parametrize("error, status", [(EndpointUnreachable("stops", reason="shutdown"), 503), (QueueFull("full"), 429)])
def test_a_refused_call_is_tried_again_after_the_requested_time(start: Start, error: YggdrasillError, status: int) -> None:
    times: list[float] = []

    async def handler(received: Received) -> Answer:
        times.append(time.monotonic())
        return refusal(error, status, Retry_After="1") if len(times) == 1 else DONE

    row = loop_thread().run(execute_remote_call(start(handler).client(), call_of(retry_policy=RetryPolicy(first=1.5, later=1.5))))
    assert row["status"] == "COMPLETED"
    assert times[1] - times[0] >= 1.0


def test_following_a_finished_job_continues_after_a_stream_that_ended_early(start: Start) -> None:
    resumed: list[str | None] = []

    async def handler(received: Received) -> Answer:
        if not received.path.endswith("/events"):
            return answer({"job_id": "j", "status": "COMPLETED"})
        after = received.headers.get("Last-Event-ID")
        resumed.append(after)
        first = int(after or 0) + 1
        return events(*(("log", {"n": seq}) for seq in range(first, min(first + 2, 6))), first=first)

    async def collect(client: EndpointClient) -> list[int]:
        return [event.data["n"] async for event in follow(client, "j", Retry(QUICK))]

    assert loop_thread().run(collect(start(handler).client())) == [1, 2, 3, 4, 5]
    assert resumed == [None, "2", "4", "5"]
