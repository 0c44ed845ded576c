"""Comfy API v2 for jobs, below ``/api/v2``, so that ``comfy-sdk`` works with several ComfyUIs of one's own.

A workflow in the API format runs on any ComfyUI of the gateway that has its node classes. What it saves becomes assets;
`yggdrasill.gateway.dialects.comfy_v2_assets` has their routes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from yggdrasill.errors import (
    AccessDenied,
    InvalidArgument,
    InvalidConfig,
    InvalidStructure,
    JobConflict,
    LimitExceeded,
    MissingInput,
    UnknownBlockType,
    UnknownJob,
    UnknownName,
)
from yggdrasill.gateway.asset_model import Asset
from yggdrasill.gateway.dialects.comfy_v2_shapes import (
    PREFIX,
    Refusal,
    describe_item,
    describe_job,
    describe_output,
    describe_progress,
    error_body,
    error_status_of,
    scrubbed,
    status_name,
)
from yggdrasill.gateway.files import asset_ids
from yggdrasill.gateway.http import Http, caller_of, json_response, principal_of
from yggdrasill.gateway.models import STATUS, Event, Job, check_name, new_job_id
from yggdrasill.gateway.service import Gateway, Options, only_of
from yggdrasill.protocol.states import FINAL, IN_QUEUE
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE
from yggdrasill.server_ext.bodies import read_json
from yggdrasill.server_ext.principals import DEPLOY, READ, RUN, Principal
from yggdrasill.server_ext.routes import number

__all__ = ["DIALECT", "ComfyDialect"]

DIALECT = "comfy_v2"
_MAX_BODY = 64 << 20
_KEYS = ("workflow", "extra_data", "metadata")
_CREDENTIAL = "api_key_comfy_org"
_LONGEST_CREDENTIAL, _LONGEST_KEY = 4096, 255
_MAX_LABELS, _LONGEST_LABEL, _LONGEST_VALUE = 16, 64, 512
_PAGE, _MAX_PAGE = 50, 100
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_PROGRESS_SECONDS, _POSITION_SECONDS = 0.25, 1.0
_MAX_PREVIEWS = 256


@dataclass(frozen=True)
class _Message:
    """A server-sent event without an id: this API has no resumption."""

    kind: str
    data: Mapping[str, Any]

    @property
    def message(self) -> bytes:
        """The event as a server-sent event."""
        return f"event: {self.kind}\ndata: {json.dumps(self.data, separators=(',', ':'))}\n\n".encode()


class ComfyDialect:
    """The routes of jobs for ``gateway``."""

    def __init__(self, gateway: Gateway, http: Http) -> None:
        self._gateway, self._http = gateway, http
        #: The last preview of each running job.
        self._previews: dict[str, _Message] = {}
        gateway.hub.on_live.append(self._keep_preview)
        gateway.hub.on_status.append(self._forget_preview)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes below ``/api/v2/jobs``."""
        for method, path, handler, role in (
            ("POST", "", self.submit, RUN),
            ("GET", "", self.jobs, READ),
            ("GET", "/{job_id}", self.job, READ),
            ("GET", "/{job_id}/workflow", self.workflow, READ),
            ("GET", "/{job_id}/events", self.events, READ),
            ("POST", "/{job_id}/cancel", self.cancel, RUN),
        ):
            guarded = self._http.guarded(handler, role, error_body=error_body, status_of=error_status_of)
            router.add_route(method, f"{PREFIX}/jobs{path}", guarded)

    # -- submissions --------------------------------------------------------------------------------------------

    async def submit(self, request: web.Request) -> web.Response:
        """POST /api/v2/jobs"""
        body, principal = _checked(await read_json(request, _MAX_BODY)), principal_of(request)
        if not principal.may(DEPLOY):
            raise AccessDenied(
                f"A workflow that is not deployed needs the role {DEPLOY!r}. Ask the owner of the gateway for a token with it.",
                reason="role", needed=DEPLOY,
            )  # fmt: skip
        workflow, labels, credential = body["workflow"], _labels(body.get("metadata")), _credential(body)
        key, files, job_id = _key(request), self._gateway.files, new_job_id()
        used = await self._assets(workflow, principal)
        extra: dict[str, Any] = {"metadata": labels} if labels else {}
        if credential is not None:
            extra["credentials_at"] = files.owner
            files.keep_credentials(job_id, {_CREDENTIAL: credential})
        options = Options(
            DIALECT, principal, ttl=self._gateway.limits.comfy_ttl, key=key, job_id=job_id, assets=tuple(asset.asset_id for asset in used), extra=extra
        )  # fmt: skip
        facts = {asset.asset_id: {"hash": asset.hash, "name": asset.name, "nbytes": asset.nbytes} for asset in used}
        created = False
        try:
            job, created = await self._submit(workflow, {"collect": True, "assets": facts}, options)
        finally:
            if not created:
                files.forget_credentials(job_id)
        return json_response(describe_job(job, [], caller_of(request).url, await self._position(job)), 201)

    async def _submit(self, workflow: Any, asked: dict[str, Any], options: Options) -> tuple[Job, bool]:
        try:
            job, created = await self._gateway.submit_prompt(workflow, asked, options)
        except JobConflict as error:
            raise _reused(str(error.details.get("job"))) from None
        except UnknownBlockType as error:
            missing = list(error.details.get("missing") or ())
            nodes = {
                node_id: [{"field": "class_type", "reason": "unknown_class", "message": f"No endpoint has {node['class_type']!r}."}]
                for node_id, node in workflow.items()
                if isinstance(node, Mapping) and node.get("class_type") in missing
            }
            raise Refusal(422, "invalid_workflow", error.message, node_errors=nodes, missing=missing) from None
        except (InvalidConfig, InvalidStructure, MissingInput, LimitExceeded) as error:
            raise Refusal(422, "invalid_workflow", error.message) from None
        except UnknownName as error:
            # no endpoint is a ComfyUI
            raise Refusal(422, "deployment_stopped", error.message) from None
        if not created:
            raise _reused(job.job_id)
        return job, created

    async def _assets(self, workflow: Mapping[str, Any], principal: Principal) -> list[Asset]:
        """Return the assets that a workflow refers to. Raise `Refusal` if one cannot be used."""
        try:
            return await self._gateway.files.assets.all_of(asset_ids(workflow), only_of(principal))
        except (InvalidArgument, UnknownName) as error:
            raise Refusal(422, "missing_asset", error.message) from None

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def _own(self, request: web.Request) -> Job:
        job = await self._gateway.job(request.match_info["job_id"], only_of(principal_of(request)))
        if job.dialect != DIALECT:
            raise UnknownJob(f"Unknown job {job.job_id!r}. It was not submitted by this API.", name=job.job_id)
        return job

    async def _position(self, job: Job) -> int | None:
        if job.status != IN_QUEUE:
            return None
        return await asyncio.wrap_future(self._gateway.store.ahead_of(job))

    async def _answer(self, request: web.Request, job: Job) -> web.Response:
        outputs = await self._gateway.files.assets.outputs(job)
        return json_response(describe_job(job, outputs, caller_of(request).url, await self._position(job)))

    async def job(self, request: web.Request) -> web.Response:
        """GET /api/v2/jobs/{job_id}"""
        return await self._answer(request, await self._own(request))

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /api/v2/jobs/{job_id}/cancel"""
        job = await self._own(request)
        return await self._answer(request, await self._gateway.cancel(job.job_id))

    async def workflow(self, request: web.Request) -> web.Response:
        """GET /api/v2/jobs/{job_id}/workflow"""
        job = await self._own(request)
        asked = await asyncio.wrap_future(self._gateway.store.request(job.job_id))
        return json_response({"workflow": asked.get("prompt") or {}, "format": "api"})

    async def jobs(self, request: web.Request) -> web.Response:
        """GET /api/v2/jobs"""
        query = request.query
        limit = int(number(query.get("limit"), "limit", _PAGE, least=1, most=_MAX_PAGE))
        before, last = _after(query["cursor"]) if query.get("cursor") else (None, None)
        wanted = _filters(query)
        # the text is found without regard to case, so each job is compared again
        containing = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in wanted.items()]
        found: list[Job] = []
        while len(found) <= limit:
            listed = self._gateway.store.newest(
                principal=only_of(principal_of(request)), dialect=DIALECT, before=before, last=last, containing=containing, limit=limit + 1
            )
            page = await asyncio.wrap_future(listed)
            found += [job for job in page if wanted.items() <= (job.extra.get("metadata") or {}).items()]
            if len(page) <= limit:
                break
            before, last = page[-1].created, page[-1].job_id
        body: dict[str, Any] = {"jobs": [describe_item(job) for job in found[:limit]]}
        if len(found) > limit:
            body["next_cursor"] = _cursor(found[limit - 1])
        return json_response(body)

    # -- events -------------------------------------------------------------------------------------------------

    def _keep_preview(self, event: Event) -> None:
        if event.kind == "comfy" and event.data.get("what") == "preview":
            self._previews.pop(event.job_id, None)
            self._previews[event.job_id] = _preview(event.data)
            if len(self._previews) > _MAX_PREVIEWS:
                del self._previews[next(iter(self._previews))]

    def _forget_preview(self, event: Event) -> None:
        if event.data.get("status") in (*FINAL, IN_QUEUE):
            self._previews.pop(event.job_id, None)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /api/v2/jobs/{job_id}/events"""
        job = await self._own(request)
        return await self._http.send_events(request, self._messages(job.job_id, caller_of(request).url))

    async def _messages(self, job_id: str, url: str) -> AsyncGenerator[_Message | None, None]:
        """Yield the present state of a job, and what happens until its end."""
        after = await asyncio.wrap_future(self._gateway.store.last_seq())
        job = await self._gateway.job(job_id)
        stream = _Stream(self._gateway, job, url)
        if not job.is_final:
            yield await stream.status()
        if job.progress is not None:
            yield _Message("progress", describe_progress(job.progress))
        if job_id in self._previews:
            yield self._previews[job_id]
        for message in await stream.outputs():
            yield message
        if job.is_final:
            yield await stream.status()
            return
        async with aclosing(self._gateway.hub.stream(after, job_id=job_id)) as events:
            async for event in events:
                if event is None:
                    yield await stream.moved()
                    continue
                for message in await stream.messages(event):
                    yield message


class _Stream:
    """The messages of one stream about a job."""

    def __init__(self, gateway: Gateway, job: Job, url: str) -> None:
        self._gateway, self._job, self._url = gateway, job, url
        self._sent: set[str] = set()
        self._position: int | None = None
        self._position_at = self._progress_at = -1e9

    async def status(self) -> _Message:
        """Return the state of the job, with its position in the queue."""
        data: dict[str, Any] = {"status": status_name(self._job.status, self._job.error)}
        if self._job.status == IN_QUEUE:
            self._position_at = time.monotonic()
            self._position = data["queue_position"] = await asyncio.wrap_future(self._gateway.store.ahead_of(self._job))
        return _Message("status", data)

    async def moved(self) -> _Message | None:
        """Return the state again if the position of a queued job has changed."""
        if self._job.status != IN_QUEUE or time.monotonic() - self._position_at < _POSITION_SECONDS:
            return None
        before = self._position
        message = await self.status()
        return message if self._position != before else None

    async def outputs(self) -> list[_Message]:
        """Return the outputs that were not sent."""
        found = [asset for asset in await self._gateway.files.assets.outputs(self._job) if asset.asset_id not in self._sent]
        self._sent.update(asset.asset_id for asset in found)
        return [_Message("output", describe_output(asset, self._url)) for asset in found]

    async def messages(self, event: Event) -> list[_Message]:
        """Return the messages for an event of the gateway."""
        if event.kind == STATUS:
            self._job = await self._gateway.job(self._job.job_id)
            if event.data["status"] in FINAL:
                return [*await self.outputs(), _Message("status", {"status": status_name(event.data["status"], event.data.get("error"))})]
            # a later state has an event of its own
            return [await self.status()] if self._job.status == event.data["status"] else []
        if event.kind == "progress" and time.monotonic() - self._progress_at >= _PROGRESS_SECONDS:
            self._progress_at = time.monotonic()
            return [_Message("progress", describe_progress(event.data))]
        if event.kind == "output":
            return await self.outputs()
        if event.kind == "log":
            return [
                _Message("log", {"level": str(event.data.get("level") or "info"), "message": scrubbed(str(event.data.get("text") or ""))})
            ]
        return [_preview(event.data)] if event.kind == "comfy" and event.data.get("what") == "preview" else []


def _preview(data: Mapping[str, Any]) -> _Message:
    media_type = f"image/{str(data.get('type') or 'jpeg').lower()}"
    return _Message("preview", {"node_id": str(data.get("node") or ""), "content_type": media_type, "data_base64": data.get("image") or ""})


# -- bodies and queries -----------------------------------------------------------------------------------------------


def _checked(body: Any) -> dict[str, Any]:
    """Return the body of a submission. Raise `Refusal` for unknown keys, and for what is not a workflow in the API format."""
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_request", "The body must be a JSON object with 'workflow'.")
    unknown = sorted(set(body) - set(_KEYS))
    if unknown:
        names = ", ".join(map(repr, unknown[:8]))
        raise Refusal(422, "invalid_request", f"Unknown keys {names}. Available: {', '.join(map(repr, _KEYS))}.")
    workflow = body.get("workflow")
    if not isinstance(workflow, dict):
        raise Refusal(422, "invalid_workflow", "'workflow' must be an object: a workflow in the API format.")
    if isinstance(workflow.get("nodes"), list) and "links" in workflow:
        raise Refusal(422, "workflow_format_ui", "The workflow is in the editor's format. Export it with 'Export (API)'.")
    return body


def _credential(body: Mapping[str, Any]) -> str | None:
    """Return the API key of partner nodes, or None. Raise `Refusal` for anything else in ``extra_data``."""
    extra = body.get("extra_data")
    if extra is None:
        return None
    value = extra.get(_CREDENTIAL) if isinstance(extra, dict) and set(extra) == {_CREDENTIAL} else None
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_CREDENTIAL:
        raise Refusal(422, "invalid_request", f"'extra_data' must be {{'{_CREDENTIAL}': KEY}}, or be left out.")
    nodes = body["workflow"].values()
    if any(isinstance(node, dict) and node.get("class_type") in (INPUT_NODE, OUTPUT_NODE) for node in nodes):
        raise Refusal(
            422, "invalid_workflow", "A workflow with Graph Input or Graph Output nodes takes no 'extra_data'. Remove these nodes."
        )
    return value


def _labels(given: Any) -> dict[str, str]:
    """Return the labels of a job. Raise `Refusal` unless they are at most 16 short texts by short names."""
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > _MAX_LABELS:
        count = f"{len(given)} pairs" if isinstance(given, dict) else type(given).__name__
        raise Refusal(422, "metadata_invalid", f"'metadata' must be an object of at most {_MAX_LABELS} pairs, got {count}.")
    for name, value in given.items():
        is_name = 0 < len(name) <= _LONGEST_LABEL and name.isprintable()
        if not is_name or not isinstance(value, str) or len(value) > _LONGEST_VALUE:
            raise Refusal(
                422, "metadata_invalid", f"The pair {name[:_LONGEST_LABEL]!r} of 'metadata' needs a name of 1 to {_LONGEST_LABEL} printable characters "
                f"and a text of at most {_LONGEST_VALUE} characters.",
            )  # fmt: skip
    return given


def _key(request: web.Request) -> str | None:
    """Return the idempotency key of a request as the store has it. It may be longer there, and other dialects have keys of their own."""
    given = request.headers.get("Idempotency-Key")
    if given is None:
        return None
    if not 0 < len(given) <= _LONGEST_KEY or not given.isprintable():
        raise Refusal(422, "invalid_request", f"The Idempotency-Key must have 1 to {_LONGEST_KEY} printable characters.")
    return f"{DIALECT}:{hashlib.blake2b(given.encode('utf-8', 'surrogateescape'), digest_size=20).hexdigest()}"


def _reused(job_id: str) -> Refusal:
    return Refusal(
        422, "idempotency_key_reuse", f"The Idempotency-Key was used for job {job_id}. Request this job, or use a new key.", job_id=job_id
    )


def _filters(query: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that listed jobs must have, from ``metadata[NAME]=VALUE``. Raise `Refusal` for an invalid filter."""
    found: dict[str, str] = {}
    for key in query:
        match = _FILTER.fullmatch(key)
        if match is not None:
            found[match[1]] = query[key]
        elif key.startswith("metadata"):
            raise Refusal(400, "invalid_metadata_filter", f"The filter {key[:80]!r} must be metadata[NAME]=VALUE.")
    try:
        return _labels(found)
    except Refusal as error:
        raise Refusal(400, "invalid_metadata_filter", error.message) from None


def _cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(json.dumps([job.created, job.job_id]).encode()).decode("ascii").rstrip("=")


def _after(cursor: str) -> tuple[float | None, str | None]:
    """Return the place in the list at which a page ended. Raise `Refusal` for a text that is not a cursor."""
    try:
        created, job_id = json.loads(base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(created, (int, float)) or isinstance(created, bool) or not isinstance(job_id, str):
            raise ValueError
        return float(created), check_name(job_id, "cursor")
    except (ValueError, TypeError, binascii.Error):
        raise Refusal(400, "invalid_cursor", "The cursor is not one of this gateway. Begin the list again without a cursor.") from None
