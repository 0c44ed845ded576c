"""Versions of the protocol as a caller meets them: older and newer endpoints, and jobs whose slow phases are states."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from samples.graphs import graph_of
from samples.http_client import until
from samples.scripted_endpoint import Answer, Handler, Received, ScriptedEndpoint, answer, events, refusal, scripted_endpoint
from yggdrasill.errors import BlockFailed, InvalidConfig, ProtocolMismatch, TimedOut, UnknownArtifact
from yggdrasill.remote import Endpoint, EndpointRegistry, RemoteGraph, RetryPolicy
from yggdrasill.remote import retry as retry_module
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.values.payload import blake3_hex

Start = Callable[[Handler], ScriptedEndpoint]
CONTRACT = {"graph_id": "g", "kind": "graph", "hash": "h", "inputs": [{"name": "x"}], "outputs": [{"name": "y", "dtype": "any"}]}
DONE = {"job_id": "j", "status": "COMPLETED", "output": {"skeleton": {"y": 2}, "payloads": []}, "error": None}
DATA = bytes(range(256)) * 400
HASH = blake3_hex(memoryview(DATA))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start scripted endpoints that end with the test."""
    with ExitStack() as stack:
        yield lambda handler: stack.enter_context(scripted_endpoint(handler))


class Routes:
    """An endpoint with a response per route, or several in turn of which the last is repeated. It answers protocols up to ``newest``."""

    def __init__(self, routes: dict[str, Answer | list[Answer]], *, oldest: int = 1, newest: int = 2) -> None:
        self.oldest, self.newest = oldest, newest
        health = answer({"protocol": newest, "queue": {"queued": 0, "running": 0, "slots": 1}, "a new field": 1})
        common = {
            "GET /health": health,
            "GET /capabilities": answer({"protocol": newest, "a new field": {}}),
            "GET /graphs/g/contract": answer({**CONTRACT, "a new field": []}),
        }
        self.routes = {**common, **routes}

    async def __call__(self, received: Received) -> Answer:
        version = int(received.headers["X-Yggdrasill-Protocol"])
        if not self.oldest <= version <= self.newest:
            found: Answer = refusal(ProtocolMismatch("other version", **self._range()), 426)
        elif received.route.startswith("POST /jobs/keys/"):
            found = row("CANCELLED")
        else:
            prepared = self.routes[received.route]
            found = prepared if isinstance(prepared, Answer) else prepared.pop(0) if len(prepared) > 1 else prepared[0]
        return Answer(found.status, found.body, {**found.headers, "X-Yggdrasill-Protocol": str(self.newest)})

    def _range(self) -> dict[str, int]:
        # Version 1 reported no oldest version.
        return {"protocol": self.newest} if self.newest == 1 else {"oldest": self.oldest, "protocol": self.newest}


def versions(server: ScriptedEndpoint) -> list[str]:
    return [received.headers["X-Yggdrasill-Protocol"] for received in server.received]


def graph_at(server: ScriptedEndpoint, **options: Any) -> RemoteGraph:
    return RemoteGraph(endpoint=server.client(), graph_id="g", retry_policy=RetryPolicy(first=0.5, later=1.0), **options)


def row(status: str, **facts: Any) -> Answer:
    return answer({"job_id": "j", "status": status, "a new field": 1, **facts}, 202)


def test_an_older_endpoint_is_spoken_to_in_its_version_which_is_remembered(start: Start) -> None:
    server = start(Routes({"POST /graphs/g/jobs": answer(DONE)}, newest=1))
    graph = graph_at(server, priority=7, deadline=60.0)
    assert graph.run({"x": 1}) == {"y": 2}
    assert graph.run({"x": 1}) == {"y": 2}
    assert versions(server) == ["2", "1", "1", "1", "1"]
    assert server.client("another").protocol == 1
    assert {"priority", "deadline"}.isdisjoint(server.received[-1].document)


@pytest.mark.parametrize("by_health", [True, False])
def test_an_endpoint_that_was_updated_is_spoken_to_in_the_new_version(start: Start, by_health: bool) -> None:
    endpoint = Routes({"POST /graphs/g/jobs": answer(DONE)}, newest=1)
    server = start(endpoint)
    graph = graph_at(server)
    graph.run({"x": 1})
    server.stop()
    updated = Routes({"POST /graphs/g/jobs": answer(DONE)}, newest=2)
    if by_health:
        server.handler = updated
        server.start()
        loop_thread().run(server.client().health())
    else:
        with pytest.raises(ConnectionError):
            graph.run({"x": 1})
        server.handler = updated
        server.start()
    graph.run({"x": 1})
    assert server.client().protocol == 2
    assert versions(server)[-1] == "2"


@pytest.mark.parametrize("oldest, newest, side", [(3, 4, "on the caller's side"), (0, 0, "at the endpoint")])
def test_without_a_common_version_the_error_names_both_ranges_and_the_side_to_update(
    start: Start, oldest: int, newest: int, side: str
) -> None:
    server = start(Routes({}, oldest=oldest, newest=newest))
    with pytest.raises(ProtocolMismatch) as caught:
        loop_thread().run(server.client().health())
    theirs = "version 0" if newest == 0 else "versions 3 to 4"
    assert f"{theirs}, this client versions 1 to 2; update yggdrasill {side}" in caught.value.message
    assert len(server.received) == 1


def test_a_newer_endpoint_that_still_speaks_ours_is_used(start: Start) -> None:
    server = start(Routes({"POST /graphs/g/jobs": answer(DONE)}, oldest=2, newest=5))
    assert graph_at(server).run({"x": 1}) == {"y": 2}
    assert server.client().protocol == 2


def test_priority_and_deadline_are_sent_to_a_current_endpoint(start: Start) -> None:
    server = start(Routes({"POST /graphs/g/jobs": answer(DONE)}))
    graph_at(server, priority=-3, deadline=60.0).run({"x": 1})
    assert (server.received[-1].document["priority"], server.received[-1].document["deadline"]) == (-3, 60.0)
    registry = EndpointRegistry(
        {"forge": Endpoint("forge", server.url, secret="x")},
        {"g": {"replicas": ["forge"], "priority": 5, "deadline": 2.5}},
    )
    assert registry.to_dict()["graphs"]["g"] == {
        "replicas": ["forge"], "policy": "least_busy", "fallback": "fail", "priority": 5, "deadline": 2.5
    }  # fmt: skip
    for value in ({"priority": 1001}, {"priority": True}, {"deadline": 0}, {"deadline": "soon"}):
        with pytest.raises(InvalidConfig, match=next(iter(value))):
            registry.place_key("g", {"replicas": ["forge"], **value})


def test_inputs_that_a_job_waits_for_are_uploaded_and_reported(start: Start) -> None:
    server = start(
        Routes(
            {
                "POST /graphs/g/jobs": row("WAITING_INPUTS", missing=[HASH]),
                "POST /artifacts/missing": answer({"missing": [HASH]}),
                "GET /artifacts/folder": answer({"folder": None}),
                f"PUT /artifacts/{HASH}": answer({}, 201),
                "POST /jobs/j/inputs": row("STAGING"),
                "GET /jobs/j/output": answer(DONE),
            }
        )
    )
    assert graph_at(server).run({"x": DATA}) == {"y": 2}
    assert server.routes.index(f"PUT /artifacts/{HASH}") < server.routes.index("POST /jobs/j/inputs")
    assert server.routes.count("POST /graphs/g/jobs") == 1


def test_inputs_that_an_event_reports_as_missing_are_uploaded(start: Start) -> None:
    states: list[tuple[str, dict[str, Any]]] = [
        ("status", {"status": "STAGING"}),
        ("status", {"status": "WAITING_INPUTS", "missing": [HASH]}),
    ]
    server = start(
        Routes(
            {
                "POST /graphs/g/jobs": row("STAGING"),
                "GET /jobs/j/events": [events(*states), events(("status", {"status": "COMPLETED"}), first=3)],
                "GET /jobs/j": row("WAITING_INPUTS", missing=[HASH]),
                "GET /artifacts/folder": answer({"folder": None}),
                f"PUT /artifacts/{HASH}": answer({}, 201),
                "POST /jobs/j/inputs": row("STAGING"),
                "GET /jobs/j/output": answer(DONE),
            }
        )
    )
    assert graph_at(server).run({"x": DATA}) == {"y": 2}
    assert server.routes.count(f"PUT /artifacts/{HASH}") == 1


def test_a_job_that_loses_its_inputs_each_time_is_given_up(start: Start) -> None:
    states = ("status", {"status": "WAITING_INPUTS", "missing": [HASH]})
    server = start(
        Routes(
            {
                "POST /graphs/g/jobs": row("WAITING_INPUTS", missing=[HASH]),
                "GET /jobs/j/events": events(*[states] * 10),
                "GET /jobs/j": row("WAITING_INPUTS", missing=[HASH]),
                "GET /jobs/j/output": row("WAITING_INPUTS"),
                f"PUT /artifacts/{HASH}": answer({}, 201),
                "POST /jobs/j/inputs": row("WAITING_INPUTS", missing=[HASH]),
            }
        )
    )
    with pytest.raises(UnknownArtifact, match=f"lost artifact {HASH} after 5 uploads"):
        graph_at(server).run({"x": DATA})


def test_unknown_states_are_unfinished_and_unknown_events_ignored(start: Start) -> None:
    stream = events(
        ("weather", {"of": "tomorrow"}), ("status", {"status": "HIBERNATING"}), ("status", {"status": "COMPLETED", "a new field": 1})
    )
    server = start(
        Routes(
            {
                "POST /graphs/g/jobs": row("HIBERNATING"),
                "GET /jobs/j/events": stream,
                "GET /jobs/j/output": [row("HIBERNATING"), answer(DONE)],
            }
        )
    )
    assert graph_at(server).run({"x": 1}) == {"y": 2}


def place(server: ScriptedEndpoint) -> Any:
    registry = EndpointRegistry({"forge": Endpoint("forge", server.url, secret="x")}, default="forge")
    return graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="g").place(registry)


class Deploying(Routes):
    """An endpoint that builds a deployment in the job ``d``."""

    def __init__(self, routes: dict[str, Answer | list[Answer]]) -> None:
        super().__init__(routes)
        self.graph_id = ""

    async def __call__(self, received: Received) -> Answer:
        if received.method == "PUT":
            self.graph_id = received.path.rpartition("/")[2]
            return answer({"job_id": "d", "kind": "deploy", "status": "STAGING"}, 202)
        if self.graph_id and received.path == f"/graphs/{self.graph_id}/contract":
            return answer({**CONTRACT, "graph_id": self.graph_id})
        if received.path.endswith("/jobs"):
            return answer(DONE)
        return await super().__call__(received)


def test_a_deployment_that_is_built_by_a_job_is_followed_to_its_end(start: Start) -> None:
    output = {"graph_id": "g", "kind": "graph", "hash": "h", "created": True}
    server = start(
        Deploying(
            {
                "GET /jobs/d/events": events(("log", {"text": "loading"}), ("status", {"status": "COMPLETED"})),
                "GET /jobs/d/output": answer({"job_id": "d", "status": "COMPLETED", "output": output}),
            }
        )
    )
    assert place(server).run({"x": 1}) == {"y": 2}


def test_a_deployment_that_fails_raises_the_real_error(start: Start) -> None:
    failure = BlockFailed("node 'd': no such weights", node="d")
    server = start(
        Deploying(
            {
                "GET /jobs/d/events": events(("status", {"status": "FAILED"})),
                "GET /jobs/d/output": answer({"job_id": "d", "status": "FAILED", "error": failure.to_dict()}),
            }
        )
    )
    with pytest.raises(BlockFailed, match="no such weights"):
        place(server)


@pytest.mark.parametrize("lost", [False, True])
def test_a_slow_submission_lasts_as_long_as_the_endpoint_is_alive(start: Start, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    monkeypatch.setattr(retry_module, "ALIVE_SECONDS", 0.1)
    routes = Routes({"POST /graphs/g/jobs": answer(DONE)})
    silent = False

    async def handler(received: Received) -> Answer:
        nonlocal silent
        if received.path == "/health" and silent:
            raise ConnectionResetError
        if received.path.endswith("/jobs"):
            silent = lost
            await asyncio.sleep(1.0)
        return await routes(received)

    server = start(handler)
    if lost:
        with pytest.raises(ConnectionError) as caught:
            graph_at(server).run({"x": 1})
        assert caught.value.details["reached"] is True  # type: ignore[attr-defined]
    else:
        assert graph_at(server).run({"x": 1}) == {"y": 2}
        assert server.routes.count("GET /health") >= 5
        assert server.routes.count("POST /graphs/g/jobs") == 1


def test_the_timeout_of_a_call_ends_it_while_the_endpoint_is_silent(start: Start) -> None:
    async def handler(received: Received) -> Answer:
        if received.path.endswith("/jobs"):
            await asyncio.sleep(60)
        return await routes(received)

    routes = Routes({"POST /graphs/g/jobs": answer(DONE)})
    server = start(handler)
    timeout = 0.2
    # a slow machine may not have sent the call in that time
    while "POST /graphs/g/jobs" not in server.routes:
        with pytest.raises(TimedOut):
            graph_at(server, timeout=timeout).run({"x": 1})
        timeout *= 2
    until(lambda: any(route.startswith("POST /jobs/keys/") for route in server.routes))
