"""Places that model files are fetched from: https, hubs and object stores, each as ranges of bytes.

Tokens come from the environment and are sent only to the host that they belong to. They appear in no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

import aiohttp

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, MissingFile, UnsupportedFormat, YggdrasillError
from yggdrasill.remote.public_hosts import ALLOW_VARIABLE, PublicResolver, check_host

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.remote.downloads import RangeResponse

__all__ = ["Facts", "Source", "SourcePool", "hub_url", "shown_url"]

_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_READ_BUFFER = 1 << 20
_CONNECT_S = 15.0
_MAX_RETRY_AFTER_S = 60.0
_STORE_CHUNK = 1 << 20
_OBJECT_STORES = ("s3", "gs", "az")
_HUB = "https://huggingface.co"
_TOKENS = {
    "huggingface.co": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "civitai.com": ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN"),
}
"""Hosts of hubs, with the environment variables of their tokens."""
_CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT_PATH"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_CLIENT_ID"),
}
"""Environment variables of which one is set if there are credentials for a kind of object store; without them requests are not signed."""
_ETAG_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True)
class Facts:
    """What a place reports about a file before it is fetched. ``sha256`` only where a hub has it."""

    nbytes: int | None
    sha256: str | None = None


class Source(Protocol):
    """A file at a place."""

    async def facts(self) -> Facts:
        """Return the size of the file. Raises as `SourcePool.open`."""
        ...

    def open_range(self, first: int, end: int | None) -> AbstractAsyncContextManager[RangeResponse]:
        """Open the bytes from ``first`` to ``end``, or to the end of the file. Raises as `SourcePool.open`."""
        ...


class SourcePool:
    """Sources of all kinds, with shared connections. An asynchronous context manager.

    ``allow_private`` allows private addresses and plain http. ``silence`` is how many seconds a server may send nothing.
    """

    def __init__(self, *, allow_private: bool, silence: float = 60.0, environment: Mapping[str, str] = os.environ) -> None:
        self.allow_private = allow_private
        self._silence = silence
        self._environment = environment
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        resolver = None if self.allow_private else PublicResolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=self._silence),
            read_bufsize=_READ_BUFFER,
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def open(self, url: str) -> Source:
        """Return the source at a url; nothing is sent yet.

        Its methods raise:
            EndpointUnreachable: no connection, a broken connection, or a failure that may pass.
            AccessDenied: a private address, or credentials are missing or wrong. MissingFile: it has no such file.
            InvalidArgument: the url has another form. UnsupportedFormat: the extra for the object store is not installed.
        """
        scheme = urlsplit(url).scheme
        if scheme in _OBJECT_STORES:
            return _ObjectSource(url, scheme, self._environment)
        if self._session is None:
            raise RuntimeError("the pool is closed; use it as a context manager")
        return _HttpSource(self._session, hub_url(url, self._environment), self)

    def authorization(self, url: str) -> dict[str, str]:
        """Return the header with the token of the hub that a url belongs to."""
        parts = urlsplit(url)
        for host, variables in _TOKENS.items():
            base = self._environment.get("HF_ENDPOINT") if host == "huggingface.co" else None
            bound = urlsplit(base) if base else urlsplit(f"https://{host}")
            token = next((self._environment[name] for name in variables if self._environment.get(name)), None)
            if token and (parts.scheme, parts.netloc) == (bound.scheme, bound.netloc):
                return {"Authorization": f"Bearer {token}"}
        return {}


def hub_url(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the https url of ``hf://owner/repository[@revision]/path`` and of a hub's page of a file; other urls as they are.

    Raises:
        InvalidArgument
    """
    base = environment.get("HF_ENDPOINT", _HUB).rstrip("/")
    if not url.startswith("hf://"):
        page = f"{_HUB}/"
        return (
            re.sub(r"^([^/]+/[^/]+)/blob/", rf"{page}\1/resolve/", url[len(page) :], count=1)
            if url.startswith(page) and "/blob/" in url
            else url
        )
    found = re.fullmatch(r"hf://([\w.-]+)/([\w.-]+)(?:@([^/]+))?/(.+)", url)
    if found is None:
        raise InvalidArgument(f"{shown_url(url)!r} has not the form hf://OWNER/REPOSITORY[@REVISION]/PATH.")
    owner, repository, revision, path = found.groups()
    return f"{base}/{owner}/{repository}/resolve/{revision or 'main'}/{quote(path)}"


def shown_url(url: str) -> str:
    """Return a url for a message: without its query, in which signed urls and hubs have secrets."""
    return url.partition("?")[0].partition("#")[0][:300]


class _HttpSource:
    """A file at an https url, or at an http url where that is allowed."""

    def __init__(self, session: aiohttp.ClientSession, url: str, pool: SourcePool) -> None:
        self._session, self._url, self._pool = session, url, pool

    async def facts(self) -> Facts:
        async with self._request({"Range": "bytes=0-0"}) as (response, hub):
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = total if response.status == 206 else response.headers.get("Content-Length", "")
            nbytes = int(size) if size.isascii() and size.isdigit() else None
            response.close()  # the body may be the whole file
            linked = hub.get("X-Linked-Size", "")
            digest = _ETAG_SHA256.fullmatch(hub.get("X-Linked-Etag", ""))
            return Facts(int(linked) if nbytes is None and linked.isdigit() else nbytes, digest[1] if digest else None)

    @asynccontextmanager
    async def open_range(self, first: int, end: int | None) -> AsyncGenerator[_HttpRange, None]:
        header = {} if first == 0 and end is None else {"Range": f"bytes={first}-{'' if end is None else end - 1}"}
        async with self._request(header) as (response, _):
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {first}-"):
                raise EndpointUnreachable(f"{shown_url(self._url)} sent other bytes than were requested. Try another source.")
            yield _HttpRange(response, self._url)

    @asynccontextmanager
    async def _request(self, headers: Mapping[str, str]) -> AsyncGenerator[tuple[aiohttp.ClientResponse, Mapping[str, str]], None]:
        """Yield the response after redirects, and the headers of the first one, in which a hub describes the file."""
        url, first = self._url, None
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            sent = {"Accept-Encoding": "identity", **headers, **self._pool.authorization(url)}
            with _translated(url):
                response = await self._session.get(url, headers=sent, allow_redirects=False)
            async with response:
                first = response.headers if first is None else first
                if response.status not in _REDIRECTS:
                    self._check_status(response, url)
                    yield response, first
                    return
                url = urljoin(url, response.headers.get("Location", ""))
        raise EndpointUnreachable(f"{shown_url(self._url)} redirects more than {_MAX_REDIRECTS} times. Try another source.")

    def _check(self, url: str) -> None:
        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https"):
            raise InvalidArgument(f"{shown_url(url)!r} is not an https url.")
        if not self._pool.allow_private:
            if scheme == "http":
                raise AccessDenied(
                    f"{shown_url(url)} is not https. The owner may allow such urls with {ALLOW_VARIABLE}=1.", reason="private"
                )
            check_host(url)

    def _check_status(self, response: aiohttp.ClientResponse, url: str) -> None:
        status, shown = response.status, shown_url(url)
        if status in (200, 206) and response.headers.get("Content-Encoding", "identity") == "identity":
            return
        if status in (401, 403):
            variables = next((names for host, names in _TOKENS.items() if urlsplit(self._url).hostname == host), None)
            hint = f"Set {variables[0]} to a token that may read it." if variables else "Check that the url is valid and public."
            raise AccessDenied(f"{shown} refused the request with status {status}. {hint}")
        if status in (404, 410):
            raise MissingFile(f"{shown} does not exist (status {status}). Correct the url.")
        after = response.headers.get("Retry-After", "")
        details = {"retry_after": min(float(after), _MAX_RETRY_AFTER_S)} if after.isascii() and after.isdigit() else {}
        raise EndpointUnreachable(f"{shown} answered with status {status}. Try again later, or another source.", **details)


class _HttpRange:
    """The bytes of an HTTP response."""

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._response, self._url = response, url

    @property
    def status(self) -> int:
        return self._response.status

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        while True:
            with _translated(self._url):
                # one piece as it arrived; `readany` would copy several into one
                chunk, _ = await content.readchunk()
            if chunk:
                yield chunk
            elif content.at_eof():
                return


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn errors of connections into ours."""
    try:
        yield
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        reason = getattr(error, "os_error", None) if isinstance(error, aiohttp.ClientConnectorError) else None
        if isinstance(reason, AccessDenied):
            raise reason from None
        if isinstance(error, (aiohttp.ClientSSLError, aiohttp.InvalidURL)):
            raise AccessDenied(f"{shown_url(url)} cannot be used: {type(error).__name__}. Check the url and its certificate.") from error
        what = "sent nothing for too long" if isinstance(error, asyncio.TimeoutError) else f"cannot be reached ({type(error).__name__})"
        raise EndpointUnreachable(f"{shown_url(url)} {what}. Check the url and the network.", broken=True) from error


class _ObjectSource:
    """A file in an object store, through obstore."""

    def __init__(self, url: str, scheme: str, environment: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._url, self._scheme, self._environment = url, scheme, environment
        self._bucket, self._path = f"{scheme}://{parts.netloc}", parts.path.lstrip("/")

    async def facts(self) -> Facts:
        with self._translated():
            found = await self._module().head_async(self._store(), self._path)
            return Facts(int(found["size"]))

    @asynccontextmanager
    async def open_range(self, first: int, end: int | None) -> AsyncGenerator[_ObjectRange, None]:
        span = {"offset": first} if end is None else (first, end)
        with self._translated():
            result = await self._module().get_async(self._store(), self._path, options={"range": span})
        yield _ObjectRange(result, self._translated)

    def _module(self) -> Any:
        try:
            import obstore
        except ImportError:
            raise UnsupportedFormat(f'{self._scheme}:// needs the package obstore. Install it: pip install "yggdrasill[stores]"') from None
        return obstore

    def _store(self) -> Any:
        from obstore.store import from_url

        signed = any(self._environment.get(name) for name in _CREDENTIALS[self._scheme])
        endpoint = self._environment.get("AWS_ENDPOINT_URL_S3") or self._environment.get("AWS_ENDPOINT_URL") or ""
        return from_url(
            self._bucket,
            config=None if signed else {"skip_signature": True},
            client_options={"allow_http": True} if self._scheme == "s3" and endpoint.startswith("http://") else None,
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of obstore, whose texts may contain signed urls, into ours."""
        self._module()
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except YggdrasillError:
            raise
        except FileNotFoundError:
            raise MissingFile(f"{shown_url(self._url)} does not exist. Correct the url.") from None
        except (BaseError, OSError) as error:
            if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or re.search(r"\b(401|403)\b", str(error)):
                variables = " or ".join(_CREDENTIALS[self._scheme][:2])
                raise AccessDenied(f"{shown_url(self._url)} refused the request. Set credentials that may read it: {variables}.") from None
            raise EndpointUnreachable(
                f"{shown_url(self._url)} cannot be read ({type(error).__name__}). Check the url, the credentials and the network.",
                broken=True,
            ) from None


class _ObjectRange:
    """The bytes of an object."""

    status = 206

    def __init__(self, result: Any, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._result, self._translated = result, translated

    async def chunks(self) -> AsyncIterator[bytes]:
        stream = aiter(self._result.stream(min_chunk_size=_STORE_CHUNK))
        while True:
            with self._translated():
                try:
                    chunk = bytes(await anext(stream))
                except StopAsyncIteration:
                    return
            yield chunk
