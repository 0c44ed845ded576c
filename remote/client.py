"""Client of one endpoint: its routes as coroutines, and the event stream of its jobs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, PayloadTooLarge, ProtocolMismatch, error_from_dict
from yggdrasill.protocol.version import BASE_PATH, OLDEST_PROTOCOL, PROTOCOL, PROTOCOL_HEADER
from yggdrasill.remote.channel import Body, Channel, Chunk, Response, channel_of
from yggdrasill.remote.local_peers import LocalPeer
from yggdrasill.remote.retry import while_alive

if TYPE_CHECKING:
    from yggdrasill.remote.serverless.options import ServerlessOptions

__all__ = ["EndpointClient", "is_below"]

LOAD_SECONDS = 0.05
"""The age up to which the load of an endpoint is not requested again."""
_CLASSES_PER_REQUEST = 50


class EndpointClient:
    """Client of the endpoint at ``url`` (scheme, host, port and optional path prefix).

    ``name`` is used in messages. The token, or the result of ``token()`` at each request, is sent only to addresses below ``url`` and
    appears in no repr or error. After a refused token ``token()`` is called once more, after ``renew()``, which reads its source again.
    ``headers()`` are sent too. All clients with the same URL and certificate authority share a `Channel`.

    A ``runpod://ENDPOINT_ID`` is a serverless endpoint with the settings ``serverless``; its channel answers in this process.

    Raises:
        InvalidArgument: ``url`` is not such a URL, or contains credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str | None] | None = None,
        name: str | None = None,
        ca: str | None = None,
        renew: Callable[[], None] | None = None,
        headers: Callable[[], Mapping[str, str]] = dict,
        serverless: ServerlessOptions | None = None,
    ) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https", "runpod") or not parts.hostname:
            raise InvalidArgument(
                f"the URL of an endpoint must start with http://, https:// or runpod:// and name a host or an id, got {url!r}"
            )
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidArgument(f"the URL of endpoint {parts.hostname!r} contains credentials or a query; pass the token separately")
        self.url = url.rstrip("/")
        self.name = name or self.url
        self._token: Callable[[], str | None] = token if callable(token) else _constant(token)
        self._ca, self._renew, self._headers = ca, renew, headers
        self._is_serverless, self._serverless = parts.scheme == "runpod", serverless
        #: The endpoint's artifact folder, if it is on this machine.
        self.local_peer = LocalPeer(parts.hostname, self.artifact_folder)
        #: The endpoint's capabilities, once they were requested.
        self.facts: dict[str, Any] | None = None
        #: Fingerprints of local model files that the endpoint has too.
        self.compared: dict[str, dict[str, str]] = {}
        #: Finds the client of another known endpoint by a URL below that endpoint's URL.
        self.peers: Callable[[str], EndpointClient | None] = _no_peer

    def __repr__(self) -> str:
        return f"<EndpointClient {self.name!r} at {self.url}>" if self.name != self.url else f"<EndpointClient {self.url}>"

    @property
    def token(self) -> str | None:
        """Return the present token."""
        return self._token()

    @property
    def channel(self) -> Channel:
        """Return the connections and the state that all clients of this endpoint share. Use on the loop thread's loop only."""
        if self._is_serverless:
            from yggdrasill.remote.serverless.options import ServerlessOptions
            from yggdrasill.remote.serverless.queue_channel import queue_channel_of

            return queue_channel_of(self.url, self._ca, self._serverless or ServerlessOptions())
        return channel_of(self.url, self._ca)

    @property
    def protocol(self) -> int:
        """Return the protocol version that this client speaks to the endpoint."""
        return self.channel.protocol

    def is_own(self, url: str) -> bool:
        """Return whether ``url`` lies below this endpoint's URL."""
        return is_below(url, self.url)

    def peer(self, url: str) -> EndpointClient | None:
        """Return the client of the known endpoint that ``url`` belongs to, or None."""
        return self.peers(url)

    def check_size(self, limit: str, nbytes: int, what: str) -> None:
        """Raise `PayloadTooLarge` if ``nbytes`` exceed the endpoint's published limit: a refusal in mid-stream looks like a lost
        connection.
        """
        limits = (self.facts or {}).get("limits")
        bound = limits.get(limit) if isinstance(limits, Mapping) else None
        if isinstance(bound, int) and nbytes > bound:
            raise PayloadTooLarge(
                f"{what} of {nbytes} bytes is over the {bound} that endpoint {self.name!r} accepts; split the value, or raise {limit} on the endpoint",
                endpoint=self.name,
                nbytes=nbytes,
                bound=bound,
            )

    # -- about the endpoint -------------------------------------------------------------------------------------

    async def health(self) -> dict[str, Any]:
        """Return status, versions and queue depth. Sent also to an endpoint that counts as down."""
        answer = (await self.call("GET", "/health", timeout=5.0, probe=True))[1]
        spoken = answer.get("protocol")
        if isinstance(spoken, int) and spoken >= OLDEST_PROTOCOL:
            self.channel.protocol = min(spoken, PROTOCOL)
        return answer

    async def load(self) -> tuple[float, float, float]:
        """Return queued jobs, running jobs and slots, at most 50 ms old; calls begun since then count as running.

        Concurrent callers share one request. Other requests for the health do not count: they may precede the work that this call is part of.

        Raises:
            EndpointUnreachable, AccessDenied, ProtocolMismatch
        """
        channel, token = self.channel, self.token
        known = channel.loads.get(token)
        if known is None or time.monotonic() - known[0] > LOAD_SECONDS:
            request = channel.load_requests.get(token)
            if request is None or request.done():
                request = channel.load_requests[token] = asyncio.get_running_loop().create_task(self._request_load(token))
                request.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            await asyncio.shield(request)
        return self.known_load()

    def known_load(self) -> tuple[float, float, float]:
        """Return the load that was requested last; raise as `load` if the response reports none."""
        _, calls, answer = self.channel.loads.get(self.token, (0.0, 0, {}))
        queue: Any = answer.get("queue")
        try:
            queued, running, slots = (float(queue[name]) for name in ("queued", "running", "slots"))
        except (KeyError, TypeError, ValueError):
            raise ProtocolMismatch(
                f"endpoint {self.name!r} reports no load; update yggdrasill at the endpoint", endpoint=self.name
            ) from None
        return queued, running + max(0, self.channel.calls - calls), slots

    async def _request_load(self, token: str | None) -> None:
        calls = self.channel.calls
        answer = await self.health()
        self.channel.loads[token] = time.monotonic(), calls, answer

    async def capabilities(self, *, fresh: bool = False) -> dict[str, Any]:
        """Return versions, torch build, devices, block types, limits and store id.

        Those of a serverless endpoint may be some time old, unless ``fresh``: a request wakes a worker.
        """
        return (await self.call("GET", "/capabilities", headers={"Cache-Control": "no-cache"} if fresh else {}))[1]

    async def nodes(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return ``{"nodes": {class: entry of ComfyUI's /object_info}, "asks_again": [class], "loops": {class: role}, "unknown": [class]}``.

        Raises:
            InvalidConfig: the endpoint is not a ComfyUI.
        """
        found: dict[str, Any] = {"nodes": {}, "asks_again": [], "loops": {}, "unknown": []}
        for start in range(0, len(classes), _CLASSES_PER_REQUEST):
            names = ",".join(quote(name, safe="") for name in classes[start : start + _CLASSES_PER_REQUEST])
            answer = await self.get(f"/nodes?classes={names}")
            found["nodes"].update(answer["nodes"])
            found["asks_again"] += answer["asks_again"]
            found["loops"].update(answer.get("loops") or {})
            found["unknown"] += answer["unknown"]
        return found

    async def model_fingerprints(self, files: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return content fingerprints of model files by file and model folder. Files that the endpoint lacks are omitted.

        Raises:
            InvalidConfig: the endpoint is not a ComfyUI.
        """
        body = {"files": list(files)}
        found: dict[str, dict[str, str]] = (await self.call("POST", "/checkpoints/fingerprints", body, timeout=120.0))[1]["fingerprints"]
        return found

    # -- graphs -------------------------------------------------------------------------------------------------

    async def graphs(self) -> list[dict[str, Any]]:
        """Return the deployments as ``{"graph_id", "kind", "hash"}``."""
        found: list[dict[str, Any]] = (await self.get("/graphs"))["graphs"]
        return found

    async def graph(self, graph_id: str) -> dict[str, Any]:
        """Return a deployment with its ``config``. Raise `UnknownGraph`."""
        return await self.get(f"/graphs/{quote(graph_id, safe='')}")

    async def contract(self, graph_id: str) -> dict[str, Any]:
        """Return the contract of a deployment. Raise `UnknownGraph`."""
        return await self.get(f"/graphs/{quote(graph_id, safe='')}/contract")

    async def deploy(self, graph_id: str, body: Mapping[str, Any], wait: float = 20.0) -> dict[str, Any]:
        """Deploy ``{"kind", "config", "state"}`` under an id. Repeating an equal request changes nothing.

        Return ``{"graph_id", "kind", "hash", "created"}``, or after ``wait`` seconds the row of the job that builds the deployment. In
        protocol 1 the response arrives when the deployment is built.
        """
        if self.protocol >= 2:
            body = {**body, "wait": wait}
        answer = (await while_alive(self.health, self.call("PUT", f"/graphs/{quote(graph_id, safe='')}", body, timeout=None)))[1]
        error, output = answer.get("error"), answer.get("output")
        if isinstance(error, Mapping):
            raise error_from_dict(error)
        return dict(output) if isinstance(output, Mapping) else answer

    async def remove(self, graph_id: str) -> None:
        """Remove a deployment. Raise `UnknownGraph`."""
        await self.call("DELETE", f"/graphs/{quote(graph_id, safe='')}")

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, graph_id: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Start a job, or find the one with the same key. Return the status (200 finished, 202 not yet) and the job's row."""
        return await self._start(f"/graphs/{quote(graph_id, safe='')}/jobs", body)

    async def submit_workflow(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Start a job of the ComfyUI API prompt in ``body``, with ports and without deployment. Return as `submit`."""
        return await self._start("/workflows", body)

    async def _start(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Submit a job. In protocol 1 the response arrives when the inputs are at the endpoint, which may take minutes."""
        return await while_alive(self.health, self.call("POST", path, body, timeout=None))

    @asynccontextmanager
    async def submission(self, graph_id: str | None, body: Mapping[str, Any], graph_hash: str | None = None) -> AsyncIterator[Response]:
        """Open the response to a submission as `submit`, or as `submit_workflow` if ``graph_id`` is None.

        It is an event stream with the row (``job``), the events and, unless that is large, the result (``result``); from an endpoint that
        sends none, or for a job that waits for inputs, it is JSON. The endpoint refuses a graph without the hash ``graph_hash``.

        Raises:
            JobConflict: the graph has another hash (``details["reason"]`` is ``contract``).
        """
        path = "/workflows" if graph_id is None else f"/graphs/{quote(graph_id, safe='')}/jobs"
        data = self._encode(body)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if graph_hash is not None:
            headers["If-Match"] = f'"{graph_hash}"'
        channel = self.channel
        async with AsyncExitStack() as stack:
            async with channel.in_flight:
                channel.budget.requested()
                opening = stack.enter_async_context(self.open("POST", path, body=data, headers=headers, timeout=None))
                response = await while_alive(self.health, opening)
            yield response

    async def check_inputs(self, job_id: str) -> dict[str, Any]:
        """Report that missing artifacts were uploaded. Return the job's row."""
        return (await self.call("POST", f"/jobs/{quote(job_id, safe='')}/inputs", {}))[1]

    async def jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """Return rows of jobs, newest first, filtered by ``graph_id``, ``status`` and ``limit``."""
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in filters.items() if value is not None)
        rows: list[dict[str, Any]] = (await self.get(f"/jobs?{query}" if query else "/jobs"))["jobs"]
        return rows

    async def fetch_model(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start a job that downloads a model file to the endpoint: ``{"key", "url", "folder", "name", "sha256"?}``. Return the job's row.

        Raises:
            AccessDenied: the endpoint's owner does not allow the source.
            DuplicateName: the file exists.
        """
        return (await self.call("POST", "/models", body))[1]

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's row. Raise `UnknownJob`."""
        return await self.get(f"/jobs/{quote(job_id, safe='')}")

    async def output(self, job_id: str, wait: float = 20.0) -> tuple[int, dict[str, Any]]:
        """Return a job's result after waiting up to ``wait`` seconds: the status (200 finished, 202 not yet) and the row."""
        return await self.call("GET", f"/jobs/{quote(job_id, safe='')}/output?wait={wait:g}", timeout=wait + 15.0)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Request that a job stops at its next node."""
        return (await self.call("POST", f"/jobs/{quote(job_id, safe='')}/cancel", {}, timeout=5.0, probe=True))[1]

    async def cancel_key(self, key: str) -> dict[str, Any]:
        """Request that the job with this key stops at its next node, and that a later submission with an unused key does not run.

        Raises:
            UnknownName: an older endpoint without this route.
        """
        return (await self.call("POST", f"/jobs/keys/{quote(key, safe='')}/cancel", {}, timeout=5.0, probe=True))[1]

    @asynccontextmanager
    async def events(self, job_id: str | None, after: str | None = None) -> AsyncIterator[Response]:
        """Open the event stream of a job, or of all jobs, after the event ``after``."""
        path = "/events" if job_id is None else f"/jobs/{quote(job_id, safe='')}/events"
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after is not None else {})}
        async with self.open("GET", path, headers=headers, timeout=20.0) as response:
            yield response

    # -- artifacts ----------------------------------------------------------------------------------------------

    async def artifact_folder(self) -> dict[str, Any]:
        """Return ``{"folder", "store_id", "quota_bytes"}`` of the artifact folder. Callers on other machines receive no folder."""
        return await self.get("/artifacts/folder", timeout=5.0)

    async def missing(self, hashes: list[str]) -> list[str]:
        """Return those of ``hashes`` that the endpoint lacks."""
        found: list[str] = (await self.call("POST", "/artifacts/missing", {"hashes": hashes}))[1]["missing"]
        return found

    async def put_artifact(self, name: str, start: Callable[[], AsyncIterator[Chunk]], length: int) -> None:
        """Store bytes under their hash. ``start`` opens the stream from its beginning.

        Raises:
            CorruptData: the bytes do not match the hash.
            PayloadTooLarge, StorageFailed
        """
        async with self.open(
            "PUT", f"/artifacts/{name}", body=start, length=length, headers={"Content-Type": "application/octet-stream"}
        ) as response:
            await _drain(response)

    async def put_batch(self, start: Callable[[], AsyncIterator[Chunk]], length: int) -> None:
        """Store several small artifacts: for each its hash (32 bytes), its length (8, little-endian) and its bytes.

        Raises:
            CorruptData: bytes that do not match their hash.
            LimitExceeded, StorageFailed
        """
        headers = {"Content-Type": "application/octet-stream"}
        async with self.open("POST", "/artifacts/batch", body=start, length=length, headers=headers) as response:
            await _drain(response)

    def get_artifact(self, name: str, start: int = 0, stop: int | None = None) -> AbstractAsyncContextManager[Response]:
        """Open the stream of an artifact's bytes from ``start`` to ``stop`` (status 206 if not all). Raise `UnknownArtifact`."""
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        return self.open("GET", f"/artifacts/{name}", headers=headers)

    # -- requests -----------------------------------------------------------------------------------------------

    async def get(self, path: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """Return the JSON response of a GET request."""
        return (await self.call("GET", path, timeout=timeout))[1]

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = 30.0,
        probe: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send JSON. Return the status and the JSON response. ``probe``: also while the endpoint counts as down, and without waiting for
        other requests.

        Raises:
            YggdrasillError: the error that the endpoint reported, or why it could not be reached.
        """
        data = None if body is None else self._encode(body)
        sent = {**(headers or {}), **({} if data is None else {"Content-Type": "application/json"})}
        if probe:
            return await self._call(method, path, data, sent, timeout, probe)
        channel = self.channel
        async with channel.in_flight:
            channel.budget.requested()
            return await self._call(method, path, data, sent, timeout, probe)

    def _encode(self, body: Mapping[str, Any]) -> bytes:
        data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode("utf-8")
        self.check_size("max_body_bytes", len(data), "a request")
        return data

    async def _call(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], timeout: float | None, probe: bool
    ) -> tuple[int, dict[str, Any]]:
        async with self.open(method, path, body=data, headers=headers, timeout=timeout, probe=probe) as response:
            return response.status, await response.json(self.name, self.url)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        body: Body = None,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 30.0,
        probe: bool = False,
    ) -> AsyncIterator[Response]:
        """Open a response with a good status. Any other response is raised as the error that it carries.

        A refused token is read again once, and a refused protocol version replaced by the newest common one.
        """
        channel, url = self.channel, f"{self.url}{BASE_PATH}{path}"
        given = {**(headers or {}), **({} if length is None else {"Content-Length": str(length)})}
        renewed = negotiated = False
        with _add_endpoint_name(self.name):
            while True:
                token, protocol = self.token, channel.protocol
                credential = {"Authorization": f"Bearer {token}"} if token else {}
                sent = {**self._headers(), PROTOCOL_HEADER: str(protocol), **credential, **given}
                response = await channel.send(method, url, sent, body, timeout, probe=probe)
                try:
                    if response.status < 300:
                        response.check_protocol(self.name, self.url)
                        yield response
                    else:
                        error = await response.error(self.name, self.url)
                except BaseException:
                    response.close()
                    raise
                response.release()
                if response.status < 300:
                    return
                if response.status == 401 and not renewed and self._renewed(token):
                    renewed = True
                elif response.status == 426 and not negotiated and isinstance(error, ProtocolMismatch):
                    channel.negotiate(error, self.name, protocol)
                    negotiated = True
                else:
                    raise error

    def _renewed(self, refused: str | None) -> bool:
        """Return whether the token's source, read again, has another token."""
        if self._renew is not None:
            self._renew()
        return self.token != refused


def _constant(token: str | None) -> Callable[[], str | None]:
    return lambda: token


def _no_peer(url: str) -> EndpointClient | None:
    """Return None: a client created without a registry knows no other endpoint."""
    return None


async def _drain(response: Response) -> None:
    async for _ in response.chunks():
        pass


@contextmanager
def _add_endpoint_name(name: str) -> Iterator[None]:
    """Add the endpoint's name to connection errors; the transport knows only its URL."""
    try:
        yield
    except (EndpointUnreachable, AccessDenied, ProtocolMismatch) as error:
        if "endpoint" not in error.details:
            error.details["endpoint"] = name
            if repr(name) not in error.message and name not in error.message:
                error.message = f"endpoint {name!r}: {error.message}"
        raise


def is_below(url: str, prefix: str) -> bool:
    """Return whether ``url`` lies at or below ``prefix``: same scheme, host and port, and a path that continues it at a slash.

    A credential is sent only to URLs below the prefix that it is bound to.
    """
    try:
        candidate, bound = urlsplit(url), urlsplit(prefix)
        origins = [(part.scheme, part.hostname, part.port or {"http": 80, "https": 443}.get(part.scheme)) for part in (candidate, bound)]
    except ValueError:
        return False
    base, path = bound.path.rstrip("/"), candidate.path
    return (
        origins[0] == origins[1]
        and "@" not in candidate.netloc
        and (path == base or path.startswith(base + "/"))
        and ".." not in unquote(path).split("/")
    )
