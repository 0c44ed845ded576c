"""The request ``endpoint``: a request, a deployment or a call of the endpoint protocol, run by the service of the worker's host.

See `yggdrasill.remote.serverless.messages` for its form. Failures of the call are a part of the result, as at any endpoint.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from yggdrasill import __version__
from yggdrasill.errors import InvalidArgument, InvalidConfig, PayloadTooLarge, YggdrasillError
from yggdrasill.protocol.version import PROTOCOL
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import Call, finish_call
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.deployment import deploy_wire
from yggdrasill.remote.downloads import Downloads
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.observers import TransferMeter
from yggdrasill.remote.retry import Retry, RetryPolicy
from yggdrasill.remote.serverless.common_stores import CommonStore, open_store, require_common_store
from yggdrasill.remote.serverless.messages import (
    ENVELOPE,
    check_protocol,
    encoded_bytes,
    is_readable,
    read_inline,
    smallest_first,
    without_places,
)
from yggdrasill.remote.uploads import Supply
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import references
from yggdrasill.worker.event_window import EventWindow
from yggdrasill.worker.failures import Scrubber, code_of
from yggdrasill.worker.generate import JobContext
from yggdrasill.worker.outputs import json_bytes
from yggdrasill.worker.requests import EndpointRequest
from yggdrasill.worker.service_host import Hosts, graph_config, graph_files
from yggdrasill.worker.settings import Settings

__all__ = ["EndpointCalls"]

_GRAPH = re.compile(r"/graphs/([^/?]+)(/contract)?")
_LARGE = 128 << 10
"""Answers and events above this size are sent as artifacts."""
_MARGIN = 2000
_HOST_FACTS = ("peer_url", "store_id", "platform")


class EndpointCalls:
    """Runs requests of the endpoint protocol at the host of the worker."""

    def __init__(self, settings: Settings, hosts: Hosts, scrubber: Scrubber) -> None:
        self._settings, self._hosts, self._scrubber = settings, hosts, scrubber

    async def run(self, request: EndpointRequest, job: JobContext) -> dict[str, Any]:
        """Run a request and return its result; cancelling the coroutine cancels the call at the host."""
        found: dict[str, Any] = {"protocol": PROTOCOL, "version": __version__}
        window = EventWindow(job.report)
        try:
            check_protocol(request.protocol, "caller")
            artifacts = ArtifactClient(MemoryStore())
            store = await self._store(request)
            await self._receive(request, artifacts, store)
            async with self._hosts.use() as host:
                work = _Work(self._settings, host.client, request, artifacts, window)
                facts, data = await host.guard(loop_thread().run_async(work.run()))
            found |= facts
            return {ENVELOPE: await self._packed(found, data, window, job, request, store)}
        except YggdrasillError as error:
            return {ENVELOPE: {**found, "error": self._error(error)}}
        finally:
            window.kept()

    def _error(self, error: YggdrasillError) -> dict[str, Any]:
        document = error.to_dict()
        details = {**error.details, "code": code_of(error)}
        return {"type": document["type"], "message": self._scrubber.text(error.message), "details": self._scrubber.value(details)}

    async def _store(self, request: EndpointRequest) -> CommonStore | None:
        """Return the artifact store of both sides, or None. Raise `InvalidConfig` if the caller needs another one."""
        setting = self._settings.artifact_store
        store = None if setting is None else await asyncio.to_thread(open_store, setting)
        if request.stored:
            return require_common_store(store, request.store)
        return store if store is not None and store.mark == request.store else None

    async def _receive(self, request: EndpointRequest, artifacts: ArtifactClient, store: CommonStore | None) -> None:
        """Take the artifacts of the request into memory. Raise `CorruptData`, `UnknownArtifact` or `StorageFailed`."""
        for name, data in (await asyncio.to_thread(read_inline, request.artifacts)).items():
            artifacts.store.put(data, hash=name, verify=False)
        for name in request.stored or ():
            if store is not None:
                await asyncio.to_thread(artifacts.store.put, await store.read(name), hash=name, verify=False)

    # -- results ------------------------------------------------------------------------------------------------

    async def _packed(
        self,
        found: dict[str, Any],
        data: dict[str, memoryview],
        window: EventWindow,
        job: JobContext,
        request: EndpointRequest,
        store: CommonStore | None,
    ) -> dict[str, Any]:
        """Return the result with its artifacts: the smallest ones in it, the others in the artifact store.

        Raises:
            PayloadTooLarge: it is too large, and the two sides have no common store.
        """
        row = found.get("row")
        if isinstance(row, Mapping) and isinstance(row.get("error"), Mapping):
            found["row"] = {**row, "error": self._scrubber.value(row["error"])}
        for name, value in (("answer", found.get("answer")), ("events", window.kept())):
            if value is not None and json_bytes(value) > _LARGE:
                text = memoryview(json.dumps(value).encode("utf-8"))
                found[name] = blake3_hex(text)
                data[found[name]] = text
            elif value is not None:
                found[name] = value
        room = job.limit - json_bytes(found) - _MARGIN - 100 * len(data)
        inline = smallest_first({name: view.nbytes for name, view in data.items()}, room)
        rest = [name for name in data if name not in set(inline)]
        if room < 0 or (rest and store is None):
            size = job.limit - room + sum(encoded_bytes(view.nbytes) for view in data.values())
            why = (
                "the artifact store of the worker is not the caller's"
                if self._settings.artifact_store
                else "the worker has no artifact store"
            )
            raise PayloadTooLarge(
                f"The result has {size} bytes, a response may have {job.limit}, and {why}. Set YGGDRASILL_ARTIFACT_STORE at the workers, and 'store' of the "
                "endpoint in the caller's endpoints.yaml, to a store that both reach.",
                code="result_too_large",
                limit=job.limit,
            )
        found["artifacts"] = {name: await asyncio.to_thread(_base64, data[name]) for name in inline}
        if rest and store is not None:
            lacking = await store.missing(rest)
            for name in lacking:
                await store.put(name, data[name])
            found |= {"stored": {name: data[name].nbytes for name in rest}, "store": store.mark}
        return found


class _Work:
    """One request at the host's client. Its coroutine runs on the loop thread's loop."""

    def __init__(
        self, settings: Settings, client: EndpointClient, request: EndpointRequest, artifacts: ArtifactClient, window: EventWindow
    ) -> None:
        self._settings, self._client, self._request, self._artifacts, self._window = settings, client, request, artifacts, window

    async def run(self) -> tuple[dict[str, Any], dict[str, memoryview]]:
        """Return the facts of the result, and its artifacts by hash."""
        request = self._request
        if request.request is not None:
            return {"answer": await self._read(request.request)}, {}
        if request.deploy is not None:
            graph_id = str(request.deploy.get("graph_id"))
            await self._deploy(graph_id, {name: value for name, value in request.deploy.items() if name != "graph_id"})
            if request.call is None:
                return {"contract": await self._client.contract(graph_id)}, {}
        if request.call is None:
            raise InvalidArgument("The input has none of 'request', 'deploy' and 'call'.")
        if request.deploy is None and request.graph_id is not None:
            await self._deploy_file(request.graph_id)
        return await self._call(request.call)

    async def _read(self, request: Mapping[str, Any]) -> dict[str, Any]:
        method, path = str(request.get("method")), str(request.get("path"))
        if not is_readable(method, path):
            raise InvalidArgument(f"A worker does not answer {method[:10]} {path[:100]!r}.")
        named = _GRAPH.fullmatch(path)
        if named is not None:
            await self._deploy_file(unquote(named[1]))
        answer = (await self._client.call(method, path, request.get("body"), timeout=None))[1]
        if path == "/graphs":
            deployed = {graph["graph_id"] for graph in answer["graphs"]}
            files = await asyncio.to_thread(graph_files, self._settings.graphs_dir)
            more = [{"graph_id": name, "kind": "graph", "hash": ""} for name in files if name not in deployed]
            return {"graphs": [*answer["graphs"], *more]}
        return {name: value for name, value in answer.items() if path != "/capabilities" or name not in _HOST_FACTS}

    async def _deploy(self, graph_id: str, body: Mapping[str, Any]) -> None:
        retry = Retry()
        state = body.get("state")
        names = [] if state is None else [ref.hash for ref in references(state)]
        supply = Supply(self._client, None, self._artifacts, retry, TransferMeter())
        await deploy_wire(self._client, graph_id, body, names, supply, retry, lambda event: self._window.add(event.kind, event.data))

    async def _deploy_file(self, graph_id: str) -> None:
        """Deploy the graph from the worker's folder of graphs, if it has one of this id."""
        config = await asyncio.to_thread(graph_config, self._settings.graphs_dir, graph_id)
        if config is not None:
            await self._deploy(graph_id, config)

    async def _call(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, memoryview]]:
        given = {name: body.get(name) for name in ("options", "run", "timeout", "orphan_after", "priority", "deadline", "prompt", "key")}
        if not isinstance(body.get("inputs"), Mapping) or not isinstance(given["key"], str):
            raise InvalidConfig("The 'call' of the input must have 'inputs' in wire form and a 'key'.")
        call = Call(
            graph_id=str(self._request.graph_id or body.get("graph_id") or "workflow"),
            wire=body["inputs"],
            value=None,
            artifact_client=self._artifacts,
            run=given["run"] or {},
            options=given["options"] or {},
            timeout=given["timeout"],
            priority=given["priority"] or 0,
            deadline=given["deadline"],
            prompt=given["prompt"],
            progress=lambda place, done, total, text: self._window.add(
                "progress", {"place": place, "done": done, "total": total, "text": text}
            ),
            watch=self._on_event,
            key=given["key"],
        )
        row = await finish_call(self._client, call)
        downloads = Downloads(self._artifacts, RetryPolicy(), TransferMeter())
        try:
            refs = references(row["output"]) if isinstance(row.get("output"), Mapping) else []
            data = await downloads.all(self._client, refs)
        finally:
            await downloads.close()
        names = ("job_id", "status", "timing", "error", "started", "finished")
        facts = {name: row.get(name) for name in names}
        return {"row": facts if row.get("output") is None else {**facts, "output": without_places(row["output"])}}, data

    def _on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        # artifacts of single outputs arrive with the result
        if kind != "output":
            self._window.add(kind, data)


def _base64(data: memoryview) -> str:
    return base64.b64encode(data).decode("ascii")
