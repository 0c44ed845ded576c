"""What all clients of an endpoint share in a process: tokens that are rotated, load, bounds, and whether the endpoint is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from samples.http_client import until
from samples.scripted_endpoint import Answer, Handler, Received, ScriptedEndpoint, answer, events, refusal, scripted_endpoint
from yggdrasill.errors import AccessDenied, EndpointUnreachable
from yggdrasill.remote import Endpoint, EndpointClient, EndpointRegistry, RemoteGraph, RetryPolicy
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.registry_file import secrets_path, write_secrets
from yggdrasill.remote.route import Route

Start = Callable[[Handler], ScriptedEndpoint]
CONTRACT = {"graph_id": "g", "kind": "graph", "hash": "h", "inputs": [{"name": "x"}], "outputs": [{"name": "y", "dtype": "any"}]}
DONE = {"job_id": "j", "status": "COMPLETED", "output": {"skeleton": {"y": 2}, "payloads": []}, "error": None}
UNKNOWN = refusal(AccessDenied("The token is wrong.", reason="token"), 401)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start scripted endpoints that end with the test."""
    with ExitStack() as stack:
        yield lambda handler: stack.enter_context(scripted_endpoint(handler))


async def serve(received: Received, job: Answer | None = None) -> Answer:
    """Answer as an endpoint that serves one graph, whose jobs end as ``job``."""
    if received.path == "/health":
        return answer({"status": "ok", "protocol": 2, "queue": {"queued": 0, "running": 0, "slots": 4}})
    if received.path == "/capabilities":
        return answer({"protocol": 2})
    if received.path.endswith("/contract"):
        return answer(CONTRACT)
    return job or answer(DONE)


def health_of(client: EndpointClient) -> Any:
    return loop_thread().run(client.health())


def test_a_rotated_token_is_read_at_the_next_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = "first"

    async def handler(received: Received) -> Answer:
        return await serve(received) if received.headers["Authorization"] == f"Bearer {valid}" else UNKNOWN

    server = start(handler)
    monkeypatch.setenv("ROTATED", "first")
    client = Endpoint("forge", server.url, token_env="ROTATED").client()
    health_of(client)
    valid = "second"
    monkeypatch.setenv("ROTATED", "second")
    health_of(client)
    assert server.routes == ["GET /health"] * 2


def test_a_refused_token_is_read_again_from_the_registry_once(start: Start, tmp_path: Path) -> None:
    valid = "first"

    async def handler(received: Received) -> Answer:
        return await serve(received) if received.headers["Authorization"] == f"Bearer {valid}" else UNKNOWN

    server = start(handler)
    path = tmp_path / "endpoints.yaml"
    written = EndpointRegistry()
    written.add("forge", server.url, token="first")
    written.to_yaml(path)
    registry = EndpointRegistry.from_yaml(path)
    graph = RemoteGraph(endpoint=registry.client("forge"), graph_id="g")
    assert graph.run({"x": 1}) == {"y": 2}
    valid = "second"
    write_secrets(secrets_path(path), {"forge": "second"})
    assert graph.run({"x": 1}) == {"y": 2}
    valid = "third"
    before = len(server.received)
    with pytest.raises(AccessDenied, match="The token is wrong"):
        graph.run({"x": 1})
    assert len(server.received) == before + 1


def test_a_token_that_was_stored_for_another_url_is_not_sent(start: Start, tmp_path: Path) -> None:
    async def handler(received: Received) -> Answer:
        return UNKNOWN

    server = start(handler)
    path = tmp_path / "endpoints.yaml"
    for url, token in ((server.url, "first"), ("http://127.0.0.1:9", "second")):
        written = EndpointRegistry()
        written.add("forge", url, token=token)
        written.to_yaml(path)
        if token == "first":
            client = EndpointRegistry.from_yaml(path).client("forge")
    with pytest.raises(AccessDenied):
        health_of(client)
    assert [received.headers["Authorization"] for received in server.received] == ["Bearer first"]


def test_calls_of_one_moment_share_a_request_for_the_load(start: Start) -> None:
    one, two = start(serve), start(serve)
    route = Route([one.client("one"), two.client("two")], "g", policy="least_busy")
    graph = RemoteGraph(route=route)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: graph.run({"x": 1}), range(40))) == [{"y": 2}] * 40
    assert one.routes.count("GET /health") < 20
    others = RemoteGraph(route=Route([one.client("other"), two.client("others")], "g", policy="least_busy"))
    before = one.routes.count("GET /health") + two.routes.count("GET /health")
    others.run({"x": 1})
    assert one.routes.count("GET /health") + two.routes.count("GET /health") <= before + 2


def test_calls_begun_since_the_load_was_requested_count_as_running(start: Start) -> None:
    async def slow(received: Received) -> Answer:
        if received.path.endswith("/jobs"):
            await asyncio.sleep(0.5)
        return await serve(received)

    one, two = start(slow), start(slow)
    graph = RemoteGraph(route=Route([one.client("one"), two.client("two")], "g", policy="least_busy"))
    _ = graph.contract
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: graph.run({"x": 1}), range(8)))
    counts = [server.routes.count("POST /graphs/g/jobs") for server in (one, two)]
    assert sum(counts) == 8
    assert min(counts) >= 3


def test_a_health_request_before_the_call_is_not_its_load(start: Start) -> None:
    running = 0

    async def handler(received: Received) -> Answer:
        if received.path.endswith("/health"):
            return answer({"status": "ok", "protocol": 2, "queue": {"queued": 0, "running": running, "slots": 1}})
        return await serve(received)

    one, two = start(handler), start(serve)
    first = one.client("one")
    graph = RemoteGraph(route=Route([first, two.client("two")], "g", policy="least_busy"))
    _ = graph.contract
    health_of(first)
    running = 1
    graph.run({"x": 1})
    assert two.routes.count("POST /graphs/g/jobs") == 1


def test_requests_in_flight_are_bounded_and_event_streams_do_not_count(start: Start) -> None:
    running = most = 0

    async def handler(received: Received) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return await serve(received)

    server = start(handler)
    client = server.client()

    async def many() -> None:
        client.channel.in_flight.limit = 10
        await asyncio.gather(*(client.capabilities() for _ in range(60)))
        async with client.events("j"):
            assert client.channel.in_flight.running == 0

    loop_thread().run(many())
    assert most == 10


def test_an_endpoint_that_is_down_is_not_asked_by_every_call_and_comes_back_by_its_health(start: Start) -> None:
    one, two = start(serve), start(serve)
    first = one.client("one")
    graph = RemoteGraph(route=Route([first, two.client("two")], "g"))
    graph.run({"x": 1})
    one.stop()
    started = time.monotonic()
    graph.run({"x": 1})
    assert first.channel.breaker.is_open
    fast = time.monotonic()
    for _ in range(20):
        assert graph.run({"x": 1}) == {"y": 2}
    assert time.monotonic() - fast < 5.0
    assert fast - started < 10.0
    assert len(one.received) == 3
    one.start()

    alone = RemoteGraph(endpoint=first, graph_id="g", retry_policy=RetryPolicy(first=6.0))
    assert alone.run({"x": 1}) == {"y": 2}
    assert not first.channel.breaker.is_open
    assert one.routes[3] == "GET /health"
    assert graph.run({"x": 1}) == {"y": 2}
    assert one.routes[-1] == "POST /graphs/g/jobs"


def test_the_health_request_before_an_upload_announces_no_body(start: Start) -> None:
    server = start(serve)
    client = server.client()
    health_of(client)
    server.stop()
    while not client.channel.breaker.is_open:
        with pytest.raises(EndpointUnreachable):
            health_of(client)
    server.start()

    async def body() -> AsyncIterator[bytes]:
        yield b"\0" * 24_000

    async def put() -> None:
        for _ in range(3):
            async with client.open("PUT", f"/artifacts/{'0' * 64}", body=body, length=24_000) as response:
                await response.read()

    until(client.channel.breaker.may_probe, 10.0)
    client.channel.breaker.abandoned()
    loop_thread().run(put())
    (probe,) = [received for received in server.received[1:] if received.route == "GET /health"]
    assert "Content-Length" not in probe.headers
    assert [len(received.body) for received in server.received if received.method == "PUT"] == [24_000] * 3


def test_a_single_endpoint_that_is_down_is_waited_for_within_the_retry_policy(start: Start) -> None:
    server = start(serve)
    graph = RemoteGraph(endpoint=server.client(), graph_id="g", retry_policy=RetryPolicy(first=1.0, later=20.0))
    graph.run({"x": 1})
    server.stop()
    with pytest.raises(EndpointUnreachable, match="nothing answers"):
        graph.run({"x": 1})
    waiting = RemoteGraph(endpoint=server.client(), graph_id="g", retry_policy=RetryPolicy(first=20.0))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(waiting.run, {"x": 1})
        time.sleep(0.5)
        server.start()
        assert running.result(20) == {"y": 2}


def test_a_lost_endpoint_is_not_flooded_by_many_callers(start: Start) -> None:
    attempts = 0

    async def handler(received: Received) -> Answer:
        nonlocal attempts
        if received.path.endswith("/jobs"):
            attempts += 1
            return Answer(503, b"", {})
        return await serve(received)

    server = start(handler)
    graph = RemoteGraph(endpoint=server.client(), graph_id="g", retry_policy=RetryPolicy(first=2.0, later=2.0))
    _ = graph.contract

    def call() -> None:
        with pytest.raises(EndpointUnreachable):
            graph.run({"x": 1})

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda _: call(), range(40)))
    # A call without budget would try about seven times.
    assert attempts < 40 * 1.2 + 20 + 10


def test_waiting_calls_can_be_cancelled_at_once(start: Start) -> None:
    async def handler(received: Received) -> Answer:
        return refusal(EndpointUnreachable("stops", reason="shutdown"), 503, Retry_After="60")

    server = start(handler)
    call = RemoteGraph(endpoint=server.client(), graph_id="g", retry_policy=RetryPolicy(first=100.0))
    pending = loop_thread().start(call.route.contract())
    until(lambda: server.received)
    pending.cancel()
    started = time.monotonic()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - the cancellation
        pending.future.result(5)
    assert time.monotonic() - started < 5


def test_a_call_that_went_to_another_endpoint_is_cancelled_at_the_lost_one_when_that_returns(start: Start) -> None:
    async def lose(received: Received) -> Answer:
        if received.path.endswith("/jobs"):
            raise ConnectionResetError
        return await serve(received)

    lost, other = start(lose), start(serve)
    route = Route([lost.client("lost"), other.client("other")], "g", retry_policy=RetryPolicy(first=0.3, later=0.3))
    assert RemoteGraph(route=route).run({"x": 1}) == {"y": 2}
    key = other.received[-1].document["key"]
    until(lambda: f"POST /jobs/keys/{key}/cancel" in lost.routes)

    lost.received.clear()

    async def submitted_then_gone(received: Received) -> Answer:
        if received.path.endswith("/jobs"):
            return answer({"job_id": "j", "status": "IN_PROGRESS"}, 202)
        if received.path.endswith("/events"):
            return events(("status", {"status": "IN_PROGRESS"}))
        return await serve(received, answer({"job_id": "j", "status": "IN_PROGRESS"}, 202))

    lost.handler = submitted_then_gone
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(RemoteGraph(route=route).run, {"x": 1})
        until(lambda: any(route.endswith("/events") for route in lost.routes))
        lost.stop()
        assert running.result(20) == {"y": 2}
    key = other.received[-1].document["key"]
    lost.handler = serve
    lost.start()
    until(lambda: f"POST /jobs/keys/{key}/cancel" in lost.routes)
