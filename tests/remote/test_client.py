"""The client against invalid responses, and its retry policy; without endpoint processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from samples.graphs import graph_of
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
from yggdrasill.remote import Endpoint, EndpointClient, EndpointRegistry, MemoryTransport, RemoteGraph, RetryPolicy
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import Call, execute_remote_call, follow
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.transports import HandlerResponse, Request
from yggdrasill.values.stores.memory import MemoryStore

GOOD = {"X-Yggdrasill-Protocol": "1"}
CONTRACT = {"graph_id": "g", "kind": "graph", "hash": "h", "inputs": [{"name": "x"}], "outputs": [{"name": "y", "dtype": "any"}]}
QUICK = RetryPolicy(first=0.2, later=0.3)


def answer(document: Any, status: int = 200) -> HandlerResponse:
    return HandlerResponse(status, json.dumps(document).encode(), GOOD)


def refusal(error: YggdrasillError, status: int) -> HandlerResponse:
    return answer({"error": error.to_dict()}, status)


def client_of(handler: Callable[[Request, bytes], Awaitable[HandlerResponse]]) -> EndpointClient:
    return EndpointClient("http://memory", token="very-hidden", name="memory", transport=MemoryTransport(handler))


def always(given: HandlerResponse | Exception) -> EndpointClient:
    async def handler(request: Request, body: bytes) -> HandlerResponse:
        if isinstance(given, Exception):
            raise given
        return given

    return client_of(handler)


class Script:
    """An endpoint whose jobs return the given responses in order, then the last one repeatedly."""

    def __init__(self, *answers: HandlerResponse | Exception) -> None:
        self.answers = list(answers)
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.sent: list[bytes] = []

    async def __call__(self, request: Request, body: bytes) -> HandlerResponse:
        path = request.url.removeprefix("http://memory/yggdrasill/v1")
        self.paths.append(f"{request.method} {path}")
        assert request.headers["Authorization"] == "Bearer very-hidden"
        if path == "/capabilities":
            return answer({"protocol": 1})
        if path.endswith("/contract"):
            return answer(CONTRACT)
        if path.startswith("/artifacts"):
            self.sent.append(body)
            return answer({}, 201)
        self.keys.append(json.loads(body)["key"])
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, Exception):
            raise given
        return given

    def graph(self, **options: Any) -> RemoteGraph:
        return RemoteGraph(endpoint=client_of(self), graph_id="g", retry_policy=QUICK, **options)


DONE = answer({"job_id": "j", "status": "COMPLETED", "output": {"skeleton": {"y": 2}, "payloads": []}, "error": None})


@pytest.mark.parametrize(
    "given, kind, said",
    [
        (HandlerResponse(200, b"{}", {}), ProtocolMismatch, "no Yggdrasill protocol"),
        (HandlerResponse(200, b"<html>", {"X-Yggdrasill-Protocol": "1"}), ProtocolMismatch, "not a JSON object"),
        (HandlerResponse(200, b"[1]", GOOD), ProtocolMismatch, "not a JSON object"),
        (HandlerResponse(200, b"{}", {"X-Yggdrasill-Protocol": "0"}), ProtocolMismatch, "protocol version 0"),
        (HandlerResponse(404, b"not here", {}), ProtocolMismatch, "no Yggdrasill protocol"),
        (HandlerResponse(302, b"", {"Location": "http://elsewhere"}), ProtocolMismatch, "no Yggdrasill protocol"),
        (HandlerResponse(500, b"oops", GOOD), EndpointFailed, "HTTP 500"),
        (HandlerResponse(503, b"starting", {}), EndpointUnreachable, "HTTP 503"),
        (refusal(ProtocolMismatch("this endpoint speaks 2"), 426), ProtocolMismatch, "speaks 2"),
        (refusal(PayloadTooLarge("over the limit"), 413), PayloadTooLarge, "over the limit"),
        (answer({"error": {"type": "Surprise", "message": "new"}}, 500), EndpointFailed, "new"),
        (ConnectionResetError(104, "reset"), EndpointUnreachable, "broke"),
        (HandlerResponse(200, b" " * (65 << 20), GOOD), LimitExceeded, "larger than"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_bad_answer_is_named_and_shows_no_token(given: HandlerResponse | Exception, kind: type[YggdrasillError], said: str) -> None:
    with pytest.raises(kind) as caught:
        loop_thread().run(always(given).health())
    assert said in caught.value.message
    assert "very-hidden" not in str(caught.value) + str(caught.value.details)


@pytest.mark.parametrize("document", [{}, {**CONTRACT, "inputs": None}, {**CONTRACT, "outputs": [{}]}, {**CONTRACT, "hash": 3}])
def test_an_invalid_contract_is_a_protocol_mismatch(document: Any) -> None:
    with pytest.raises(ProtocolMismatch, match="'memory'"):
        _ = RemoteGraph(endpoint=always(answer(document)), graph_id="g").contract


@pytest.mark.parametrize("url", ["", "127.0.0.1:8400", "ftp://h", "http://", "http://a:b@h", "http://h?token=x", "http://h#x", 7])
def test_what_is_no_url_of_an_endpoint_is_refused(url: Any) -> None:
    with pytest.raises(InvalidArgument):
        EndpointClient(url)


def test_a_lost_connection_is_tried_again_with_the_same_key() -> None:
    script = Script(ConnectionResetError(104, "reset"), asyncio.TimeoutError(), DONE)
    assert script.graph().run({"x": 1}) == {"y": 2}
    assert len(script.keys) == 3
    assert len(set(script.keys)) == 1


def test_two_calls_have_two_keys() -> None:
    script = Script(DONE)
    graph = script.graph()
    graph.run({"x": 1})
    graph.run({"x": 1})
    assert len(set(script.keys)) == 2


def test_what_the_endpoint_lacks_is_sent_and_asked_for_again_with_the_same_key() -> None:
    data = bytes(100_000)
    missing = UnknownArtifact("missing", missing=["e" * 64])
    script = Script(refusal(missing, 409), DONE)
    with pytest.raises(UnknownArtifact, match="no longer available here"):
        script.graph().run({"x": data})
    from yggdrasill.values.payload import blake3_hex

    name = blake3_hex(memoryview(data))
    script = Script(refusal(UnknownArtifact("missing", missing=[name]), 409), DONE)
    assert script.graph().run({"x": data}) == {"y": 2}
    assert script.sent == [data]
    assert len(set(script.keys)) == 1


def test_uploads_to_an_endpoint_that_keeps_losing_an_artifact_are_bounded() -> None:
    from yggdrasill.values.payload import blake3_hex

    data = bytes(100_000)
    script = Script(refusal(UnknownArtifact("missing", missing=[blake3_hex(memoryview(data))]), 409))
    with pytest.raises(UnknownArtifact):
        script.graph().run({"x": data})
    assert len(script.sent) == 5


@pytest.mark.parametrize("error", [JobConflict("used"), QueueFull("full"), InvalidArgument("no")], ids=lambda error: type(error).__name__)
def test_what_the_endpoint_refuses_arrives_as_it_is_and_is_not_tried_again(error: YggdrasillError) -> None:
    script = Script(refusal(error, 409))
    with pytest.raises(type(error), match=error.message):
        script.graph().run({"x": 1})
    assert len(script.keys) == 1


def test_a_job_that_ends_without_output_or_error_is_the_endpoints_failure() -> None:
    with pytest.raises(EndpointFailed, match="without output or error"):
        Script(answer({"job_id": "j", "status": "COMPLETED"})).graph().run({"x": 1})


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


def test_a_full_endpoint_hands_over_to_the_next() -> None:
    full, free = Script(refusal(QueueFull("full"), 429)), Script(DONE)
    endpoints = {
        name: Endpoint(name, "http://memory", secret="very-hidden", transport=MemoryTransport(script))
        for name, script in (("full", full), ("free", free))
    }

    async def deployable(script: Script, request: Request, body: bytes) -> HandlerResponse:
        return answer({"created": True}) if request.method == "PUT" else await script(request, body)

    for name, script in (("full", full), ("free", free)):
        endpoints[name] = Endpoint(
            name,
            "http://memory",
            secret="very-hidden",
            transport=MemoryTransport(lambda r, b, script=script: deployable(script, r, b)),  # type: ignore[misc]
        )
    registry = EndpointRegistry(endpoints, default={"replicas": ["full", "free"], "policy": "first"})
    placed = graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="g").place(registry)
    assert placed.run({"x": 1}) == {"y": 2}
    assert len(full.keys) == len(free.keys) == 1


@pytest.mark.parametrize("knows_keys", [True, False])
async def test_a_cancelled_call_is_cancelled_by_its_key_and_not_submitted_again(knows_keys: bool) -> None:
    paths: list[str] = []
    arrived = asyncio.Event()

    async def handler(request: Request, body: bytes) -> HandlerResponse:
        path = request.url.removeprefix("http://memory/yggdrasill/v1")
        paths.append(path)
        if path.endswith("/jobs"):
            arrived.set()
            await asyncio.sleep(30)
        if path.startswith("/jobs/keys/") and knows_keys:
            return answer({"job_id": "j", "key": "k", "status": "CANCELLED"})
        return refusal(UnknownName("Unknown route."), 404)

    call = Call("g", {"skeleton": 1, "payloads": []}, 1, ArtifactClient(MemoryStore()), {}, key="k/1")
    calling = asyncio.create_task(execute_remote_call(client_of(handler), call))
    await arrived.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert paths == ["/graphs/g/jobs", "/jobs/keys/k%2F1/cancel"]


async def test_a_call_to_an_endpoint_that_is_shutting_down_is_tried_again_after_the_requested_time() -> None:
    times: list[float] = []

    async def handler(request: Request, body: bytes) -> HandlerResponse:
        times.append(time.monotonic())
        if len(times) == 1:
            error = EndpointUnreachable("The endpoint is shutting down.", reason="shutdown")
            return HandlerResponse(503, json.dumps({"error": error.to_dict()}).encode(), {**GOOD, "Retry-After": "1"})
        return DONE

    call = Call("g", {"skeleton": 1, "payloads": []}, 1, ArtifactClient(MemoryStore()), {}, retry_policy=RetryPolicy(first=1.5, later=1.5))
    row = await execute_remote_call(client_of(handler), call)
    assert row["status"] == "COMPLETED"
    assert times[1] - times[0] >= 1.0


async def test_following_a_finished_job_continues_after_a_stream_that_ended_early() -> None:
    resumed: list[str | None] = []

    async def handler(request: Request, body: bytes) -> HandlerResponse:
        if not request.url.endswith("/events"):
            return answer({"job_id": "j", "status": "COMPLETED"})
        after = request.headers.get("Last-Event-ID")
        resumed.append(after)
        first = int(after or 0) + 1
        events = [f'id: {seq}\nevent: log\ndata: {{"n":{seq}}}\n\n' for seq in range(first, min(first + 2, 6))]
        return HandlerResponse(200, "".join(events).encode(), GOOD)

    followed = [event.data["n"] async for event in follow(client_of(handler), "j", Retry(QUICK))]
    assert followed == [1, 2, 3, 4, 5]
    assert resumed == [None, "2", "4", "5"]
