"""Gateways as processes that are started, killed and restarted, and clients of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import requests

from samples.endpoints import ServedProcess

__all__ = ["GATEWAY_TOKEN", "GatewayProcess", "write_endpoints"]

#: No secret: the gateways of the tests listen on this machine only and hold nothing.
GATEWAY_TOKEN = "token-of-the-gateway"
ENDPOINT_TOKEN = "YGGDRASILL_TEST_ENDPOINT_TOKEN"


class Named(Protocol):
    """What a gateway needs of an endpoint."""

    name: str
    url: str
    token: str


def write_endpoints(path: Path, endpoints: Iterable[Named], graphs: dict[str, Any] | None = None) -> Path:
    """Write an endpoints.yaml (JSON is YAML) with the token in the environment."""
    named = {endpoint.name: {"url": endpoint.url, "token_env": ENDPOINT_TOKEN} for endpoint in endpoints}
    path.write_text(json.dumps({"endpoints": named, "graphs": graphs or {}}), encoding="utf-8")
    return path


class GatewayProcess(ServedProcess):
    """A gateway with the settings of `yggdrasill.gateway.app.Settings`, and a session with its token."""

    package = "yggdrasill.gateway"

    def __init__(self, data_dir: Path, endpoints: Iterable[Named] = (), **settings: Any) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        known = list(endpoints)
        token = known[0].token if known else "no-endpoint-has-a-token"
        file = write_endpoints(data_dir / "endpoints.yaml", known, settings.pop("graphs", None))
        environment = {"YGGDRASILL_TOKEN": GATEWAY_TOKEN, ENDPOINT_TOKEN: token, **settings.pop("environment", {})}
        super().__init__("the gateway", data_dir, {"endpoints": str(file), "lease": 2.0, "grace": 0.3, **settings}, environment)
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {GATEWAY_TOKEN}"

    # -- requests ---------------------------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=60, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self.session.post(self.url + path, json=body, timeout=60, **options)

    def submit(self, graph: str, inputs: Any = None, **facts: Any) -> dict[str, Any]:
        """Submit a call of a graph that is accepted, and return the answer."""
        answer = self.post("/v1/workflows", {"graph": graph, "inputs": inputs or {}, **facts})
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    def run(self, graph: str, inputs: Any = None, **facts: Any) -> dict[str, Any]:
        """Submit a call of a graph, and return its answer after its end."""
        return self.result(self.submit(graph, inputs, **facts)["job_id"])

    def result(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of a job, and return it with its output."""
        answer = self.get(f"/v1/jobs/{job_id}/output?wait=30")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def status(self, job_id: str) -> str:
        return str(self.get(f"/v1/jobs/{job_id}").json()["status"])
