"""Direct hand-over: artifacts from endpoints whose addresses this one's owner has named, streamed into the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.downloads import write_stream
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.stores.base import ArtifactStore

__all__ = ["PeerFetcher"]

_LOG = logging.getLogger("yggdrasill.server")
_AT_A_TIME = 4
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=30.0)


class PeerFetcher:
    """Fetches where ``is_peer(url)`` holds and from nowhere else: no redirect is followed and no proxy asked."""

    def __init__(self, store: ArtifactStore, is_peer: Callable[[str], bool], max_artifact_bytes: int) -> None:
        self._store = store
        self._is_peer = is_peer
        self._limit = max_artifact_bytes
        self._session: aiohttp.ClientSession | None = None
        self._under_way: dict[str, asyncio.Task[bool]] = {}
        self._turn = asyncio.Semaphore(_AT_A_TIME)

    def allows(self, url: str, artifact: str) -> bool:
        """Whether ``url`` is the address of ``artifact`` at a peer."""
        return url.partition("?")[0].endswith(f"/yggdrasill/v1/artifacts/{artifact}") and self._is_peer(url)

    async def fetch(self, ref: ArtifactRef) -> bool:
        """Bring the bytes into the store, once for all who ask meanwhile; False if that did not work, and the log says why."""
        if ref.url is None or not self.allows(ref.url, ref.hash) or ref.nbytes > self._limit:
            return False
        task = self._under_way.get(ref.hash)
        if task is None:
            task = self._under_way[ref.hash] = asyncio.create_task(self._fetch(ref, ref.url))
            task.add_done_callback(lambda _: self._under_way.pop(ref.hash, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is under way, and connections."""
        for task in list(self._under_way.values()):
            task.cancel()
        if self._under_way:
            await asyncio.wait(list(self._under_way.values()))
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, ref: ArtifactRef, url: str) -> bool:
        place = url.partition("?")[0]
        try:
            async with self._turn, self._connections().get(url, allow_redirects=False) as response:
                if response.status != 200 or response.content_length not in (None, ref.nbytes) or "Content-Encoding" in response.headers:
                    _LOG.warning("%s answered %s to a request for an artifact; the caller will bring it", place, response.status)
                    return False
                with self._store.writer(ref.hash, ref.nbytes) as writer:
                    await write_stream(response.content.iter_any(), writer)
                    await asyncio.to_thread(writer.commit)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, YggdrasillError) as error:
            _LOG.warning("an artifact could not be fetched from %s (%s: %s); the caller will bring it", place, type(error).__name__, error)
            return False
        return True

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=_TIMEOUT,
                auto_decompress=False,
                trust_env=False,
                read_bufsize=1 << 20,
                headers={"X-Yggdrasill-Protocol": "1", "Accept-Encoding": "identity"},
            )
        return self._session
