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
from yggdrasill.remote.local_peers import LocalPeer
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.transports import Body, Chunk, HttpTransport, Request, Response, Transport

__all__ = ["PROTOCOL", "EndpointClient", "add_endpoint_name", "check_protocol", "error_of_response", "is_below", "json_object"]

BASE_PATH = "/yggdrasill/v1"
MAX_ANSWER_BYTES = 64 << 20
_CLASSES_PER_REQUEST = 50


class EndpointClient:
    """Talks to the endpoint at ``url`` (scheme, host, port and perhaps a path prefix).

    ``name`` is what messages call it. The token is sent to addresses below ``url`` only and is in no repr or error.

    Raises:
        InvalidArgument: ``url`` is no http or https url, or holds a password.
    """

    def __init__(
        self, url: str, *, token: str | None = None, name: str | None = None, ca: str | None = None, transport: Transport | None = None
    ) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"an endpoint's url starts with http:// or https:// and names a host, got {url!r}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidArgument(f"the url of endpoint {parts.hostname!r} holds credentials or a query; give the token apart from the url")
        self.url = url.rstrip("/")
        self.name = name or self.url
        self._token = token
        self._ca = ca
        self._transport = transport
        #: Its artifact folder, if it is on this machine.
        self.local_peer = LocalPeer(parts.hostname, self.artifact_folder)
        #: What `capabilities` said the first time somebody compared it.
        self.facts: dict[str, Any] | None = None
        #: Fingerprints of model files here that the endpoint has too.
        self.compared: dict[str, dict[str, str]] = {}
        #: Finds the client of another endpoint that is known here by a url below its own.
        self.peers: Callable[[str], EndpointClient | None] = _no_peer

    def __repr__(self) -> str:
        return f"<EndpointClient {self.name!r} at {self.url}>" if self.name != self.url else f"<EndpointClient {self.url}>"

    @property
    def transport(self) -> Transport:
        """The way to the endpoint: the one given, else HTTP connections shared by this process."""
        return self._transport if self._transport is not None else _shared_http(self._ca)

    def is_own(self, url: str) -> bool:
        """Whether ``url`` lies at this endpoint."""
        return is_below(url, self.url)

    def peer(self, url: str) -> EndpointClient | None:
        """The client of the known endpoint that ``url`` lies at, if there is one."""
        return self.peers(url)

    def check_size(self, limit: str, nbytes: int, what: str) -> None:
        """Raise `PayloadTooLarge` if ``nbytes`` are more than the endpoint said it takes: a refusal in mid-stream looks like a lost
        connection."""
        limits = (self.facts or {}).get("limits")
        bound = limits.get(limit) if isinstance(limits, Mapping) else None
        if isinstance(bound, int) and nbytes > bound:
            raise PayloadTooLarge(
                f"{what} of {nbytes} bytes is over the {bound} that endpoint {self.name!r} takes; split the value, or raise {limit} there",
                endpoint=self.name,
                nbytes=nbytes,
                bound=bound,
            )

    # -- about the endpoint -------------------------------------------------------------------------------------

    async def health(self) -> dict[str, Any]:
        """Status, versions and queue depth."""
        return await self.get("/health", timeout=5.0)

    async def capabilities(self) -> dict[str, Any]:
        """Versions, torch build, devices, block types, limits, store id."""
        return await self.get("/capabilities")

    async def nodes(self, classes: Sequence[str]) -> dict[str, Any]:
        """``{"nodes": {class: entry of ComfyUI's /object_info}, "asks_again": [class], "unknown": [class]}`` of an endpoint's node classes.

        Raises:
            InvalidConfig: the endpoint is no ComfyUI.
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
        """By file and model folder, what tells the content of an endpoint's model files; files it lacks are left out.

        Raises:
            InvalidConfig: the endpoint is no ComfyUI.
        """
        body = {"files": list(files)}
        found: dict[str, dict[str, str]] = (await self.call("POST", "/checkpoints/fingerprints", body, timeout=120.0))[1]["fingerprints"]
        return found

    # -- graphs -------------------------------------------------------------------------------------------------

    async def graphs(self) -> list[dict[str, Any]]:
        """What is served: ``{"graph_id", "kind", "hash"}`` each."""
        found: list[dict[str, Any]] = (await self.get("/graphs"))["graphs"]
        return found

    async def graph(self, graph_id: str) -> dict[str, Any]:
        """A served graph with its ``config``. Raises `UnknownGraph`."""
        return await self.get(f"/graphs/{quote(graph_id, safe='')}")

    async def contract(self, graph_id: str) -> dict[str, Any]:
        """The contract of a served graph. Raises `UnknownGraph`."""
        return await self.get(f"/graphs/{quote(graph_id, safe='')}/contract")

    async def deploy(self, graph_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Serve ``{"kind", "config", "state"}`` under an id; the same again changes nothing."""
        return (await self.call("PUT", f"/graphs/{quote(graph_id, safe='')}", body))[1]

    async def remove(self, graph_id: str) -> None:
        """Serve it no longer. Raises `UnknownGraph`."""
        await self.call("DELETE", f"/graphs/{quote(graph_id, safe='')}")

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, graph_id: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Start a job, or find the one of the same key: the status (200 finished, 202 not yet) and its row."""
        return await self.call("POST", f"/graphs/{quote(graph_id, safe='')}/jobs", body, timeout=float(body.get("wait") or 0) + 15.0)

    async def submit_workflow(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Start a job of the ComfyUI API prompt in ``body``, with ports and without deploying it; answers as `submit`."""
        return await self.call("POST", "/workflows", body, timeout=float(body.get("wait") or 0) + 15.0)

    async def jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """Rows of jobs, newest first, limited by ``graph_id``, ``status`` and ``limit``."""
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in filters.items() if value is not None)
        rows: list[dict[str, Any]] = (await self.get(f"/jobs?{query}" if query else "/jobs"))["jobs"]
        return rows

    async def fetch_model(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start a job that brings a model file there: ``{"key", "url", "folder", "name", "sha256"?}``; gives its row.

        Raises:
            AccessDenied: the endpoint's owner does not allow the source. DuplicateName: the file is there.
        """
        return (await self.call("POST", "/models", body))[1]

    async def job(self, job_id: str) -> dict[str, Any]:
        """A job's row. Raises `UnknownJob`."""
        return await self.get(f"/jobs/{quote(job_id, safe='')}")

    async def output(self, job_id: str, wait: float = 20.0) -> tuple[int, dict[str, Any]]:
        """A job's result, waiting up to ``wait`` seconds for it: the status (200 finished, 202 not yet) and its row."""
        return await self.call("GET", f"/jobs/{quote(job_id, safe='')}/output?wait={wait:g}", timeout=wait + 15.0)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask a job to stop at its next node."""
        return (await self.call("POST", f"/jobs/{quote(job_id, safe='')}/cancel", {}, timeout=5.0))[1]

    @asynccontextmanager
    async def events(self, job_id: str | None, after: str | None = None) -> AsyncIterator[Response]:
        """The open event stream of a job, or of all jobs, behind the event ``after``."""
        path = "/events" if job_id is None else f"/jobs/{quote(job_id, safe='')}/events"
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after is not None else {})}
        async with self.open("GET", path, headers=headers, timeout=20.0) as response:
            yield response

    # -- artifacts ----------------------------------------------------------------------------------------------

    async def artifact_folder(self) -> dict[str, Any]:
        """``{"folder", "store_id", "quota_bytes"}`` of the endpoint's artifacts, for callers on the same machine; others are told no folder."""
        return await self.get("/artifacts/folder", timeout=5.0)

    async def missing(self, hashes: list[str]) -> list[str]:
        """Those of ``hashes`` that the endpoint does not hold."""
        found: list[str] = (await self.call("POST", "/artifacts/missing", {"hashes": hashes}))[1]["missing"]
        return found

    async def put_artifact(self, name: str, start: Callable[[], AsyncIterator[Chunk]], length: int) -> None:
        """Store bytes under their hash; ``start`` gives the stream from its beginning.

        Raises:
            CorruptData: the bytes are not those of the hash. PayloadTooLarge, StorageFailed
        """
        async with self.open(
            "PUT", f"/artifacts/{name}", body=start, length=length, headers={"Content-Type": "application/octet-stream"}
        ) as response:
            await _drain(response)

    async def put_batch(self, start: Callable[[], AsyncIterator[Chunk]], length: int) -> None:
        """Store several small artifacts: for each its hash (32 bytes), its length (8, little-endian) and its bytes.

        Raises:
            CorruptData: bytes that are not those of their hash. LimitExceeded, StorageFailed
        """
        headers = {"Content-Type": "application/octet-stream"}
        async with self.open("POST", "/artifacts/batch", body=start, length=length, headers=headers) as response:
            await _drain(response)

    def get_artifact(self, name: str, offset: int = 0) -> AbstractAsyncContextManager[Response]:
        """The open stream of an artifact's bytes from ``offset`` on (status 206 where that is not 0). Raises `UnknownArtifact`."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return self.open("GET", f"/artifacts/{name}", headers=headers)

    # -- requests -----------------------------------------------------------------------------------------------

    async def get(self, path: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """The JSON answer to a GET."""
        return (await self.call("GET", path, timeout=timeout))[1]

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float = 30.0
    ) -> tuple[int, dict[str, Any]]:
        """Send JSON, and give the status and the JSON answer.

        Raises:
            YggdrasillError: what the endpoint said went wrong, or why it could not be asked.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode("utf-8")
        headers = {} if data is None else {"Content-Type": "application/json"}
        self.check_size("max_body_bytes", len(data or b""), "a request")
        async with self.open(method, path, body=data, headers=headers, timeout=timeout) as response:
            text = await _read_all(response)
            return response.status, json_object(text, response.status, self.name, self.url) if text else {}

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
        """An open answer with a good status; any other is raised as the error it carries."""
        own = {"X-Yggdrasill-Protocol": str(PROTOCOL), **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        request = Request(method, f"{self.url}{BASE_PATH}{path}", {**own, **(headers or {})}, body, length, timeout)
        with add_endpoint_name(self.name):
            async with self.transport.request(request) as response:
                if response.status >= 300:
                    raise error_of_response(response, await _read_all(response), self.name, self.url)
                check_protocol(response, self.name, self.url)
                yield response


async def _read_all(response: Response, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """The whole body, unless it is larger than an answer may be."""
    data = bytearray()
    async for chunk in response.chunks():
        data += chunk
        if len(data) > limit:
            raise LimitExceeded(
                f"an endpoint's answer is larger than {limit} bytes; tensors travel as artifacts, not in answers", bound=limit
            )
    return bytes(data)


def _no_peer(url: str) -> EndpointClient | None:
    """A client that was made alone knows no other endpoint."""
    return None


async def _drain(response: Response) -> None:
    async for _ in response.chunks():
        pass


def _shared_http(ca: str | None) -> HttpTransport:
    """The connections of this process, which its loop_thread closes."""
    return loop_thread().shared(f"http:{ca}", lambda: HttpTransport(ca=ca))


PROTOCOL = 1


@contextmanager
def add_endpoint_name(name: str) -> Iterator[None]:
    """Let the errors of a connection say which endpoint it was to: below that, only its url is known."""
    try:
        yield
    except (EndpointUnreachable, AccessDenied, ProtocolMismatch) as error:
        if "endpoint" not in error.details:
            error.details["endpoint"] = name
            if repr(name) not in error.message and name not in error.message:
                error.message = f"endpoint {name!r}: {error.message}"
                error.args = (error.message,)
        raise


def check_protocol(response: Response, name: str, url: str) -> None:
    """Raise `ProtocolMismatch` if the answer is of another protocol, or of none."""
    spoken = response.headers.get("X-Yggdrasill-Protocol")
    if spoken != str(PROTOCOL):
        said = "no Yggdrasill protocol" if spoken is None else f"protocol version {spoken}"
        raise ProtocolMismatch(
            f"endpoint {name!r} at {url} speaks {said}, this client version {PROTOCOL}; "
            + ("check the url and the port" if spoken is None else "install the same version of yggdrasill on both sides"),
            endpoint=name,
        )


def error_of_response(response: Response, text: bytes, name: str, url: str) -> YggdrasillError:
    """The error that an answer with a bad status stands for."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("error"), dict):
        if response.status in (502, 503, 504):
            return EndpointUnreachable(f"endpoint {name!r} at {url} is not up (HTTP {response.status})", endpoint=name)
        check_protocol(response, name, url)
        return EndpointFailed(f"endpoint {name!r} at {url} answered HTTP {response.status} without saying why", endpoint=name)
    error = error_from_dict(document["error"])
    if isinstance(error, AccessDenied) and "endpoint" not in error.details:
        return AccessDenied(f"endpoint {name!r} at {url}: {error.message}", **error.details, endpoint=name)
    error.details.setdefault("endpoint", name)
    return error


def json_object(text: bytes, status: int, name: str, url: str) -> dict[str, Any]:
    """The JSON object that an answer holds.

    Raises:
        ProtocolMismatch: it holds none.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ProtocolMismatch(
            f"endpoint {name!r} at {url} answered HTTP {status} with something that is no JSON object; check the url and the port",
            endpoint=name,
        )
    return document


def is_below(url: str, prefix: str) -> bool:
    """Whether ``url`` lies at or below ``prefix``: same scheme, host and port, and a path that continues it at a slash."""
    try:
        given, bound = urlsplit(url), urlsplit(prefix)
        origins = [(part.scheme, part.hostname, part.port or {"http": 80, "https": 443}.get(part.scheme)) for part in (given, bound)]
    except ValueError:
        return False
    base, path = bound.path.rstrip("/"), given.path
    return (
        origins[0] == origins[1]
        and "@" not in given.netloc
        and (path == base or path.startswith(base + "/"))
        and ".." not in unquote(path).split("/")
    )
