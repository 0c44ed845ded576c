"""A data folder in the format of version 1, written byte for byte, opens without losing a job, a key, an event or an artifact."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from samples.endpoints import EndpointProcess
from samples.http_client import GateFile, Http, error_of, events_of, one_node, until

SCHEMA = """
CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, graph_id TEXT NOT NULL, graph_hash TEXT NOT NULL, body_hash TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, detached INTEGER NOT NULL, orphan_after REAL NOT NULL,
    timeout REAL, attempts INTEGER NOT NULL, request TEXT NOT NULL, output TEXT, error TEXT, timing TEXT NOT NULL, progress TEXT,
    artifacts TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_age ON jobs (finished);
CREATE TABLE events (seq INTEGER PRIMARY KEY, job_id TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_of_job ON events (job_id, seq);
CREATE TABLE keys (
    key TEXT PRIMARY KEY, job_id TEXT NOT NULL, body_hash TEXT NOT NULL, status TEXT NOT NULL, recorded REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_by_age ON keys (recorded);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
GRAPHS = {"double": one_node("double"), "gate": one_node("gate", ("path", "x")), "keeper": one_node("keeper", ("path", "x"))}
RUN: dict[str, Any] = {"seed": None, "path": [], "pass_index": 0}
STORE_ID = "5" * 32
LAST_SEQ = 400
INPUT = torch.arange(20_000, dtype=torch.float32)
OUTPUT = INPUT * 2
ERROR = {"type": "BlockFailed", "message": "the block failed", "details": {"node": "node"}}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hash_of(value: Any) -> str:
    return blake3(canonical(value)).hexdigest()


GRAPH_HASHES = {name: hash_of({"kind": "graph", "config": config, "state": None}) for name, config in GRAPHS.items()}


def tensor_wire(name: str, tensor: torch.Tensor, **more: Any) -> dict[str, Any]:
    """Return a dict with one tensor, as an artifact, in wire form."""
    payload = {"dtype": "float32", "shape": list(tensor.shape), "nbytes": tensor.nbytes, "artifact": blake3(data_of(tensor)).hexdigest()}
    return {"skeleton": {name: {"$tensor": 0}}, "payloads": [{**payload, **more}]}


def data_of(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


@dataclass
class OldFolder:
    """A data folder as an endpoint of version 1 leaves it when it is killed."""

    path: Path
    now: float = field(default_factory=time.time)
    rows: list[dict[str, Any]] = field(default_factory=list)
    #: The inputs of each job in wire form, by key.
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[int, str, str, str]] = field(default_factory=list)

    def add_job(self, name: str, graph_id: str, status: str, inputs: dict[str, Any], **columns: Any) -> None:
        """Add the row of a job with id ``job-<name>`` and key ``key-<name>``, and its events."""
        body = {"graph_id": graph_id, "hash": GRAPH_HASHES[graph_id], "inputs": inputs, "options": {}, "run": RUN}
        final = status not in ("IN_QUEUE", "IN_PROGRESS")
        started = None if status == "IN_QUEUE" else self.now - 20
        self.inputs[f"key-{name}"] = inputs
        self.rows.append(
            {
                "job_id": f"job-{name}",
                "key": f"key-{name}",
                "graph_id": graph_id,
                "graph_hash": GRAPH_HASHES[graph_id],
                "body_hash": hash_of(body),
                "status": status,
                "created": self.now - 60 + len(self.rows),
                "started": started,
                "finished": self.now - 10 if final else None,
                "detached": 0,
                "orphan_after": 3600.0,
                "timeout": None,
                "attempts": int(started is not None),
                "request": "{}" if final else json.dumps({"inputs": inputs, "options": {}, "run": RUN}),
                "output": None,
                "error": None,
                "timing": '{"fetch_s":0.0,"bytes_in":0.0}',
                "progress": None,
                "artifacts": json.dumps([payload["artifact"] for payload in inputs["payloads"]] if not final else []),
                **columns,
            }
        )
        for reached in ["IN_QUEUE", *(["IN_PROGRESS"] if started else []), *([status] if final else [])]:
            data = {"job_id": f"job-{name}", "status": reached, **({"error": None} if final and reached == status else {})}
            self.events.append((len(self.events) + 1, f"job-{name}", "status", json.dumps(data, separators=(",", ":"))))

    def write(self) -> None:
        """Write jobs, deployments and artifacts."""
        self.path.mkdir(parents=True)
        self._write_jobs()
        (self.path / "graphs").mkdir()
        for graph_id, config in GRAPHS.items():
            record = {"graph_id": graph_id, "kind": "graph", "hash": GRAPH_HASHES[graph_id], "config": config, "has_state": False}
            name = f"{graph_id}-{sha256(graph_id.encode()).hexdigest()[:16]}"
            text = json.dumps({**record, "idle_after": None, "world_folder": name}, indent=1)
            (self.path / "graphs" / f"{name}.json").write_text(text, encoding="utf-8")
        self._write_artifacts()

    def _write_jobs(self) -> None:
        db = sqlite3.connect(self.path / "jobs.sqlite")
        db.executescript(SCHEMA)
        for row in self.rows:
            db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", self.events)
        deleted = hash_of(
            {"graph_id": "double", "hash": GRAPH_HASHES["double"], "inputs": numbers(x=9), "options": {}, "run": RUN},
        )
        db.execute("INSERT INTO keys VALUES ('key-deleted', 'job-deleted', ?, 'COMPLETED', ?)", (deleted, self.now - 100))
        db.execute("INSERT INTO keys VALUES ('key-cancelled-first', 'job-cancelled-first', '', 'CANCELLED', ?)", (self.now - 100,))
        db.execute("INSERT INTO numbers VALUES ('last_seq', ?)", (LAST_SEQ,))
        db.commit()
        db.close()

    def _write_artifacts(self) -> None:
        """Write the store with an input, an output and an artifact that is not pinned, and the pins and a partial file of a dead process."""
        folder = self.path / "artifacts"
        used = 0
        names = []
        for data in (data_of(INPUT), data_of(OUTPUT), b"not pinned" * 10):
            name = blake3(data).hexdigest()
            file = folder / "objects" / name[:2] / name[2:4] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            used += max(len(data), 8192)
            names.append(name)
        pins = folder / "pins" / ("a" * 32)
        pins.mkdir(parents=True)
        for name in [*names[:2], "lock"]:
            (pins / name).touch()
        (folder / "incoming").mkdir()
        (folder / "incoming" / f"{'a' * 32}-{'b' * 32}.part").write_bytes(b"half")
        (folder / "lock").touch()
        (folder / "store-id").write_text(STORE_ID, encoding="ascii")
        (folder / "used").write_text(f"{used:020d}", encoding="ascii")


def numbers(**values: Any) -> dict[str, Any]:
    """Return plain values in wire form."""
    return {"skeleton": values, "payloads": []}


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GateFile]:
    """Return the gates of the unfinished jobs, all open."""
    found = {name: GateFile(tmp_path_factory.mktemp("gates")) for name in ("queued", "running", "keeper", "keeper-queued")}
    for gate in found.values():
        gate.open()
    return found


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, gates: dict[str, GateFile]) -> OldFolder:
    """Return a folder with jobs in every state."""
    folder = OldFolder(tmp_path_factory.mktemp("old") / "data")
    done = {"output": json.dumps(tensor_wire("y", OUTPUT, store=STORE_ID)), "artifacts": json.dumps([blake3(data_of(OUTPUT)).hexdigest()])}
    folder.add_job("completed", "double", "COMPLETED", tensor_wire("x", INPUT), **done)
    folder.add_job("small", "double", "COMPLETED", numbers(x=2), output=json.dumps(numbers(y=4)))
    folder.add_job("failed", "double", "FAILED", numbers(x=3), error=json.dumps(ERROR))
    folder.add_job("cancelled", "double", "CANCELLED", numbers(x=4), error=json.dumps({**ERROR, "type": "Cancelled"}))
    folder.add_job("timed-out", "double", "TIMED_OUT", numbers(x=5), error=json.dumps({**ERROR, "type": "TimedOut"}))
    folder.add_job("queued-large", "double", "IN_QUEUE", tensor_wire("x", INPUT))
    folder.add_job("queued", "gate", "IN_QUEUE", numbers(**gates["queued"].inputs(x=6)))
    folder.add_job("running", "gate", "IN_PROGRESS", numbers(**gates["running"].inputs(x=7)))
    folder.add_job("keeper", "keeper", "IN_PROGRESS", numbers(**gates["keeper"].inputs()))
    folder.add_job("keeper-queued", "keeper", "IN_QUEUE", numbers(**gates["keeper-queued"].inputs()))
    folder.write()
    return folder


@pytest.fixture(scope="module")
def opened(old: OldFolder) -> Iterator[Http]:
    """Return an endpoint of this version on that folder."""
    process = EndpointProcess("opened", old.path, plugins=["samples.served_blocks"]).start()
    yield Http(process)
    process.stop()


ENDS = {
    "completed": "COMPLETED",
    "small": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "timed-out": "TIMED_OUT",
    "queued-large": "COMPLETED",
    "queued": "COMPLETED",
    "running": "COMPLETED",
    "keeper": "FAILED",
    "keeper-queued": "COMPLETED",
}


def test_every_job_is_found_and_ends(old: OldFolder, opened: Http) -> None:
    until(lambda: all(opened.status(f"job-{name}") == end for name, end in ENDS.items()))
    rows = {row["key"]: row for row in opened.get("/jobs").json()["jobs"]}
    assert {key: rows[key]["job_id"] for key in old.inputs} == {row["key"]: row["job_id"] for row in old.rows}
    assert [rows[row["key"]]["created"] for row in old.rows] == [row["created"] for row in old.rows]
    assert not list(old.path.glob("*.damaged-*"))


@pytest.mark.parametrize("name", ["completed", "queued-large"])
def test_results_with_artifacts_are_served(opened: Http, name: str) -> None:
    assert torch.equal(opened.value(opened.result(f"job-{name}")["output"])["y"], OUTPUT)


def test_other_results_and_errors_are_served(opened: Http) -> None:
    assert opened.value(opened.result("job-small")["output"]) == {"y": 4}
    assert opened.result("job-failed")["error"] == ERROR
    assert opened.result("job-timed-out")["error"]["type"] == "TimedOut"


def test_unfinished_jobs_run_unless_they_keep_state_and_had_begun(opened: Http, gates: dict[str, GateFile]) -> None:
    results = {name: opened.result(f"job-{name}") for name in gates}
    assert {name: gate.runs for name, gate in gates.items()} == {"queued": 1, "running": 1, "keeper": 0, "keeper-queued": 1}
    assert opened.value(results["running"]["output"]) == {"y": 7}
    assert "keeps state between calls" in results["keeper"]["error"]["message"]


@pytest.mark.parametrize("name", ENDS)
def test_a_repeated_call_returns_the_stored_job_and_runs_nothing(
    old: OldFolder, opened: Http, gates: dict[str, GateFile], name: str
) -> None:
    opened.result(f"job-{name}")
    (row,) = (row for row in old.rows if row["job_id"] == f"job-{name}")
    before = {key: gate.runs for key, gate in gates.items()}
    path, body = f"/graphs/{row['graph_id']}/jobs", {"key": f"key-{name}", "inputs": old.inputs[f"key-{name}"], "wait": 5}
    answer = opened.post(path, json=body)
    assert (answer.status_code, answer.json()["job_id"], answer.json()["status"]) == (200, f"job-{name}", ENDS[name])
    other = opened.post(path, json={**body, "inputs": numbers(x=1000)})
    assert error_of(other) == (409, "JobConflict")
    assert {key: gate.runs for key, gate in gates.items()} == before


def test_keys_without_rows_are_remembered(opened: Http) -> None:
    deleted = opened.post("/graphs/double/jobs", json={"key": "key-deleted", "inputs": numbers(x=9), "wait": 5})
    assert error_of(deleted) == (404, "UnknownJob")
    cancelled = opened.post("/graphs/double/jobs", json={"key": "key-cancelled-first", "inputs": numbers(x=1), "wait": 5})
    assert cancelled.json()["status"] == "CANCELLED"


def test_events_are_kept_and_their_numbers_continue(old: OldFolder, opened: Http) -> None:
    stored = events_of(opened.get("/jobs/job-completed/events", stream=True, headers={"Last-Event-ID": "0"}))
    assert [event["id"] for event in stored] == [seq for seq, job_id, _, _ in old.events if job_id == "job-completed"]
    assert [event["data"]["status"] for event in stored] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    resumed = events_of(opened.get("/jobs/job-queued/events", stream=True, headers={"Last-Event-ID": "0"}))
    assert resumed[0]["id"] <= len(old.events)
    assert all(event["id"] > LAST_SEQ for event in resumed[1:])
    assert resumed[-1]["data"]["status"] == "COMPLETED"


def test_the_artifact_store_keeps_its_id_and_its_artifacts(opened: Http) -> None:
    assert opened.get("/artifacts/folder").json()["store_id"] == STORE_ID
    for data in (data_of(INPUT), data_of(OUTPUT), b"not pinned" * 10):
        name = blake3(data).hexdigest()
        assert opened.post("/artifacts/missing", json={"hashes": [name]}).json() == {"missing": []}
        assert opened.get(f"/artifacts/{name}").content == data


def test_deployments_are_kept(opened: Http) -> None:
    graphs = {graph["graph_id"]: graph["hash"] for graph in opened.get("/graphs").json()["graphs"]}
    assert graphs == GRAPH_HASHES
    assert opened.run("double", {"x": 21}) == {"y": 42}


def test_results_are_the_same_after_another_start(old: OldFolder, opened: Http, gates: dict[str, GateFile]) -> None:
    def results() -> dict[str, Any]:
        found = {name: opened.result(f"job-{name}") for name in ENDS}
        for result in found.values():
            for payload in (result["output"] or {"payloads": []})["payloads"]:
                payload.pop("url")
        return found

    before = results()
    opened.process.kill()
    opened.process.start()
    assert results() == before
    assert {name: gate.runs for name, gate in gates.items()} == {"queued": 1, "running": 1, "keeper": 0, "keeper-queued": 1}
