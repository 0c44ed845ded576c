"""A model of the jobs of an endpoint: what each key may do next, and checks of an endpoint process against it."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import requests
import torch

from samples.counted_blocks import Journal
from samples.endpoints import EndpointProcess
from samples.http_client import BASE, Http, error_of, events_of, one_node, until
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, STATES, TRANSITIONS, WAITING_INPUTS
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack

__all__ = ["GRAPHS", "Call", "EventLog", "ModelledEndpoint"]

#: Deployments by graph id. Only the second keeps state; the third is built slowly, so its jobs are staged for a while after a restart.
GRAPHS = {"counted": "counted", "keeper": "counted_keeper", "slow": "slowly_built"}
ARTIFACT_ELEMENTS = 20_000
QUOTA_BYTES = 16 << 20
#: Outputs may take half of the quota.
FILLER_BYTES = QUOTA_BYTES * 3 // 16
LISTED = 200
MAX_ATTEMPTS = 3


def _closure() -> dict[str, frozenset[str]]:
    """Return the states that can be reached from each state, itself included."""
    found = {status: {status} for status in STATES}
    for _ in STATES:
        for reached in found.values():
            reached.update(*(TRANSITIONS[status] for status in tuple(reached)))
    return {status: frozenset(reached) for status, reached in found.items()}


REACHABLE = _closure()
Arguments = ParamSpec("Arguments")


def _step(act: Callable[Concatenate[ModelledEndpoint, Arguments], None]) -> Callable[Concatenate[ModelledEndpoint, Arguments], None]:
    """Record each call of a method, and the first error with the steps that led to it."""
    name_of_act = act.__name__

    def recorded(endpoint: ModelledEndpoint, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        words = [word.name if isinstance(word, Call) else repr(word) for word in arguments]
        endpoint.steps.append(f"{name_of_act}({', '.join([*words, *(f'{name}={value!r}' for name, value in options.items())])})")
        try:
            act(endpoint, *arguments, **options)
        except Exception as error:
            if endpoint.failure is None:
                endpoint.failure = AssertionError("\n".join(["After the steps", *endpoint.steps, f"{type(error).__name__}: {error}"]))
                endpoint.failure.__cause__ = error
            raise

    return recorded


@dataclass
class Call:
    """One key: its request, and the knowledge that the model has of it."""

    key: str
    graph_id: str
    journal: Journal
    x: Any
    body: dict[str, Any]
    #: The artifacts of the inputs by hash.
    artifacts: dict[str, bytes]
    job_id: str | None = None
    status: str | None = None
    #: A complete request was sent, whether or not its answer arrived. A row was acknowledged by an answer.
    sent: bool = False
    acknowledged: bool = False
    #: A cancel was acknowledged; before any request was sent; while the run could not end by itself.
    cancelled: bool = False
    cancelled_first: bool = False
    #: The key was cancelled while no row of it was known, so it may have none.
    may_have_no_row: bool = False
    must_end_cancelled: bool = False
    #: Ends of the process while the call was unfinished: all; by SIGTERM; with a run begun; with a run ended; with a run in progress.
    deaths: int = 0
    stops: int = 0
    interrupted: int = 0
    ended_unseen: int = 0
    cut: int = 0
    #: The largest number of runs that may have begun; None without a limit beyond that of `interrupted`.
    begun_limit: int | None = None
    may_be_pruned: bool = False
    result: str | None = None

    @property
    def name(self) -> str:
        """The call as the steps of a failed sequence name it."""
        return f"{self.key.partition('-')[0]} {self.graph_id}{' large' if self.artifacts else ''}"

    @property
    def is_final(self) -> bool:
        """Whether the call was seen to have ended."""
        return self.status in FINAL

    @property
    def keeps_state(self) -> bool:
        """Whether the graph keeps state."""
        return self.graph_id == "keeper"

    def see(self, row: dict[str, Any]) -> None:
        """Compare a row or result with all that is known, and remember it."""
        assert self.sent or self.cancelled, f"{self.key} has a row, but was never sent"
        assert self.job_id in (None, row["job_id"]), f"{self.key} has two jobs"
        assert row.get("key", self.key) == self.key
        status = row["status"]
        assert status in REACHABLE[self.status or status], f"{self.key}: {self.status} became {status}"
        if status in FINAL and not self.is_final:
            self._end(status, row)
        self.job_id, self.status = row["job_id"], status

    def _end(self, status: str, row: dict[str, Any]) -> None:
        begun, ended = self.journal.begun, self.journal.ended
        if status == COMPLETED:
            assert not self.must_end_cancelled, f"{self.key} completed after it was cancelled"
            assert begun
            assert ended
            assert not (self.keeps_state and self.cut), f"{self.key} keeps state and ran again"
        elif status == CANCELLED:
            assert self.cancelled or self.stops, f"{self.key} was never cancelled"
            assert begun == 0 or not self.cancelled_first
        else:
            assert status == FAILED
            assert (self.keeps_state and self.deaths) or self.deaths >= MAX_ATTEMPTS, row.get("error")
        self.begun_limit = begun

    def check_runs(self) -> None:
        """Check how often the call ran."""
        begun, ended = self.journal.begun, self.journal.ended
        assert begun <= (1 if self.keeps_state else 1 + self.interrupted), f"{self.key} began {begun} times"
        assert ended <= 1 + self.ended_unseen, f"{self.key} ran {ended} times to completion"
        assert self.begun_limit is None or begun <= self.begun_limit, f"{self.key} ran again after its end"

    def acknowledge_cancel(self, row: dict[str, Any]) -> None:
        """Record that a cancel was answered with this row."""
        was_final = self.is_final
        self.cancelled_first = self.cancelled_first or not self.sent
        self.may_have_no_row = self.may_have_no_row or not self.acknowledged
        self.cancelled = True
        self.see(row)
        if not was_final and not self.is_final:
            self.must_end_cancelled = self.must_end_cancelled or not self.journal.is_open
            # a run that was about to begin may still begin
            self.begun_limit = self.journal.begun + 1

    def record_death(self, *, stopped: bool) -> None:
        """Record that the process ended."""
        if not self.sent or self.is_final:
            return
        begun, ended = self.journal.begun, self.journal.ended
        self.deaths += 1
        self.stops += stopped
        self.interrupted += begun > 0
        self.ended_unseen += ended > 0
        self.cut += begun > ended
        if self.cancelled:
            self.begun_limit = begun


class EventLog:
    """All events of an endpoint as one listener receives them, which resumes after every restart."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._closing = False
        self._lock = threading.Lock()
        self._events: list[dict[str, Any]] = []
        self._repeated: list[tuple[int, int]] = []
        self._gaps = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def of(self, job_id: str, last: int, restarts: int) -> list[dict[str, Any]]:
        """Return the events of a job when the listener has received event ``last``. Numbers may be skipped once per restart, and never repeat."""
        until(lambda: self._events and self._events[-1]["id"] >= last)
        with self._lock:
            assert not self._repeated
            assert self._gaps <= restarts
            return [event for event in self._events if event["data"]["job_id"] == job_id]

    def close(self) -> None:
        """End the listener, after the end of its endpoint."""
        self._closing = True
        self._thread.join(10)

    def _listen(self) -> None:
        while not self._closing:
            headers = {"Last-Event-ID": str(self._events[-1]["id"] if self._events else 0)}
            try:
                with self._http.session.get(self._http.url + "/events", stream=True, headers=headers, timeout=(2, 30)) as answer:
                    self._receive(answer)
            except (requests.RequestException, OSError):
                time.sleep(0.02)

    def _receive(self, answer: requests.Response) -> None:
        event: dict[str, Any] = {}
        for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
            name, _, text = line.partition(": ")
            if line and name:
                event[name] = json.loads(text) if name in ("id", "data") else text
            elif event:
                self._record(event)
                event = {}

    def _record(self, event: dict[str, Any]) -> None:
        with self._lock:
            last = self._events[-1]["id"] if self._events else int(event["id"]) - 1
            if event["id"] <= last:
                self._repeated.append((last, event["id"]))
            self._gaps += event["id"] > last + 1
            self._events.append(event)


class ModelledEndpoint:
    """An endpoint process with two slots, two callers that speak protocol 1 and 2, and the calls of the current example."""

    def __init__(self, folder: Path) -> None:
        plugins = ["samples.served_blocks", "samples.counted_blocks"]
        self.process = EndpointProcess("modelled", folder / "data", plugins=plugins, slots=2, grace=0.3, artifact_quota=QUOTA_BYTES).start()
        self.callers = [Http(self.process) for _ in range(2)]
        self.callers[1].session.headers["X-Yggdrasill-Protocol"] = "2"
        self.log = EventLog(Http(self.process))
        self.restarts = 0
        self.calls: list[Call] = []
        #: The steps of the current sequence, and the first error of all.
        self.steps: list[str] = []
        self.failure: AssertionError | None = None
        self._journals = folder / "journals"
        self._journals.mkdir()
        self._numbers = 0
        for graph_id, block in GRAPHS.items():
            self.callers[0].deploy(graph_id, one_node(block, ("path", "x")))
        self.callers[0].deploy("deaf", one_node("counted_deaf", ("path", "x")))
        self.callers[0].deploy("filler", one_node("filler", ("x", "nbytes")))

    def close(self) -> None:
        """Stop the process."""
        self.process.stop()
        self.log.close()
        for caller in self.callers:
            caller.session.close()

    def begin(self) -> None:
        """Forget the calls and errors of an earlier test."""
        self.calls.clear()
        self.steps.clear()
        self.failure = None

    # -- requests -----------------------------------------------------------------------------------------------

    def new_call(self, graph_id: str, *, large: bool, held: bool) -> Call:
        """Make a call that was not sent. A ``large`` one has an artifact; a ``held`` one runs until its journal is opened."""
        self._numbers += 1
        key = f"{self._numbers}-{uuid.uuid4().hex}"
        journal = Journal(self._journals / key)
        if not held:
            journal.open()
        x = torch.full((ARTIFACT_ELEMENTS,), self._numbers, dtype=torch.int32) if large else self._numbers
        store = MemoryStore()
        with pack({"path": str(journal.path), "x": x}, store) as packed:
            artifacts = {name: bytes(store.read(name)) for name in packed.artifacts}
            body = {"key": key, "inputs": packed.wire, "orphan_after": 3600.0}
        call = Call(key, graph_id, journal, x, body, artifacts)
        self.calls.append(call)
        return call

    @_step
    def submit(self, call: Call, by: int, *, wait: float = 0.0) -> None:
        """Send the call and compare the answer."""
        call.sent = True
        self._compare(call, self.callers[by].post(f"/graphs/{call.graph_id}/jobs", json={**call.body, "wait": wait}))

    @_step
    def submit_together(self, call: Call) -> None:
        """Send the call from both callers at the same time."""
        call.sent = True
        answers: list[requests.Response | None] = [None, None]

        def send(by: int) -> None:
            answers[by] = self.callers[by].post(f"/graphs/{call.graph_id}/jobs", json=call.body)

        threads = [threading.Thread(target=send, args=(by,)) for by in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # either answer may be the later one
        for answer in sorted((answer for answer in answers if answer is not None), key=lambda answer: STATES.index(_status(answer))):
            self._compare(call, answer)

    @_step
    def submit_another_body(self, call: Call, by: int) -> None:
        """Send another call with the same key, which is refused."""
        body = {**call.body, "run": {"seed": 7, "path": [], "pass_index": 0}}
        answer = self.callers[by].post(f"/graphs/{call.graph_id}/jobs", json=body)
        if call.may_have_no_row and answer.status_code in (200, 202):
            call.see(answer.json())
        else:
            assert error_of(answer) == (409, "JobConflict")

    @_step
    def submit_and_leave(self, call: Call, by: int, *, share: float, pause: float) -> None:
        """Send this share of the request and cut the connection before the answer is read."""
        caller = self.callers[by]
        host, port = caller.process.url.removeprefix("http://").split(":")
        body = json.dumps({**call.body, "wait": 10.0}).encode()
        names = {name: caller.session.headers[name] for name in ("Authorization", "X-Yggdrasill-Protocol")}
        lines = [f"POST {BASE}/graphs/{call.graph_id}/jobs HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value!s}" for name, value in names.items()), "", ""])
        call.sent = call.sent or share == 1.0
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(head.encode() + body[: int(len(body) * share)])
            time.sleep(pause)

    @_step
    def upload(self, call: Call, by: int) -> None:
        """Upload the inputs of a call."""
        for name, data in call.artifacts.items():
            assert self.callers[by].put(f"/artifacts/{name}", data=data).status_code in (200, 201)

    @_step
    def check_inputs(self, call: Call, by: int) -> None:
        """Let the endpoint look for the inputs again; in every state this answers the row."""
        self._compare_row(call, self.callers[by].post(f"/jobs/{call.job_id}/inputs", json={}))

    @_step
    def look_up(self, call: Call, by: int) -> None:
        """Request the row by the key."""
        answer = self.callers[by].get(f"/jobs/keys/{call.key}")
        if answer.status_code == 404 and not call.acknowledged:
            assert error_of(answer) == (404, "UnknownJob")
        else:
            self._compare_row(call, answer)

    @_step
    def cancel(self, call: Call, by: int, *, by_key: bool) -> None:
        """Cancel the call by its key or by the id of its job."""
        path = f"/jobs/keys/{call.key}/cancel" if by_key else f"/jobs/{call.job_id}/cancel"
        answer = self.callers[by].post(path)
        if answer.status_code == 404:
            assert self._may_be_unknown(call, answer)
            return
        assert answer.status_code == 200, answer.text
        call.acknowledge_cancel(answer.json())

    @_step
    def result(self, call: Call, by: int, *, wait: float = 0.0) -> None:
        """Request the result and compare it with the one that was seen before."""
        answer = self.callers[by].get(f"/jobs/{call.job_id}/output?wait={wait}")
        if answer.status_code == 404:
            assert self._may_be_unknown(call, answer)
            return
        assert answer.status_code in (200, 202), answer.text
        self._compare(call, answer)

    @_step
    def fill(self) -> None:
        """Fill the room for outputs, so that the oldest outputs are removed."""
        for call in self.calls:
            call.may_be_pruned = call.may_be_pruned or (call.is_final and bool(call.artifacts))
        http = self.callers[0]
        jobs = []
        # the same contents every time, because a killed process keeps its artifacts pinned for a while
        for number in range(3):
            found = http.submit("filler", {"x": number, "nbytes": FILLER_BYTES}).json()
            assert found["status"] == COMPLETED, found
            jobs.append(found["job_id"])
            # longer than the interval at which the endpoint looks for outputs to remove
            time.sleep(0.25)
        until(lambda: http.get(f"/jobs/{jobs[0]}").status_code == 404)

    # -- ends of the process ------------------------------------------------------------------------------------

    @_step
    def kill(self) -> None:
        """Kill the process and start it again."""
        self._restart(self.process.kill, stopped=False)

    @_step
    def stop(self) -> None:
        """Stop the process as its owner does, and start it again."""
        self._restart(self.process.stop, stopped=True)

    def _restart(self, end: Callable[[], None], *, stopped: bool) -> None:
        end()
        for call in self.calls:
            call.record_death(stopped=stopped)
        self.restarts += 1
        self.process.start()

    # -- checks -------------------------------------------------------------------------------------------------

    @_step
    def check(self) -> None:
        """Compare all calls with the list of jobs and with their journals."""
        rows = self.callers[1].get(f"/jobs?limit={LISTED}").json()["jobs"]
        assert len({row["key"] for row in rows}) == len(rows)
        assert len({row["job_id"] for row in rows}) == len(rows)
        listed = {row["key"]: row for row in rows}
        for call in self.calls:
            row = listed.get(call.key)
            if row is not None:
                call.acknowledged = True
                call.see(row)
            else:
                assert not call.acknowledged or call.may_be_pruned, f"{call.key} is lost"
            call.check_runs()

    @_step
    def finish(self) -> None:
        """End all calls of the example, check them and their events, and forget them."""
        for call in self.calls:
            call.journal.open()
        for call in self.calls:
            if call.sent and not call.is_final:
                self._finish_call(call)
        self.check()
        for call in self.calls:
            if call.acknowledged:
                assert call.is_final
                self.result(call, 0)
                self._check_events(call)
        self.calls.clear()
        self.steps.clear()

    def _finish_call(self, call: Call) -> None:
        if not call.cancelled and (not call.acknowledged or call.status == WAITING_INPUTS):
            # its request may still arrive, or its inputs are missing
            self.cancel(call, 1, by_key=True)
        if call.acknowledged:
            self.result(call, 0, wait=15.0)
        if call.acknowledged and not call.is_final:
            # a repeated request looked for its inputs again, and the wait ended because they are missing
            self.cancel(call, 1, by_key=True)
            self.result(call, 0, wait=15.0)

    def _check_events(self, call: Call) -> None:
        answer = self.callers[0].get(f"/jobs/{call.job_id}/events", stream=True, headers={"Last-Event-ID": "0"})
        if answer.status_code == 404:
            assert self._may_be_unknown(call, answer)
            return
        events = events_of(answer)
        numbers = [event["id"] for event in events]
        assert numbers == sorted(set(numbers))
        statuses = [event["data"]["status"] for event in events if event["event"] == "status"]
        for before, after in itertools.pairwise(statuses):
            assert after in (REACHABLE if call.deaths else TRANSITIONS)[before], statuses
        if not call.deaths:
            assert statuses[-1] == call.status
            received = self.log.of(call.job_id or "", numbers[-1], self.restarts)
            # a killed process may have sent an end that it had not stored; that is sent again under a new number
            again = (
                []
                if not self.restarts
                else [event for event in received if event["id"] not in numbers and event["data"] == events[-1]["data"]]
            )
            assert [event for event in received if event not in again] == events
            assert len(again) <= 1

    def _compare_row(self, call: Call, answer: requests.Response) -> None:
        if answer.status_code == 404:
            assert self._may_be_unknown(call, answer)
            return
        assert answer.status_code == 200, answer.text
        row = answer.json()
        call.see(row)
        assert set(row["missing"]) <= (call.artifacts.keys() if row["status"] == WAITING_INPUTS else set())

    def _compare(self, call: Call, answer: requests.Response) -> None:
        if answer.status_code == 404:
            assert self._may_be_unknown(call, answer)
        elif answer.status_code == 409:
            assert error_of(answer) == (409, "UnknownArtifact")
            assert set(answer.json()["error"]["details"]["missing"]) <= call.artifacts.keys()
        else:
            assert answer.status_code in (200, 202), answer.text
            found = answer.json()
            call.see(found)
            call.acknowledged = call.acknowledged or not call.may_have_no_row
            if call.is_final:
                self._compare_result(call, found)

    def _compare_result(self, call: Call, found: dict[str, Any]) -> None:
        output: Any = found.get("output")
        if found["status"] == COMPLETED:
            value = self.callers[0].value(output)["y"]
            assert 1 <= value["run"] <= call.journal.begun
            assert bool(torch.equal(value["x"], call.x) if torch.is_tensor(call.x) else value["x"] == call.x)
            for payload in output["payloads"]:
                payload.pop("url", None)
        result = json.dumps([found["status"], output, found.get("error")], sort_keys=True)
        assert call.result in (None, result), f"the result of {call.key} changed"
        call.result = result

    @staticmethod
    def _may_be_unknown(call: Call, answer: requests.Response) -> bool:
        """Return whether a job may be unknown: its result was removed, or its key was cancelled first and only the key is known."""
        return error_of(answer) == (404, "UnknownJob") and (call.may_be_pruned or call.may_have_no_row)


def _status(answer: requests.Response) -> str:
    """Return the status of a job in an answer, or the first state for an error."""
    return str(answer.json().get("status", STATES[0]))
