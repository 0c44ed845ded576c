"""Client of one endpoint: its routes as coroutines, and the conversion of its responses to values or errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from yggdrasill.errors import (
    AccessDenied,
    EndpointFailed,
    EndpointUnreachable,
    InvalidArgument,
    LimitExceeded,
    PayloadTooLarge,
    ProtocolMismatch,
    YggdrasillError,
    error_from_dict,
)
from yggdrasill.protocol.version import BASE_PATH, OLDEST_PROTOCOL, PROTOCOL, PROTOCOL_HEADER
from yggdrasill.remote.local_peers import LocalPeer
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.transports import Body, Chunk, HttpTransport, Request, Response, Transport

__all__ = ["EndpointClient", "is_below"]

MAX_ANSWER_BYTES = 64 << 20
_CLASSES_PER_REQUEST = 50
_MAX_RETRY_AFTER = 60.0


class EndpointClient:
    """Client of the endpoint at ``url`` (scheme, host, port and optional path prefix).

    ``name`` is used in messages. The token, or the result of ``token()`` at each request, is sent only to addresses below ``url`` and
    appears in no repr or error.

    Raises:
        InvalidArgument: ``url`` is not an http or https URL, or contains credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str | None] | None = None,
        name: str | None = None,
        ca: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"the URL of an endpoint must start with http:// or https:// and name a host, got {url!r}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidArgument(f"the URL of endpoint {parts.hostname!r} contains credentials or a query; pass the token separately")
        self.url = url.rstrip("/")
        self.name = name or self.url
        self._token: Callable[[], str | None] = token if callable(token) else _constant(token)
        self._ca = ca
        self._transport = transport
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
    def transport(self) -> Transport:
        """Return the transport passed to the constructor, or the HTTP connections shared by this process."""
        return self._transport if self._transport is not None else _shared_http(self._ca)

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
        """Return status, versions and queue depth."""
        return await self.get("/health", timeout=5.0)

    async def capabilities(self) -> dict[str, Any]:
        """Return versions, torch build, devices, block types, limits and store id."""
        return await self.get("/capabilities")

    async def nodes(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return ``{"nodes": {class: entry of ComfyUI's /object_info}, "asks_again": [class], "unknown": [class]}`` for node classes.

        Raises:
            InvalidConfig: the endpoint is not a ComfyUI.
        """
        found: dict[str, Any] = {"nodes": {}, "asks_again": [], "unknown": []}
        for start in range(0, len(classes), _CLASSES_PER_REQUEST):
            names = ",".join(quote(name, safe="") for name in classes[start : start + _CLASSES_PER_REQUEST])
            answer = await self.get(f"/nodes?classes={names}")
            found["nodes"].update(answer["nodes"])
            found["asks_again"] += answer["asks_again"]
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

    async def deploy(self, graph_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Deploy ``{"kind", "config", "state"}`` under an id. Repeating an equal request changes nothing."""
        return (await self.call("PUT", f"/graphs/{quote(graph_id, safe='')}", body))[1]

    async def remove(self, graph_id: str) -> None:
        """Remove a deployment. Raise `UnknownGraph`."""
        await self.call("DELETE", f"/graphs/{quote(graph_id, safe='')}")

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, graph_id: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Start a job, or find the one with the same key. Return the status (200 finished, 202 not yet) and the job's row."""
        return await self.call("POST", f"/graphs/{quote(graph_id, safe='')}/jobs", body, timeout=float(body.get("wait") or 0) + 15.0)

    async def submit_workflow(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Start a job of the ComfyUI API prompt in ``body``, with ports and without deployment. Return as `submit`."""
        return await self.call("POST", "/workflows", body, timeout=float(body.get("wait") or 0) + 15.0)

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
        return (await self.call("POST", f"/jobs/{quote(job_id, safe='')}/cancel", {}, timeout=5.0))[1]

    async def cancel_key(self, key: str) -> dict[str, Any]:
        """Request that the job with this key stops at its next node, and that a later submission with an unused key does not run.

        Raises:
            UnknownName: an older endpoint without this route.
        """
        return (await self.call("POST", f"/jobs/keys/{quote(key, safe='')}/cancel", {}, timeout=5.0))[1]

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

    def get_artifact(self, name: str, offset: int = 0) -> AbstractAsyncContextManager[Response]:
        """Open the stream of an artifact's bytes from ``offset`` (status 206 if not 0). Raise `UnknownArtifact`."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return self.open("GET", f"/artifacts/{name}", headers=headers)

    # -- requests -----------------------------------------------------------------------------------------------

    async def get(self, path: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """Return the JSON response of a GET request."""
        return (await self.call("GET", path, timeout=timeout))[1]

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float = 30.0
    ) -> tuple[int, dict[str, Any]]:
        """Send JSON. Return the status and the JSON response.

        Raises:
            YggdrasillError: the error that the endpoint reported, or why it could not be reached.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode("utf-8")
        headers = {} if data is None else {"Content-Type": "application/json"}
        self.check_size("max_body_bytes", len(data or b""), "a request")
        async with self.open(method, path, body=data, headers=headers, timeout=timeout) as response:
            text = await _read_all(response)
            return response.status, _json_object(text, response.status, self.name, self.url) if text else {}

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        body: Body = None,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> AsyncIterator[Response]:
        """Open a response with a good status. Any other response is raised as the error that it carries."""
        token = self.token
        protocol_headers = {PROTOCOL_HEADER: str(OLDEST_PROTOCOL), **({"Authorization": f"Bearer {token}"} if token else {})}
        request = Request(method, f"{self.url}{BASE_PATH}{path}", {**protocol_headers, **(headers or {})}, body, length, timeout)
        with _add_endpoint_name(self.name):
            async with self.transport.request(request) as response:
                if response.status >= 300:
                    error = _error_of_response(response, await _read_all(response), self.name, self.url)
                    retry_after = _retry_after(response)
                    if isinstance(error, EndpointUnreachable) and retry_after > 0:
                        error.details["retry_after"] = retry_after
                    raise error
                _check_protocol(response, self.name, self.url)
                yield response


def _constant(token: str | None) -> Callable[[], str | None]:
    return lambda: token


async def _read_all(response: Response, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """Return the whole body. Raise `LimitExceeded` if it is too large."""
    data = bytearray()
    async for chunk in response.chunks():
        data += chunk
        if len(data) > limit:
            raise LimitExceeded(
                f"the response of an endpoint is larger than {limit} bytes; tensors must be sent as artifacts, not in responses",
                bound=limit,
            )
    return bytes(data)


def _retry_after(response: Response) -> float:
    """Return the seconds in the Retry-After header, at most 60; 0 without the header or for a date."""
    given = response.headers.get("Retry-After", "0").strip()
    return min(float(given), _MAX_RETRY_AFTER) if given.isascii() and given.isdigit() else 0.0


def _no_peer(url: str) -> EndpointClient | None:
    """Return None: a client created without a registry knows no other endpoint."""
    return None


async def _drain(response: Response) -> None:
    async for _ in response.chunks():
        pass


def _shared_http(ca: str | None) -> HttpTransport:
    """Return the HTTP connections of this process, which its loop thread closes."""
    return loop_thread().shared(f"http:{ca}", lambda: HttpTransport(ca=ca))


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


def _check_protocol(response: Response, name: str, url: str) -> None:
    """Raise `ProtocolMismatch` if the response has another protocol version, or none."""
    spoken = response.headers.get(PROTOCOL_HEADER)
    if spoken is None or not spoken.isdigit() or int(spoken) < OLDEST_PROTOCOL:
        version = "no Yggdrasill protocol" if spoken is None else f"protocol version {spoken}"
        raise ProtocolMismatch(
            f"endpoint {name!r} at {url} speaks {version}, this client versions {OLDEST_PROTOCOL} to {PROTOCOL}; "
            + ("check the url and the port" if spoken is None else "update yggdrasill at the endpoint"),
            endpoint=name,
        )


def _error_of_response(response: Response, text: bytes, name: str, url: str) -> YggdrasillError:
    """Return the error that a response with an error status carries."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("error"), dict):
        if response.status in (502, 503, 504):
            return EndpointUnreachable(f"endpoint {name!r} at {url} is not up (HTTP {response.status})", endpoint=name)
        _check_protocol(response, name, url)
        return EndpointFailed(f"endpoint {name!r} at {url} answered HTTP {response.status} without an error description", endpoint=name)
    error = error_from_dict(document["error"])
    if isinstance(error, AccessDenied) and "endpoint" not in error.details:
        return AccessDenied(f"endpoint {name!r} at {url}: {error.message}", **error.details, endpoint=name)
    error.details.setdefault("endpoint", name)
    return error


def _json_object(text: bytes, status: int, name: str, url: str) -> dict[str, Any]:
    """Return the JSON object in a response.

    Raises:
        ProtocolMismatch: the body is not a JSON object.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ProtocolMismatch(
            f"the response of endpoint {name!r} at {url} (HTTP {status}) is not a JSON object; check the url and the port",
            endpoint=name,
        )
    return document


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
