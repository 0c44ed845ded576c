"""Downloads artifacts from allowed peers straight into the store, so that they do not pass through the caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

import aiohttp

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.downloads import write_stream
from yggdrasill.server_ext.artifacts import in_store_thread, open_writer
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.stores.base import LocalStore

__all__ = ["PeerFetcher"]

_LOG = logging.getLogger("yggdrasill.server")
_MAX_PARALLEL = 4
#: The query of a signed url has these names and no others.
_SIGNATURE_NAMES = ["exp", "sig"]
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=30.0)


class PeerFetcher:
    """Fetches artifacts from urls for which ``is_peer(url)`` is true. Redirects and proxies are not followed."""

    def __init__(self, store: LocalStore, is_peer: Callable[[str], bool], max_artifact_bytes: int) -> None:
        self._store = store
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
        try:
            async with self._slots, self._open_session().get(url, allow_redirects=False) as response:
                if response.status != 200 or response.content_length not in (None, ref.nbytes) or "Content-Encoding" in response.headers:
                    _LOG.warning("%s answered %s to a request for an artifact; the caller must upload it", address, response.status)
                    return False
                async with open_writer(self._store, ref.hash, ref.nbytes) as writer:
                    await write_stream(response.content.iter_any(), writer)
                    await in_store_thread(writer.commit)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, YggdrasillError) as error:
            _LOG.warning("Cannot fetch an artifact from %s (%s: %s); the caller must upload it", address, type(error).__name__, error)
            return False
        return True

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
