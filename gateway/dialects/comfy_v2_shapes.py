"""The JSON of Comfy API v2: jobs, outputs, assets, progress and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, StorageFailed, YggdrasillError
from yggdrasill.gateway.asset_model import Asset
from yggdrasill.gateway.http import error_status
from yggdrasill.gateway.models import Job
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, IN_PROGRESS, IN_QUEUE, TIMED_OUT
from yggdrasill.worker.failures import Scrubber

__all__ = [
    "PREFIX",
    "Refusal",
    "describe_asset",
    "describe_item",
    "describe_job",
    "describe_output",
    "describe_progress",
    "error_body",
    "error_status_of",
    "scrubbed",
    "status_name",
]

PREFIX = "/api/v2"
_STATUSES = {
    IN_QUEUE: "queued",
    IN_PROGRESS: "running",
    COMPLETED: "succeeded",
    FAILED: "failed",
    CANCELLED: "canceled",
    TIMED_OUT: "expired",
}
_CODES = {
    400: "invalid_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 409: "conflict", 413: "payload_too_large",
    416: "invalid_range", 422: "invalid_request", 429: "rate_limited", 507: "storage_full",
}  # fmt: skip
_CODES_OF_TYPES = {"QueueFull": "queue_full", "EndpointUnreachable": "deployment_not_ready"}
#: Codes of errors of jobs that have another name in this API.
_JOB_CODES = {"block_failed": "node_execution_error", "invalid_structure": "invalid_workflow"}
_KINDS = ("image", "video", "audio", "text")


class Refusal(InvalidArgument):
    """A refusal with its HTTP status, its code and facts for programs."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message, http_status=status, code=code, facts=details)


@lru_cache(maxsize=1)
def _scrubber() -> Scrubber:
    return Scrubber({})


def scrubbed(text: str) -> str:
    """Return a text without secrets and paths of servers."""
    return _scrubber().text(text)


def error_status_of(error: YggdrasillError) -> int:
    """Return the HTTP status of an error. What may succeed later is 429, because the clients of this API wait and try again."""
    if isinstance(error, Refusal):
        return int(error.details["http_status"])
    if isinstance(error, EndpointUnreachable):
        return 429
    if isinstance(error, StorageFailed) and error.details.get("reason") != "store":
        return 507
    return error_status(error)


def error_body(error: dict[str, Any], status: int) -> Any:
    """Return an error as this API does: ``{"error": {"code", "message", "details"}}``."""
    details = error.get("details") or {}
    if error["type"] == "Refusal":
        code, facts = str(details["code"]), details.get("facts") or {}
    else:
        code, facts = _CODES_OF_TYPES.get(error["type"]) or _CODES.get(status, "upstream_error"), {}
    found: dict[str, Any] = {"code": code, "message": scrubbed(str(error["message"]))}
    return {"error": {**found, "details": _scrubber().value(facts)} if facts else found}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def status_name(status: str, error: Mapping[str, Any] | None) -> str:
    """Return the name of a state. A job that ran for too long has failed; one whose lifetime is over has expired."""
    return "failed" if status == TIMED_OUT and (error or {}).get("code") != "ttl" else _STATUSES[status]


# -- assets -----------------------------------------------------------------------------------------------------------


def describe_asset(asset: Asset, url: str, created_new: bool | None = None) -> dict[str, Any]:
    """Return an asset. ``url`` is that of the gateway."""
    found: dict[str, Any] = {
        "id": asset.asset_id,
        "hash": f"blake3:{asset.hash}",
        "size_bytes": asset.nbytes,
        "content_type": asset.content_type,
        "file_path": asset.name,
        "created_at": _time(asset.created),
        "url": f"{url}{PREFIX}/assets/{asset.asset_id}/content",
        "url_expires_at": _time(asset.expires),
        "expires_at": _time(asset.expires),
    }
    found |= {} if created_new is None else {"created_new": created_new}
    return found if asset.job_id is None else {**found, "job_id": asset.job_id}


def describe_output(asset: Asset, url: str) -> dict[str, Any]:
    """Return an asset as an output of its job."""
    described = describe_asset(asset, url)
    shared = {name: described[name] for name in ("id", "hash", "size_bytes", "content_type", "url", "url_expires_at")}
    return {"node_id": asset.node or "", "name": asset.name, "type": _kind(asset), **shared, "job_id": asset.job_id}


def _kind(asset: Asset) -> str:
    kind = asset.content_type.partition("/")[0]
    if asset.name.lower().endswith(".latent"):
        return "latent"
    return "text" if asset.content_type == "application/json" else kind if kind in _KINDS else "file"


# -- jobs -------------------------------------------------------------------------------------------------------------


def describe_job(job: Job, outputs: Sequence[Asset], url: str, position: int | None) -> dict[str, Any]:
    """Return a job with its outputs. ``url`` is that of the gateway, ``position`` the number of jobs before it in the queue."""
    ends = job.expires if job.expires is not None else (job.created if job.ttl_at is None else job.ttl_at) + job.retention
    path = f"{PREFIX}/jobs/{job.job_id}"
    return {
        "id": job.job_id,
        "status": status_name(job.status, job.error),
        "created_at": _time(job.created),
        "started_at": _time(job.started),
        "completed_at": _time(job.finished),
        "expires_at": _time(ends),
        "queue_position": position,
        "progress": _progress_of(job),
        "outputs": [describe_output(asset, url) for asset in outputs],
        "error": _error_of(job),
        "metrics": {"queue_ms": _milliseconds(job.created, job.started), "execution_ms": _milliseconds(job.started, job.finished)},
        "metadata": job.extra.get("metadata") or {},
        "urls": {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"},
    }


def describe_item(job: Job) -> dict[str, Any]:
    """Return a job as an entry of a list."""
    latest = job.finished if job.finished is not None else job.started if job.started is not None else job.created
    return {
        "id": job.job_id,
        "status": status_name(job.status, job.error),
        "create_time": _time(job.created),
        "update_time": _time(latest),
        "metadata": job.extra.get("metadata") or {},
    }


def _milliseconds(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None else max(0, round(1000 * (end - start)))


def _progress_of(job: Job) -> dict[str, Any] | None:
    if job.progress is None:
        return None
    found = describe_progress(job.progress)
    if job.status != COMPLETED:
        return found
    return {"value": 1.0, "nodes_done": found["nodes_total"], "nodes_total": found["nodes_total"]}


def describe_progress(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete snapshot of progress, from the facts that `yggdrasill.gateway.execution` reports."""
    total, begun = int(facts.get("total") or 0), int(facts.get("done") or 0)
    node = str(facts.get("place") or "")
    step, steps = facts.get("step"), facts.get("steps")
    has_steps = isinstance(step, (int, float)) and isinstance(steps, (int, float)) and steps > 0
    done = max(0, begun - 1) if node else begun
    part = min(max(step / steps, 0.0), 1.0) if has_steps and step is not None and steps is not None else 0.0
    found: dict[str, Any] = {"value": min((done + part) / total, 1.0) if total > 0 else part, "nodes_done": done, "nodes_total": total}
    if node:
        found["current_node"] = node
    if facts.get("class"):
        found["current_node_class"] = str(facts["class"])
    if has_steps and step is not None and steps is not None:
        found |= {"step": int(step), "steps": int(steps), "message": f"{facts.get('class') or node} {int(step)}/{int(steps)}"}
    return found


def _error_of(job: Job) -> dict[str, Any] | None:
    if job.error is None or job.status not in FINAL:
        return None
    code = str(job.error.get("code") or "failed")
    node, kind = (job.error.get("node_id") or job.error.get("node")), job.error.get("node_type")
    return {
        "code": _JOB_CODES.get(code, code),
        "message": scrubbed(str(job.error.get("message") or "")),
        "node_id": None if node is None else str(node),
        "class_type": None if kind is None else str(kind),
        "traceback": None,
    }
