"""A plain HTTP client of an endpoint, so that tests cover the protocol and not the project's client."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from samples.endpoints import EndpointProcess
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack, unpack

__all__ = ["BASE", "SECRET_VALUE", "GateFile", "Http", "error_of", "events_of", "in_background", "one_node", "until"]

SECRET_VALUE = "env-secret-0815-4711"
BASE = "/yggdrasill/v1"
SOON = 15.0


class Http:
    """The routes of one endpoint, with shortcuts. The shortcuts `deploy` and `submit` are for protocol 1."""

    def __init__(self, process: EndpointProcess, protocol: int = 1) -> None:
        self.process = process
        self.session = requests.Session()
        self.session.headers.update({"Authorization": f"Bearer {process.token}", "X-Yggdrasill-Protocol": str(protocol)})

    @property
    def url(self) -> str:
        return self.process.url + BASE

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=60, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.session.post(self.url + path, timeout=60, **options)

    def put(self, path: str, **options: Any) -> requests.Response:
        return self.session.put(self.url + path, timeout=60, **options)

    def deploy(self, graph_id: str, config: Mapping[str, Any], kind: str = "graph") -> dict[str, Any]:
        answer = self.put(f"/graphs/{graph_id}", json={"kind": kind, "config": config})
        assert answer.status_code in (200, 201), answer.text
        deployed: dict[str, Any] = answer.json()
        return deployed

    def submit(self, graph_id: str, value: Any, *, wait: float = SOON, key: str | None = None, **facts: Any) -> requests.Response:
        """Start a job, and upload the artifacts that the endpoint requests."""
        return self._start(f"/graphs/{graph_id}/jobs", value, {"key": key or uuid.uuid4().hex, "wait": wait, **facts})

    def submit_workflow(self, prompt: Any, value: Any, *, wait: float = SOON, key: str | None = None, **facts: Any) -> requests.Response:
        """Start a job of a ComfyUI workflow that is not deployed, as `submit`."""
        return self._start("/workflows", value, {"prompt": prompt, "key": key or uuid.uuid4().hex, "wait": wait, **facts})

    def _start(self, path: str, value: Any, facts: Mapping[str, Any]) -> requests.Response:
        store = MemoryStore()
        with pack(value, store) as packed:
            body = {"inputs": packed.wire, **facts}
            answer = self.post(path, json=body)
            if answer.status_code == 409 and answer.json()["error"]["type"] == "UnknownArtifact":
                for name in answer.json()["error"]["details"]["missing"]:
                    assert self.put(f"/artifacts/{name}", data=bytes(store.read(name))).status_code in (200, 201)
                answer = self.post(path, json=body)
        return answer

    def run(self, graph_id: str, value: Any, **facts: Any) -> Any:
        """Run a call that succeeds, and return its output."""
        answer = self.submit(graph_id, value, **facts)
        assert answer.status_code == 200, answer.text
        assert answer.json()["error"] is None, answer.text
        return self.value(answer.json()["output"])

    def value(self, wire: Any) -> Any:
        """Return the value of a wire form, with its artifacts fetched with the token."""
        return unpack(wire, lambda ref: memoryview(self.get(f"/artifacts/{ref.hash}").content))

    def start(self, graph_id: str, value: Any, **facts: Any) -> str:
        """Start a job without waiting, and return its id."""
        answer = self.submit(graph_id, value, wait=0.0, **facts)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["job_id"])

    def status(self, job_id: str) -> str:
        return str(self.get(f"/jobs/{job_id}").json()["status"])

    def result(self, job_id: str) -> dict[str, Any]:
        """Wait for a job and return its result."""
        answer = self.get(f"/jobs/{job_id}/output?wait={SOON}")
        assert answer.status_code == 200, answer.text
        outcome: dict[str, Any] = answer.json()
        return outcome


class GateFile:
    """The file that a gate block waits for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / uuid.uuid4().hex

    def inputs(self, **more: Any) -> dict[str, Any]:
        return {"path": str(self.path), **more}

    def open(self) -> None:
        self.path.touch()

    @property
    def runs(self) -> int:
        notes = self.path.with_name(self.path.name + ".runs")
        return len(notes.read_text(encoding="utf-8").splitlines()) if notes.exists() else 0

    def wait_begun(self, times: int = 1) -> None:
        until(lambda: self.runs >= times)


def until(holds: Any, seconds: float = SOON) -> None:
    """Wait until ``holds()`` is true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def one_node(block: str, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",), **config: Any) -> dict[str, Any]:
    """Return the config of a graph of one sample block, with its ports exposed under their names."""
    return {
        "graph_id": block,
        "nodes": [{"node_id": "node", "block_type": f"sample/{block}", "config": config}],
        "exposed_inputs": [{"node_id": "node", "port_name": name, "name": name} for name in inputs],
        "exposed_outputs": [{"node_id": "node", "port_name": name, "name": name} for name in outputs],
    }


def in_background(act: Any, *arguments: Any, **options: Any) -> Future[Any]:
    """Call ``act(...)`` in a thread."""
    pool = ThreadPoolExecutor(1)
    future: Future[Any] = pool.submit(act, *arguments, **options)
    pool.shutdown(wait=False)
    return future


def error_of(answer: requests.Response) -> tuple[int, str]:
    """Return status and error type of a response."""
    return answer.status_code, answer.json()["error"]["type"]


def events_of(answer: requests.Response, stop_after: int | None = None) -> list[dict[str, Any]]:
    """Return the events of a stream, up to its end or ``stop_after`` of them, as ``{"id", "event", "data"}``."""
    found: list[dict[str, Any]] = []
    event: dict[str, Any] = {}
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        name, _, text = line.partition(": ")
        if line and name:
            event[name] = json.loads(text) if name in ("id", "data") else text
        elif event:
            found.append(event)
            event = {}
            if stop_after is not None and len(found) == stop_after:
                break
    answer.close()
    return found
