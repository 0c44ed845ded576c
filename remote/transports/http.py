"""HTTP by aiohttp. A transport belongs to the event loop of its first request and is closed there."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import MissingFile
from yggdrasill.remote.foreign import translated
from yggdrasill.remote.transports.transport import Request

if TYPE_CHECKING:
    import aiohttp

__all__ = ["HttpTransport"]

CONNECT_SECONDS = 5.0
READ_BUFFER = 1 << 20


class HttpTransport:
    """Keeps connections open between requests. ``ca`` is a PEM file of the authority that signed the endpoint's certificate.

    Redirects are not followed: a token goes to the url it belongs to and nowhere else.
    """

    def __init__(self, *, ca: str | None = None) -> None:
        self._ca = ca
        self._session: aiohttp.ClientSession | None = None

    def request(self, request: Request) -> _Exchange:
        """See `Transport.request`."""
        if self._session is None:
            self._session = self._open()
        return _Exchange(self._session, request)

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        context: Any = True
        if self._ca is not None:
            try:
                context = ssl.create_default_context(cafile=self._ca)
            except (OSError, ssl.SSLError) as error:
                raise MissingFile(
                    f"the certificate authority {self._ca!r} cannot be read: {error}; correct 'ca' in endpoints.yaml"
                ) from error
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        return aiohttp.ClientSession(
            connector=connector, auto_decompress=False, read_bufsize=READ_BUFFER, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def aclose(self) -> None:
        """Close every connection; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Exchange:
    """One request and its answer."""

    def __init__(self, session: aiohttp.ClientSession, request: Request) -> None:
        self._session, self._request = session, request
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> _HttpResponse:
        import aiohttp

        request = self._request
        headers = dict(request.headers)
        if request.length is not None:
            headers["Content-Length"] = str(request.length)
        body: Any = request.body() if callable(request.body) else request.body
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=request.timeout)
        with translated(request.url):
            self._response = await self._session.request(
                request.method, request.url, headers=headers, data=body, timeout=timeout, allow_redirects=False
            )
        return _HttpResponse(self._response, request.url)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._response is not None:
            self._response.release() if kind is None else self._response.close()


class _HttpResponse:
    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._response, self._url = response, url

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        stream = self._response.content.iter_any().__aiter__()
        while True:
            with translated(self._url):
                try:
                    chunk = await stream.__anext__()
                except StopAsyncIteration:
                    return
            yield chunk
