"""The queue channel: a serverless endpoint as the channel of an ordinary endpoint.

It answers the routes of the endpoint protocol in this process. A call becomes one job of the endpoint's queue, together with what it needs: the
deployment and the artifacts. So every client of endpoints, with its retries, uploads, events and cancellation, works with serverless workers too.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from yggdrasill.errors import (
    AccessDenied,
    CorruptData,
    InvalidArgument,
    InvalidConfig,
    JobConflict,
    UnknownArtifact,
    UnknownGraph,
    UnknownJob,
    UnknownName,
    UploadConflict,
    unknown_name,
)
from yggdrasill.protocol.states import IN_QUEUE, WAITING_INPUTS
from yggdrasill.protocol.version import BASE_PATH, PROTOCOL
from yggdrasill.remote.channel import Body, Channel, Response
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.serverless.local_response import LocalResponse
from yggdrasill.remote.serverless.messages import is_readable, without_places
from yggdrasill.remote.serverless.options import ServerlessOptions
from yggdrasill.remote.serverless.queue_job import QueueJob
from yggdrasill.remote.serverless.queue_jobs import QueueJobs
from yggdrasill.remote.serverless.runpod_api import missing_key
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.wire import references

__all__ = ["QueueChannel", "queue_channel_of"]

_FACTS_SECONDS, _LEAST_FACTS_SECONDS = 3600.0, 60.0
"""How long an answer of a worker about itself is used: a request wakes a worker, which costs money. Callers may request newer ones."""
_MAX_DEPLOYMENTS = 512
_MAX_JOBS, _WHOLE_JOBS = 2000, 32
"""Jobs that are known, and of those that have ended, whose events are."""
_MAX_UPLOADS = 64
_MAX_ANSWERS = 256
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Handler = Callable[..., Awaitable[LocalResponse]]


class QueueChannel(Channel):
    """The endpoint ``runpod://ID``. Like every channel it belongs to the loop thread's loop."""

    def __init__(self, url: str, ca: str | None, options: ServerlessOptions) -> None:
        super().__init__(url, ca)
        self.queue = QueueJobs(url, ca, options)
        self._deployments: OrderedDict[str, tuple[dict[str, Any], dict[str, Any]]] = OrderedDict()
        self._jobs: OrderedDict[str, QueueJob] = OrderedDict()
        self._keys: dict[str, str] = {}
        self._cancelled_keys: OrderedDict[str, None] = OrderedDict()
        self._uploads: OrderedDict[str, bytearray] = OrderedDict()
        #: Answers of workers to requests that only read, by path, with their times.
        self._answers: OrderedDict[str, tuple[float, asyncio.Task[dict[str, Any]]]] = OrderedDict()
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = [
            (method, re.compile(path), handler)
            for method, path, handler in (
                ("GET", r"/health", self._health),
                ("PUT", r"/graphs/(?P<graph_id>[^/]+)", self._deploy),
                ("DELETE", r"/graphs/(?P<graph_id>[^/]+)", self._remove),
                ("GET", r"/graphs/(?P<graph_id>[^/]+)/contract", self._contract),
                ("POST", r"/graphs/(?P<graph_id>[^/]+)/jobs", self._call),
                ("POST", r"/workflows", self._call_workflow),
                ("GET", r"/jobs/(?P<job_id>[^/]+)", self._job),
                ("GET", r"/jobs/(?P<job_id>[^/]+)/output\?wait=(?P<wait>[0-9.e+-]+)", self._output),
                ("GET", r"/jobs/(?P<job_id>[^/]+)/events", self._events),
                ("POST", r"/jobs/(?P<job_id>[^/]+)/inputs", self._inputs),
                ("POST", r"/jobs/(?P<job_id>[^/]+)/cancel", self._cancel),
                ("POST", r"/jobs/keys/(?P<key>[^/]+)/cancel", self._cancel_key),
                ("POST", r"/artifacts/missing", self._missing),
                ("POST", r"/artifacts/batch", self._batch),
                ("GET", r"/artifacts/folder", self._folder),
                ("PUT", r"/artifacts/(?P<name>[0-9a-f]{64})", self._put),
                ("GET", r"/artifacts/(?P<name>[0-9a-f]{64})", self._get),
                ("PUT", r"/artifacts/(?P<name>[0-9a-f]{64})/uploads/(?P<upload>[0-9a-f]{32})", self._put_piece),
                ("GET", r"/artifacts/(?P<name>[0-9a-f]{64})/uploads/(?P<upload>[0-9a-f]{32})", self._offset),
                ("DELETE", r"/artifacts/(?P<name>[0-9a-f]{64})/uploads/(?P<upload>[0-9a-f]{32})", self._drop_upload),
            )
        ]

    # -- the channel --------------------------------------------------------------------------------------------

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body = None, timeout: float | None = 30.0, *, probe: bool = False
    ) -> Response:
        """Answer a request. ``timeout`` does not apply: a request may wait for the start of a worker.

        Raises:
            YggdrasillError: the request is refused. A refused API key is a response with status 401, so that the client reads the key again.
        """
        key = headers.get("Authorization", "").removeprefix("Bearer ")
        if not key:
            raise missing_key(self.url)
        self.queue.key = key
        path = url.removeprefix(self.url).removeprefix(BASE_PATH)
        data = await _read(body)
        try:
            return await self._answer(method, path, headers, data)
        except AccessDenied as error:
            return LocalResponse(401, {"error": error.to_dict()})

    async def aclose(self) -> None:
        """Cancel unfinished jobs, which cost money, and close the connections."""
        await self.queue.abandon([job for job in self._jobs.values() if not job.is_final])
        await self.queue.api.aclose()
        await super().aclose()

    async def _answer(self, method: str, path: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        for allowed, pattern, handler in self._routes:
            found = pattern.fullmatch(path) if method == allowed else None
            if found is not None:
                named = {name: unquote(value) for name, value in found.groupdict().items()}
                return await handler(**named, headers=headers, data=data)
        if is_readable(method, path):
            is_fresh = headers.get("Cache-Control") == "no-cache"
            answer = await (self._known(path, is_fresh=is_fresh) if method == "GET" else self._ask(method, path, _json(data)))
            return LocalResponse(200, answer)
        raise UnknownName(
            f"A serverless endpoint has no route {method} {path.partition('?')[0]!r}: its workers have no lasting state. Use an endpoint that runs all the time."
        )

    # -- about the endpoint -------------------------------------------------------------------------------------

    async def _health(self, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        found = await self.queue.health()
        jobs, workers = found["jobs"], found["workers"]
        ready = workers["idle"] + workers["running"]
        queue = {"queued": jobs["inQueue"], "running": jobs["inProgress"], "slots": max(ready, 1)}
        return LocalResponse(
            200,
            {
                "status": "ok",
                "protocol": PROTOCOL,
                "serverless": True,
                "queue": queue,
                "workers": workers,
                "memory": [],
                "version": self._version(),
            },
        )

    def _version(self) -> Any:
        known = self._answers.get("/capabilities")
        return known[1].result().get("version") if known is not None and _has_result(known[1]) else None

    async def _known(self, path: str, *, is_fresh: bool = False) -> dict[str, Any]:
        """Return a worker's answer to a GET request, of the last hour, or with ``is_fresh`` of the last minute. Concurrent callers share one."""
        now = asyncio.get_running_loop().time()
        asked, task = self._answers.get(path, (float("-inf"), None))
        is_old = now - asked > (_LEAST_FACTS_SECONDS if is_fresh else _FACTS_SECONDS)
        if task is None or (task.done() and (is_old or not _has_result(task))):
            task = asyncio.ensure_future(self._ask("GET", path))
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            self._answers[path] = now, task
            while len(self._answers) > _MAX_ANSWERS:
                self._answers.popitem(last=False)
        # a worker that starts takes longer than some callers wait
        return await asyncio.shield(task)

    async def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return a worker's answer to a request that only reads."""
        request = {"method": method, "path": path, **({} if body is None else {"body": body})}
        job = QueueJob("", "request", path.partition("?")[0], {"request": request}, {})
        envelope = await self.queue.finish(job)
        answer = envelope.get("answer")
        if isinstance(answer, str):
            answer = json.loads(bytes(await self.queue.artifacts.read(answer)))
        return dict(answer) if isinstance(answer, Mapping) else {}

    # -- graphs -------------------------------------------------------------------------------------------------

    async def _deploy(self, graph_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        """Have a worker build the part and return its contract. The config then accompanies each call, because any worker may take it."""
        body = _json(data)
        state = without_places(body.get("state"))
        deploy = {"graph_id": graph_id, **{name: body.get(name) for name in ("kind", "config", "idle_after")}, "state": state}
        known = self._deployments.get(graph_id)
        if known is not None and {**known[0], "idle_after": None} == {**deploy, "idle_after": None}:
            return LocalResponse(200, {**_summary(known[1]), "created": False})
        sizes = _sizes(state)
        missing = await self.queue.artifacts.missing(sizes)
        if missing:
            raise UnknownArtifact(f"{len(missing)} artifacts of the state are missing.", missing=missing)
        envelope = await self.queue.finish(QueueJob("", "deploy", graph_id, {"deploy": deploy}, sizes))
        contract = envelope.get("contract")
        if not isinstance(contract, Mapping):
            raise CorruptData(f"A worker of {self.url!r} returned no contract of {graph_id!r}. Install the same version on both sides.")
        if contract.get("stateful") is True:
            raise InvalidConfig(
                f"{body.get('kind')} {graph_id!r} keeps state between calls, and endpoint {self.url!r} is serverless: another worker may take the next call. "
                "Place it on an endpoint that runs all the time, or place the parts inside it that keep no state.",
                reason="stateful",
            )
        self._deployments[graph_id] = deploy, dict(contract)
        self.queue.artifacts.keep(f"graph {graph_id}", sizes)
        while len(self._deployments) > _MAX_DEPLOYMENTS:
            self.queue.artifacts.release(f"graph {self._deployments.popitem(last=False)[0]}")
        return LocalResponse(201, {**_summary(contract), "created": True})

    async def _remove(self, graph_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        if self._deployments.pop(graph_id, None) is None:
            raise unknown_name("graph", graph_id, self._deployments, kind=UnknownGraph)
        self.queue.artifacts.release(f"graph {graph_id}")
        return LocalResponse(200, {})

    async def _contract(self, graph_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        known = self._deployments.get(graph_id)
        contract = known[1] if known is not None else await self._known(_contract_path(graph_id))
        # a graph of the workers is the same for all callers, who then decide about its state
        return LocalResponse(200, {**contract, "conditional": False})

    # -- calls --------------------------------------------------------------------------------------------------

    async def _call(self, graph_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        body = _json(data)
        message: dict[str, Any] = {"graph_id": graph_id}
        sizes: dict[str, int] = {}
        known = self._deployments.get(graph_id)
        if known is not None:
            self._deployments.move_to_end(graph_id)
            message["deploy"] = known[0]
            sizes = _sizes(known[0]["state"])
        contract = known[1] if known is not None else await self._known(_contract_path(graph_id))
        if contract.get("stateful") is True:
            raise InvalidConfig(
                f"Graph {graph_id!r} keeps state between calls, and endpoint {self.url!r} is serverless. Serve it at an endpoint that runs all the time.",
                reason="stateful",
            )
        return await self._begin("call", graph_id, body, message, sizes)

    async def _call_workflow(self, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        body = _json(data)
        return await self._begin("workflow", str(body.get("graph_id") or "workflow"), body, {}, {})

    async def _begin(self, kind: str, graph_id: str, body: dict[str, Any], message: dict[str, Any], sizes: dict[str, int]) -> LocalResponse:
        key = str(body.get("key") or "")
        if not key:
            raise InvalidArgument("A call needs a key.")
        job = self._jobs.get(self._keys.get(key, ""))
        if job is not None and (job.graph_id, job.kind) != (graph_id, kind):
            raise JobConflict(f"The key {key!r} was used for another call.")
        if job is None:
            call = {**body, "inputs": without_places(body.get("inputs")), "wait": 0.0}
            sizes = {**sizes, **_sizes(call["inputs"])}
            job = QueueJob(key, kind, graph_id, {**message, "call": call}, sizes, body.get("timeout") or body.get("deadline"))
            self._keep(job)
            if key in self._cancelled_keys:
                self.queue.cancelled(job)
        if not job.is_final and job.run_id is None:
            await self._start(job)
        await job.ended(float(body.get("wait") or 0.0))
        return LocalResponse(200 if job.is_final else 202, job.row())

    async def _start(self, job: QueueJob) -> None:
        """Queue the job, unless artifacts of it are missing."""
        missing = await self.queue.artifacts.missing(job.sizes)
        if missing:
            job.wait_for(missing, WAITING_INPUTS)
            return
        job.missing = []
        job.set_status(IN_QUEUE)
        await self.queue.begin(job)

    def _keep(self, job: QueueJob) -> None:
        self._jobs[job.job_id], self._keys[job.key] = job, job.job_id
        for old in list(self._jobs.values())[-2 * _WHOLE_JOBS : -_WHOLE_JOBS]:
            if old.is_final:
                old.forget()
        if len(self._jobs) > _MAX_JOBS:
            for old in [each for each in self._jobs.values() if each.is_final][: _MAX_JOBS // 2]:
                del self._jobs[old.job_id]
                self._keys.pop(old.key, None)

    def _find(self, job_id: str) -> QueueJob:
        job = self._jobs.get(job_id)
        if job is None:
            raise UnknownJob(f"Unknown job {job_id!r}.", name=job_id)
        return job

    async def _job(self, job_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        row = self._find(job_id).row()
        return LocalResponse(200, {name: value for name, value in row.items() if name != "output"})

    async def _output(self, job_id: str, wait: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        job = self._find(job_id)
        await job.ended(float(wait))
        return LocalResponse(200 if job.is_final else 202, job.row())

    async def _events(self, job_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        after = headers.get("Last-Event-ID", "0")
        return LocalResponse(200, self._find(job_id).stream(int(after) if after.isdigit() else 0))

    async def _inputs(self, job_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        job = self._find(job_id)
        if job.missing and not job.is_final:
            await self._start(job)
        elif not job.is_final and job.run_id is None:
            await self.queue.begin(job)
        return LocalResponse(200, job.row())

    async def _cancel(self, job_id: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        job = self._find(job_id)
        await self.queue.cancel(job)
        return LocalResponse(200, job.row())

    async def _cancel_key(self, key: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        job = self._jobs.get(self._keys.get(key, ""))
        if job is not None:
            await self.queue.cancel(job)
            return LocalResponse(200, job.row())
        self._cancelled_keys[key] = None
        while len(self._cancelled_keys) > _MAX_JOBS:
            self._cancelled_keys.popitem(last=False)
        return LocalResponse(200, {"key": key, "status": "CANCELLED"})

    # -- artifacts ----------------------------------------------------------------------------------------------

    async def _folder(self, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        return LocalResponse(200, {"folder": None, "store_id": "", "quota_bytes": None})

    async def _missing(self, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        hashes = _json(data).get("hashes")
        return LocalResponse(
            200, {"missing": await self.queue.artifacts.missing(dict.fromkeys(hashes if isinstance(hashes, list) else (), 0))}
        )

    async def _put(self, name: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        await self._store(name, data)
        return LocalResponse(201, {})

    async def _batch(self, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        place = 0
        while place < len(data):
            name, length = data[place : place + 32].hex(), int.from_bytes(data[place + 32 : place + 40], "little")
            place += 40 + length
            await self._store(name, data[place - length : place])
        return LocalResponse(200, {})

    async def _put_piece(self, name: str, upload: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        first, last, total = map(int, found.groups()) if found is not None else (0, len(data) - 1, len(data))
        received = self._uploads.setdefault(upload, bytearray())
        if first != len(received) or last - first + 1 != len(data):
            raise UploadConflict("The piece does not begin where the upload ends.", offset=len(received))
        received += data
        if len(received) < total:
            while len(self._uploads) > _MAX_UPLOADS:
                self._uploads.popitem(last=False)
            return LocalResponse(200, {"offset": len(received), "stored": False})
        del self._uploads[upload]
        await self._store(name, received)
        return LocalResponse(201, {"offset": total, "stored": True})

    async def _offset(self, name: str, upload: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        stored = not await self.queue.artifacts.missing({name: 0})
        return LocalResponse(200, {"offset": len(self._uploads.get(upload, b"")), "stored": stored})

    async def _drop_upload(self, name: str, upload: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        self._uploads.pop(upload, None)
        return LocalResponse(200, {})

    async def _store(self, name: str, data: bytes | bytearray) -> None:
        view = memoryview(data)
        if await asyncio.to_thread(blake3_hex, view) != name:
            raise CorruptData(f"The bytes of artifact {name} do not match its hash. Send them again.", hash=name)
        await self.queue.artifacts.put(name, view)

    async def _get(self, name: str, headers: Mapping[str, str], data: bytes) -> LocalResponse:
        view = await self.queue.artifacts.read(name)
        found = _RANGE.fullmatch(headers.get("Range", ""))
        if found is None:
            return LocalResponse(200, view)
        first, last = int(found[1]), int(found[2]) if found[2] else view.nbytes - 1
        return LocalResponse(206, view[first : last + 1])


def queue_channel_of(url: str, ca: str | None, options: ServerlessOptions) -> QueueChannel:
    """Return the queue channel of a serverless endpoint, shared in this process until its loop thread is closed."""
    return loop_thread().shared(f"queue {ca} {url} {options}", lambda: QueueChannel(url, ca, options))


def _contract_path(graph_id: str) -> str:
    return f"/graphs/{quote(graph_id, safe='')}/contract"


def _has_result(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _summary(contract: Mapping[str, Any]) -> dict[str, Any]:
    return {name: contract.get(name) for name in ("graph_id", "kind", "hash")}


def _sizes(wire: Any) -> dict[str, int]:
    """Return the lengths of the artifacts of a value in wire form, by hash. Raise `CorruptData` for another form."""
    return {} if wire is None else {ref.hash: ref.nbytes for ref in references(wire)}


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidArgument("The body of a request must be a JSON object.")
    return found


async def _read(body: Body) -> bytes:
    if body is None or isinstance(body, bytes):
        return body or b""
    chunks: Sequence[Any] = [bytes(chunk) async for chunk in body()]
    return b"".join(chunks)
