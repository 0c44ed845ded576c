"""A client of Comfy API v2 of a gateway, so that tests cover the protocol and not the SDK."""

from __future__ import annotations

from typing import Any

import requests
from blake3 import blake3

from samples.gateways import GatewayProcess
from samples.http_client import until

__all__ = ["FAR", "V2", "error_of", "hash_of", "node", "reference"]

Prompt = dict[str, Any]
FINAL = {"succeeded", "failed", "canceled", "expired"}
FAR = 90.0


def node(kind: str, **inputs: Any) -> Prompt:
    return {"9": {"class_type": kind, "inputs": inputs}}


class V2:
    """The routes of Comfy API v2 of one gateway, for its owner or for the caller with ``token``."""

    def __init__(self, gateway: GatewayProcess, token: str | None = None) -> None:
        self.gateway = gateway
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.gateway.get(f"/api/v2{path}", headers={**self._headers, **headers})

    def submit(self, workflow: Prompt, key: str | None = None, **more: Any) -> dict[str, Any]:
        answer = self.post(workflow, key, **more)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def start(self, workflow: Prompt, **more: Any) -> str:
        return str(self.submit(workflow, **more)["id"])

    def post(self, workflow: Any, key: str | None = None, **more: Any) -> requests.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.gateway.post("/api/v2/jobs", {"workflow": workflow, **more}, headers={**self._headers, **headers})

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, job_id: str) -> dict[str, Any]:
        until(lambda: self.job(job_id)["status"] in FINAL, FAR)
        return self.job(job_id)

    def run(self, workflow: Prompt, **more: Any) -> dict[str, Any]:
        return self.ended(self.start(workflow, **more))

    def upload(self, data: bytes, name: str = "photo.png", **fields: str) -> requests.Response:
        fields = {"content_type": "image/png", "file_path": name, **fields}
        url, files = f"{self.gateway.url}/api/v2/assets", {"file": (name, data)}
        return self.gateway.session.post(url, data=fields, files=files, headers=self._headers, timeout=60)

    def content(self, asset_id: str, **headers: str) -> requests.Response:
        return self.get(f"/assets/{asset_id}/content", **headers)


def hash_of(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


def error_of(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def reference(asset_id: str) -> Prompt:
    return {"__type": "core/ASSET", "info": {"id": asset_id}}
