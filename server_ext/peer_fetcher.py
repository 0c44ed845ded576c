"""Downloads artifacts from allowed peers straight into the store, so that they do not pass through the caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from urllib.parse import parse_qsl, urlsplit

import aiohttp

from yggdrasill.errors import CorruptData, EndpointFailed, EndpointUnreachable, YggdrasillError
from yggdrasill.protocol.streams import read_chunk
from yggdrasill.remote.downloads import RangeResponse, stream_ranges
from yggdrasill.remote.retry import Retry, RetryPolicy
from yggdrasill.values.payload import ArtifactRef
from yggdrasill.values.stores.base import LocalStore, Writer
from yggdrasill.values.stores.threaded import ThreadedStore

__all__ = ["PeerFetcher"]

_LOG = logging.getLogger("yggdrasill.server")
_MAX_PARALLEL = 4
_RETRIES = RetryPolicy(first=2.0, later=30.0)
_BUSY = (429, 502, 503, 504)
#: The query of a signed url has these names and no others.
_SIGNATURE_NAMES = ["exp", "sig"]
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=30.0)


class PeerFetcher:
    """Fetches artifacts from urls for which ``is_peer(url)`` is true. Redirects and proxies are not followed."""

    def __init__(self, store: LocalStore, is_peer: Callable[[str], bool], max_artifact_bytes: int) -> None:
        self._store = ThreadedStore(store)
        self._is_peer = is_peer
        self._limit = max_artifact_bytes
        self._session: aiohttp.ClientSession | None = None
        self._downloads: dict[str, asyncio.Task[bool]] = {}
        self._slots = asyncio.Semaphore(_MAX_PARALLEL)

    def allows(self, url: str, artifact: str) -> bool:
        """Return whether ``url`` is the address of ``artifact`` at a peer: no fragment, and no query but that of a signature."""
        try:
            parts = urlsplit(url)
            names = sorted(name for name, _ in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            return False
        # A fragment is not sent to the peer, so the path before it must be the artifact's; "#" alone is an empty fragment.
        addresses_artifact = "#" not in url and parts.path.endswith(f"/yggdrasill/v1/artifacts/{artifact}")
        return addresses_artifact and names in ([], _SIGNATURE_NAMES) and self._is_peer(url)

    async def fetch(self, ref: ArtifactRef) -> bool:
        """Download the bytes into the store; concurrent requests share one download. Return False and log the reason on failure."""
        if ref.url is None or not self.allows(ref.url, ref.hash) or ref.nbytes > self._limit:
            return False
        task = self._downloads.get(ref.hash)
        if task is None:
            task = self._downloads[ref.hash] = asyncio.create_task(self._fetch(ref, ref.url))
            task.add_done_callback(lambda _: self._downloads.pop(ref.hash, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel running downloads and close connections."""
        for task in list(self._downloads.values()):
            task.cancel()
        if self._downloads:
            await asyncio.wait(list(self._downloads.values()))
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, ref: ArtifactRef, url: str) -> bool:
        address = url.partition("?")[0]

        def open_range(start: int, stop: int) -> AbstractAsyncContextManager[RangeResponse]:
            return self._open_range(url, ref, start, stop)

        def mismatch(what: str) -> Exception:
            return CorruptData(f"the peer sent {what} bytes for artifact {ref.hash} of {ref.nbytes} bytes", hash=ref.hash)

        try:
            async with self._slots, aclosing(stream_ranges(open_range, (0, ref.nbytes), Retry(_RETRIES), mismatch)) as chunks:
                await self._store.put_stream(chunks, hash=ref.hash, nbytes=ref.nbytes, writer=Writer("peer"))
        except (OSError, YggdrasillError) as error:
            _LOG.warning("Cannot fetch an artifact from %s (%s: %s); the caller must upload it", address, type(error).__name__, error)
            return False
        return True

    @asynccontextmanager
    async def _open_range(self, url: str, ref: ArtifactRef, start: int, stop: int) -> AsyncIterator[RangeResponse]:
        """Request a range. Raises `EndpointUnreachable` for a lost connection or a busy peer, `EndpointFailed` for any other answer."""
        headers = {"Range": f"bytes={start}-{stop - 1}"} if (start, stop) != (0, ref.nbytes) else {}
        with _translated():
            response = await self._open_session().get(url, allow_redirects=False, headers=headers)
        try:
            expected = stop - start if response.status == 206 else ref.nbytes
            if response.status in _BUSY:
                raise EndpointUnreachable(f"the peer is busy (HTTP {response.status})")
            if (
                response.status not in (200, 206)
                or response.content_length not in (None, expected)
                or "Content-Encoding" in response.headers
            ):
                raise EndpointFailed(f"the peer answered {response.status} to a request for an artifact")
            yield _PeerResponse(response)
        finally:
            response.close() if not response.content.at_eof() else response.release()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=_TIMEOUT,
                auto_decompress=False,
                trust_env=False,
                read_bufsize=1 << 20,
                headers={"X-Yggdrasill-Protocol": "1", "Accept-Encoding": "identity"},
            )
        return self._session


class _PeerResponse:
    """A `RangeResponse` whose broken connections are `EndpointUnreachable`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            with _translated():
                chunk = await read_chunk(self._response.content)
            if not chunk:
                return
            yield chunk


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        raise EndpointUnreachable(f"the connection to the peer broke ({type(error).__name__}: {error})") from error
