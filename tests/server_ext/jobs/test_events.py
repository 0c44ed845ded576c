"""Event streams: order, resuming, content, end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from samples.http_client import GateFile, Http, error_of, events_of, in_background, one_node
from yggdrasill.errors import BlockFailed
from yggdrasill.executor.context import enter_run
from yggdrasill.protocol.states import FAILED, IN_PROGRESS
from yggdrasill.remote import RemoteGraph
from yggdrasill.server_ext import bodies
from yggdrasill.server_ext.jobs.events import EventHub
from yggdrasill.server_ext.jobs.model import Event, Job
from yggdrasill.server_ext.jobs.store import JobStore


def statuses(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["status"] for event in events if event["event"] == "status"]


def test_job_events_come_in_order_and_the_stream_ends_with_the_job(server: Http, gate_file: GateFile) -> None:
    job_id = server.start("gate", gate_file.inputs(x=1))
    stream = in_background(lambda: events_of(server.get(f"/jobs/{job_id}/events", stream=True)))
    gate_file.wait_begun()
    gate_file.open()
    events = stream.result(20)
    assert statuses(events) == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert [event["id"] for event in events] == sorted({event["id"] for event in events})
    assert all(event["data"]["job_id"] == job_id for event in events)


def test_a_listener_resumes_after_its_last_event(server: Http, gate_file: GateFile) -> None:
    job_id = server.start("gate", gate_file.inputs(x=1))
    gate_file.wait_begun()
    first = events_of(server.get(f"/jobs/{job_id}/events", stream=True), stop_after=2)
    again = in_background(
        lambda: events_of(server.get(f"/jobs/{job_id}/events", stream=True, headers={"Last-Event-ID": str(first[-1]["id"])}))
    )
    gate_file.open()
    assert statuses(first) + statuses(again.result(20)) == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def test_events_of_a_finished_job_can_be_read_from_any_number(server: Http) -> None:
    job_id = server.start("double", {"x": 1})
    server.result(job_id)
    everything = events_of(server.get(f"/jobs/{job_id}/events", stream=True))
    for place, event in enumerate(everything):
        rest = events_of(server.get(f"/jobs/{job_id}/events", stream=True, headers={"Last-Event-ID": str(event["id"])}))
        assert rest == everything[place + 1 :]


def test_progress_and_log_events_carry_their_node_path(server: Http) -> None:
    server.deploy("slow", one_node("slow", seconds=0.6))
    job_id = server.start("slow", {"x": 1}, run={"seed": 1, "path": ["stage", "part"], "pass_index": 0})
    events = events_of(server.get(f"/jobs/{job_id}/events", stream=True))
    progress = [event["data"] for event in events if event["event"] == "progress"]
    assert len(progress) >= 5
    assert [entry["done"] for entry in progress] == sorted(entry["done"] for entry in progress)
    assert progress[-1] == {"job_id": job_id, "place": "stage/part/node", "done": 10, "total": 10, "text": None}
    assert server.get(f"/jobs/{job_id}").json()["progress"]["done"] == 10
    events = events_of(server.get(f"/jobs/{server.start('say', {'x': 'hello'})}/events", stream=True))
    assert [event["data"]["text"] for event in events if event["event"] == "log"] == ["I was given hello"]


def test_a_failed_job_ends_its_stream_with_the_error(server: Http) -> None:
    events = events_of(server.get(f"/jobs/{server.start('fail', {'x': 1})}/events", stream=True))
    assert statuses(events)[-1] == "FAILED"
    assert events[-1]["data"]["error"]["type"] == "BlockFailed"


def test_one_stream_contains_the_events_of_all_jobs(server: Http) -> None:
    with server.get("/events", stream=True) as stream:
        listening = in_background(lambda: events_of(stream, stop_after=6))
        jobs = [server.start("double", {"x": number}) for number in range(2)]
        events = listening.result(20)
    assert {event["data"]["job_id"] for event in events} == set(jobs)


def test_a_stream_of_an_unknown_job_is_refused(server: Http) -> None:
    assert error_of(server.get("/jobs/nothing/events")) == (404, "UnknownJob")
    job_id = server.start("double", {"x": 1})
    assert error_of(server.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "nine"})) == (400, "InvalidArgument")


def test_an_idle_stream_yields_none_and_a_slow_listener_is_disconnected(tmp_path: Path) -> None:
    async def listen() -> list[Any]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        stream = hub.listen("job", None, 0.02)
        seen: list[Any] = [await stream.__anext__()]
        for number in range(10_002):
            hub.emit("job", "log", {"number": number})
        seen += [event async for event in stream]
        store.close()
        return seen

    seen = asyncio.run(listen())
    assert seen == [None]


def test_a_late_listener_misses_no_events(tmp_path: Path) -> None:
    async def listen() -> list[int]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        for number in range(1500):
            hub.emit("job" if number % 2 else "other", "log", {"number": number})
        found: list[int] = []
        async for event in hub.listen("job", 0, 0.5):
            assert event is not None
            found.append(event.data["number"])
            if len(found) < 500:
                hub.emit("job", "log", {"number": 1500 + len(found)})
            if found[-1] == 1999:
                break
        store.close()
        return found

    assert asyncio.run(listen()) == [*range(1, 1500, 2), *range(1501, 2000)]


@pytest.mark.parametrize("count, size", [(10, 10), (200, 10), (10, 10_000)])
def test_the_events_of_a_new_job_are_the_same_in_memory_and_in_the_store(tmp_path: Path, count: int, size: int) -> None:
    async def read() -> tuple[list[Event], list[Event]]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        hub.begin("job")
        for number in range(count):
            hub.emit("job", "comfy", {"number": number, "text": "x" * size}, f"slot {number % 7}" if number % 2 else None)
        hub.emit("job", "status", {"status": "COMPLETED"})
        found = [event async for event in hub.stored("job", 0)]
        stored = store.events("job", 0).result()
        store.close()
        return found, stored

    found, stored = asyncio.run(read())
    assert found == stored
    assert [event.message for event in found] == [event.message for event in stored]


def test_a_listener_with_a_number_of_a_deleted_job_file_receives_all_events(tmp_path: Path) -> None:
    async def listen() -> list[int]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        hub.emit("job", "log", {"number": 1})
        stream = hub.listen(None, 5_000_000, 5.0)
        found = [await anext(stream)]
        hub.emit("job", "log", {"number": 2})
        found.append(await anext(stream))
        await stream.aclose()
        store.close()
        return [event.data["number"] for event in found if event is not None]

    assert asyncio.run(listen()) == [1, 2]


async def kept(store: JobStore) -> list[str]:
    return [str(event.data.get("n")) for event in await asyncio.wrap_future(store.events(None, 0))]


def test_only_the_newest_event_of_a_slot_is_kept(tmp_path: Path) -> None:
    async def scenario() -> tuple[list[str], list[str], list[str]]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        stream = hub.listen("a", 0, 0.05)
        first = await anext(stream)
        for number in range(3):
            hub.emit("a", "comfy", {"n": number}, "preview/7")
            hub.emit("a", "comfy", {"n": f"other {number}"}, "preview/8")
        hub.emit("a", "log", {"n": "line"})
        live = []
        async for event in stream:
            if event is None:
                break
            live.append(str(event.data["n"]))
        hub.emit("a", "status", {"status": "COMPLETED", "n": "end"})
        stored = await kept(store)
        store.close()
        return [str(first)], live, stored

    first, live, stored = asyncio.run(scenario())
    assert first == ["None"]
    assert live == ["2", "other 2", "line"]
    assert stored == ["2", "other 2", "line", "end"]


def test_the_end_of_a_job_whose_event_was_not_stored_is_reported_once_after_the_restart(tmp_path: Path) -> None:
    error = {"type": "RunError", "message": "the oven is cold"}

    async def events_after_a_start() -> dict[str, list[Any]]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        found: dict[str, list[Any]] = {name: [] for name in ("lost", "reported", "running")}
        for name, data in found.items():
            async for event in hub.stored(name, 0):
                data.append(event.data)
        store.close()
        return found

    store = JobStore(tmp_path / "jobs.sqlite")
    for name in ("lost", "reported", "running"):
        job = Job(name, f"key-{name}", "graph", "hash", "body", {"inputs": {}})
        store.insert(job)
        store.add_event(Event(store.last_seq().result() + 1, name, "status", {"job_id": name, "status": job.status}))
        store.transition(replace(job, status=IN_PROGRESS, started=1.0))
        if name != "running":
            store.transition(replace(job, status=FAILED, started=1.0, finished=2.0, error=error, request={}))
    ended = {"job_id": "reported", "status": FAILED, "error": error}
    store.add_event(Event(9, "reported", "status", ended))
    store.close()

    for _ in range(2):
        found = asyncio.run(events_after_a_start())
        assert found["lost"][1:] == [{"job_id": "lost", "status": FAILED, "error": error}]
        assert found["reported"][1:] == [ended]
        assert len(found["running"]) == 1


def test_event_numbers_continue_after_all_events_were_removed(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        for number in range(300):
            hub.emit("job", "log", {"number": number})
        await asyncio.wrap_future(store.remove(["job"]))
        last = hub.last
        store.close()
        again = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(again)
        await hub.start()
        await asyncio.wrap_future(again.remove(["job"]))
        first = hub.emit("job", "log", {}).seq
        again.close()
        return last, first

    last, first = asyncio.run(scenario())
    assert last == 300
    assert first > last


def test_listeners_that_do_not_read_cost_no_more_per_event_when_they_have_more_unread_events(tmp_path: Path) -> None:
    async def scenario() -> float:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        streams = [hub.listen(None, None, 0.01) for _ in range(40)]
        for stream in streams:
            await anext(stream)
        began = time.process_time()
        for number in range(4000):
            hub.emit("job", "log", {"number": number})
        spent = time.process_time() - began
        for stream in streams:
            await stream.aclose()
        store.close()
        return spent

    assert asyncio.run(scenario()) < 2.5


class Counted(dict[str, int]):
    """A dict that counts how often it is read as a whole."""

    reads = 0

    def items(self) -> Any:
        self.reads += 1
        return super().items()


def test_an_event_is_encoded_once_for_the_file_and_all_listeners(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, set[bytes]]:
        store = JobStore(tmp_path / "jobs.sqlite")
        hub = EventHub(store)
        await hub.start()
        streams = [hub.listen(None, None, 0.01) for _ in range(5)]
        for stream in streams:
            await anext(stream)
        facts = Counted(n=1)
        hub.emit("job", "log", {"facts": facts})
        events = [await anext(stream) for stream in streams]
        messages = {event.message for event in events if event is not None}
        for stream in streams:
            await stream.aclose()
        store.close()
        return facts.reads, messages

    reads, messages = asyncio.run(scenario())
    assert messages == {b'id: 1\nevent: log\ndata: {"job_id":"job","facts":{"n":1}}\n\n'}
    assert reads == 1


def test_long_texts_of_progress_and_errors_are_shortened_and_the_error_arrives(server: Http) -> None:
    server.deploy("report", one_node("report", ("x", "repeat")))
    graph = RemoteGraph(endpoint=server.process.client(), graph_id="report")
    texts: list[str] = []
    with enter_run(progress=lambda path, done, total, text: texts.append(str(text))), pytest.raises(BlockFailed) as caught:
        graph.run({"x": "first xxxx last", "repeat": 150_000})
    assert "first xxxx" in caught.value.message
    assert "xxxx last" in caught.value.message
    assert "characters left out" in caught.value.message
    assert len(caught.value.message) < 20_000
    assert texts
    assert all(text.startswith("first xxxx") and text.endswith("xxxx last") and len(text) < 3000 for text in texts)


def test_progress_without_a_total_is_thinned(server: Http) -> None:
    server.deploy("report", one_node("report", ("x", "repeat")))
    job_id = server.start("report", {"x": "a", "repeat": 1})
    events = events_of(server.get(f"/jobs/{job_id}/events", stream=True))
    progress = [event["data"] for event in events if event["event"] == "progress"]
    assert progress[0]["done"] == 1
    assert len(progress) < 50


@asynccontextmanager
async def served_stream(events: Callable[[web.Request], AsyncGenerator[Event | None, None]]) -> AsyncIterator[tuple[str, int]]:
    """Serve an event stream at /events, and yield host and port."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await bodies.send_events(request, events(request))

    app = web.Application()
    app.router.add_get("/events", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()


async def test_a_listener_that_accepts_no_data_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_WRITE_SECONDS", 0.3)
    ended = asyncio.Event()

    async def events(request: web.Request) -> AsyncGenerator[Event | None, None]:
        try:
            for number in range(1, 1000):
                yield Event(number, "job", "log", {"text": "x" * 100_000})
        finally:
            ended.set()

    async with served_stream(events) as (host, port):
        with socket.create_connection((host, port)) as frozen:
            frozen.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
async def test_the_kernel_closes_the_stream_of_a_machine_that_vanished() -> None:
    limits: list[int] = []

    async def events(request: web.Request) -> AsyncGenerator[Event | None, None]:
        assert request.transport is not None
        connection = request.transport.get_extra_info("socket")
        limits.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        yield Event(1, "job", "log", {})

    async with (
        served_stream(events) as (host, port),
        aiohttp.ClientSession() as session,
        session.get(f"http://{host}:{port}/events") as answer,
    ):
        assert b"id: 1\n" in await answer.read()
    assert limits == [20_000]
