"""The events of a job at a serverless endpoint: each once and in order, whatever messages a poller misses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from yggdrasill.remote.serverless.queue_job import QueueJob
from yggdrasill.worker.event_window import EventWindow


def job() -> QueueJob:
    return QueueJob("key", "call", "graph", {}, {})


def events_of(found: QueueJob, kind: str) -> list[Any]:
    return [data for _, name, data in found._events if name == kind]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30), st.data())
def test_numbered_events_are_received_once_and_in_order(made: list[tuple[bool, int]], data: st.DataObject) -> None:
    async def run() -> None:
        window, found = EventWindow(lambda message: None), job()
        for number, (passes, place) in enumerate(made):
            window.add("progress" if passes else "comfy", {"place": place, "n": number} if passes else {"what": "executed", "n": number})
            if data.draw(st.booleans()):
                entries = [entry for _, entry, _ in window._recent]
                start = data.draw(st.integers(0, len(entries)))
                found.receive(json.loads(json.dumps(entries[start:])))
        found.receive(json.loads(json.dumps(window.kept())))
        assert [event["n"] for event in events_of(found, "comfy")] == [n for n, (passes, _) in enumerate(made) if not passes]
        shown = [event["n"] for event in events_of(found, "progress")]
        assert shown == sorted(set(shown))

    asyncio.run(run())


def test_of_progress_and_previews_only_the_newest_stays() -> None:
    async def run() -> None:
        found = job()
        for number in range(5):
            found.add_event("progress", {"place": "a", "done": number})
            found.add_event("comfy", {"what": "preview", "node": "7", "n": number})
            found.add_event("comfy", {"what": "executed", "n": number})
        assert events_of(found, "progress") == [{"place": "a", "done": 4}]
        assert [event["n"] for event in events_of(found, "comfy")] == [0, 1, 2, 3, 4, 4]

    asyncio.run(run())


def test_a_reader_sees_all_events_up_to_the_last_state_and_resumes() -> None:
    async def run() -> None:
        found = job()
        found.add_event("log", {"text": "first"})

        async def read(after: int) -> list[bytes]:
            return [chunk async for chunk in found.stream(after)]

        reading = asyncio.ensure_future(read(0))
        await asyncio.sleep(0)
        found.add_event("log", {"text": "second"})
        await asyncio.sleep(0)
        found.end("COMPLETED", output={})
        found.add_event("log", {"text": "too late, and harmless"})
        chunks = await reading
        text = b"".join(chunks).decode()
        assert text.index("first") < text.index("second") < text.index("COMPLETED")
        resumed = b"".join(await read(1)).decode()
        assert "first" not in resumed
        assert "second" in resumed

    asyncio.run(run())
