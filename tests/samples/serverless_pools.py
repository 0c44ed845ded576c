"""Workers of this package under the real RunPod SDK, fed by a gateway, and callers of them by ``runpod://``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.serverless import ROOT, command, environment_of, serverless_python
from yggdrasill.gateway.dialects.runpod_worker import environment_of_worker
from yggdrasill.remote import EndpointRegistry

__all__ = ["FOREIGN", "Pool", "calling"]

TESTS = ROOT / "tests"
FOREIGN = """
import json, sys
import runpod

answer = sys.argv[1]

async def handler(job):
    if answer:
        return json.loads(answer)
    raise ValueError("Missing 'workflow' parameter, see /srv/secret/handler.py")

sys.argv = sys.argv[:1]
runpod.serverless.start({"handler": handler})
"""
"""A worker that is not of this package: it returns its argument, or fails without one."""


class Pool:
    """The pool ``name`` of a gateway with workers, which are processes. ``variables`` are their environment."""

    def __init__(self, gateway: GatewayProcess, name: str, folder: Path, **variables: str) -> None:
        self.gateway, self.name, self.folder = gateway, name, folder
        self.variables = {"HOST_PYTHON": sys.executable, "HOST_PLUGINS": "samples.plugin,samples.served_blocks", **variables}
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Return the URL of the endpoint in an endpoints.yaml."""
        return f"runpod://{self.name}"

    def work(self, worker: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        folder = self.folder / worker
        folder.mkdir(parents=True, exist_ok=True)
        facts = environment_of_worker(self.gateway.url, self.name, f"{self.name}-{worker}", GATEWAY_TOKEN)
        environment = environment_of(folder, **{**facts, "RUNPOD_PING_INTERVAL": "1000", **self.variables, **variables})
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(TESTS)])
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command(serverless_python()), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def foreign(self, worker: str, script: str, *arguments: str) -> None:
        """Start a worker that runs a script."""
        folder = self.folder / worker
        folder.mkdir(parents=True, exist_ok=True)
        environment = environment_of(folder, **environment_of_worker(self.gateway.url, self.name, f"{self.name}-{worker}", GATEWAY_TOKEN))
        with (folder / "log").open("ab") as log:
            started = [str(serverless_python()), "-c", script, *arguments]
            self.processes.append(
                subprocess.Popen(started, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            )

    def registry(self, placements: dict[str, Any] | None = None, *, default: str = "cloud", **facts: Any) -> EndpointRegistry:
        """Return a registry with this pool as the endpoint ``cloud``."""
        return EndpointRegistry({"cloud": {"url": self.url, **facts}}, placements, default)

    def jobs(self) -> dict[str, int]:
        """Return how many jobs there are by state."""
        found: dict[str, int] = self.gateway.get(f"/v2/{self.name}/health").json()["jobs"]
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the jobs of the pool, newest first."""
        rows: list[dict[str, Any]] = self.gateway.get(f"/v1/jobs?target={self.name}&limit=100").json()["jobs"]
        return rows

    def logs(self) -> str:
        """Return what the workers have written."""
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(self.folder.glob("*/log")))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker with the process that sends its pings, as the end of its machine does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Stop all workers."""
        for process in self.processes:
            self.kill(process)


@contextlib.contextmanager
def calling(gateway: GatewayProcess, key: str | None = GATEWAY_TOKEN) -> Iterator[None]:
    """Have this process call the gateway in the place of RunPod while the block runs."""
    before = {name: os.environ.get(name) for name in ("RUNPOD_ENDPOINT_BASE_URL", "RUNPOD_API_KEY")}
    os.environ["RUNPOD_ENDPOINT_BASE_URL"] = f"{gateway.url}/v2"
    os.environ.pop("RUNPOD_API_KEY", None)
    if key is not None:
        os.environ["RUNPOD_API_KEY"] = key
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
