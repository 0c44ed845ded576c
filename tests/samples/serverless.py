"""Workers with the real RunPod SDK, and the emulators of object stores, in an environment of their own.

Their packages are many. ``SERVERLESS_PYTHON`` names the Python that has them, else it is that of ``.venv-serverless`` (see `make serverless`),
else this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from samples.endpoints import free_port

__all__ = [
    "JOBS_PROGRAM",
    "PACKAGES",
    "RunpodQueue",
    "command",
    "environment_of",
    "ok",
    "post",
    "run_jobs",
    "runpod_queue",
    "serverless_python",
    "started",
    "waited",
]

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = "runpod google-cloud-storage obstore moto[server] gcp-storage-emulator"
_CHECK = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('runpod', 'google.cloud.storage', 'obstore', 'moto', 'gcp_storage_emulator'))))"
#: Answers the jobs on standard input (a JSON list) with one worker, a line of JSON each.
JOBS_PROGRAM = """
import json, sys
from yggdrasill.worker.handler import WorkerHost
from yggdrasill.worker.settings import Settings
host = WorkerHost(Settings.from_environment())
for job in json.load(sys.stdin):
    print(json.dumps(host.run(host.service.handle(job))), flush=True)
host.close()
"""


def serverless_python() -> Path:
    """Return the Python with the SDK and the emulators; skip the test where there is none."""
    beside = ROOT / ".venv-serverless" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    named = os.environ.get("SERVERLESS_PYTHON")
    candidates = [Path(named)] if named else [beside, Path(sys.executable)]
    for python in candidates:
        if python.is_file() and subprocess.run([str(python), "-c", _CHECK], capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip(
        f"NO RUNPOD SDK FOUND, SO THE WORKER UNDER IT IS NOT TESTED: run 'make serverless', or install {PACKAGES} and set SERVERLESS_PYTHON"
    )


def environment_of(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a worker whose files are in ``folder`` and whose secrets are planted."""
    link = ROOT / ".link"
    if not (link / "yggdrasill").exists():
        link.mkdir(exist_ok=True)
        (link / "yggdrasill").symlink_to("..", target_is_directory=True)
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT")}
    return {
        **kept,
        "PYTHONPATH": str(link),
        "PYTHONUNBUFFERED": "1",
        "WORKSPACE_ROOT": str(folder / "workspace"),
        "WORKER_STATE_DIR": str(folder / "state"),
        "COMFY_HOME": str(folder / "no-comfy"),
        "COMFY_CACHE_ROOT": str(folder / "cache"),
        "YGGDRASILL_VERSIONS": str(folder / "versions"),
        "RUNPOD_AI_API_KEY": "planted-secret-of-runpod",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        **variables,
    }


def command(python: Path, *arguments: str) -> list[str]:
    """Return the command line of a serverless worker."""
    return [str(python), str(ROOT / "rp_handler.py"), "serverless", *arguments]


def run_jobs(python: Path, environment: Mapping[str, str], jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of jobs that one worker in a process of its own answers."""
    done = subprocess.run(
        [str(python), "-c", JOBS_PROGRAM], input=json.dumps(jobs), capture_output=True, text=True, env=dict(environment), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextlib.contextmanager
def started(arguments: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block runs; its output is in ``log``."""
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def waited(ready: Any, log: Path, seconds: float = 90.0) -> Any:
    """Return the first true result of ``ready()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := ready():
                return found
        time.sleep(0.05)
    raise TimeoutError(log.read_text(encoding="utf-8", errors="replace")[-4000:])


def post(url: str, body: Any, *, seconds: float = 60.0) -> Any:
    """POST JSON and return the JSON of the response."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.loads(answer.read())


def ok(url: str) -> bool:
    """Return whether a server answers at a URL, with any status."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    return True


class RunpodQueue(ThreadingHTTPServer):
    """RunPod's side of a worker: it hands out jobs, and receives results and progress."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", free_port()), _QueueHandler)
        self.jobs: list[dict[str, Any]] = []
        self.stops: list[str] = []
        self.taken: list[str] = []
        #: Final bodies and progress by job.
        self.results: dict[str, dict[str, Any]] = {}
        self.progress: dict[str, list[Any]] = {}
        self.changed = threading.Condition()

    def variables(self) -> dict[str, str]:
        """Return the environment of a worker of this queue."""
        base = f"http://127.0.0.1:{self.server_port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping",
            "RUNPOD_POD_ID": "pod-1",
            "RUNPOD_ENDPOINT_ID": "endpoint",
        }

    def add(self, job_id: str, given: Any) -> None:
        """Add a job."""
        with self.changed:
            self.jobs.append({"id": job_id, "input": given})
            self.changed.notify_all()

    def stop(self, job_id: str) -> None:
        """Ask the worker to stop a job."""
        with self.changed:
            self.stops.append(job_id)
            self.changed.notify_all()

    def wait(self, condition: Any, seconds: float = 60.0) -> None:
        """Wait until ``condition()`` is true."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), (self.taken, self.results, self.progress)


class _QueueHandler(BaseHTTPRequestHandler):
    server: RunpodQueue
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        queue, path = self.server, self.path
        with queue.changed:
            if path.startswith("/job-take"):
                queue.changed.wait_for(lambda: queue.jobs, 1.0)
                count = int(path.partition("batch_size=")[2].partition("&")[0] or 1)
                taken, queue.jobs = queue.jobs[:count], queue.jobs[count:]
                queue.taken += [job["id"] for job in taken]
                queue.changed.notify_all()
                self._answer((taken if "batch" in path else taken[0]) if taken else None)
            elif path.startswith("/job-stop"):
                queue.changed.wait_for(lambda: queue.stops, 1.0)
                stops, queue.stops = queue.stops, []
                self._answer({"jobsToStop": stops} if stops else None)
            else:
                self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        job_id = self.path.partition("?")[0].rpartition("/")[2]
        with self.server.changed:
            if body.get("status") == "IN_PROGRESS":
                self.server.progress.setdefault(job_id, []).append(body["output"])
            else:
                self.server.results[job_id] = body
            self.server.changed.notify_all()
        self._answer({})

    def _answer(self, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(204 if body is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def runpod_queue() -> Iterator[RunpodQueue]:
    """Run a queue while the block runs."""
    queue = RunpodQueue()
    thread = threading.Thread(target=queue.serve_forever, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.shutdown()
        queue.server_close()
