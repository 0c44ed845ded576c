"""Having the artifacts of a call or a deployment here before it begins: pinned, fetched from peers, or named as missing."""

from __future__ import annotations

import asyncio
from typing import Protocol

from yggdrasill.errors import UnknownArtifact
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.stores.base import ArtifactStore

__all__ = ["ArtifactResolver", "Fetcher"]


class Fetcher(Protocol):
    """Gets artifacts from other endpoints, as far as this one's owner allows it."""

    def allows(self, url: str, artifact: str) -> bool:
        """Whether ``artifact`` may be fetched from ``url``."""
        ...

    async def fetch(self, ref: ArtifactRef) -> bool:
        """Bring the bytes into the store; False if that did not work, for whatever reason."""
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...


class ArtifactResolver:
    """Over the endpoint's store and its way to other endpoints."""

    def __init__(self, store: ArtifactStore, fetcher: Fetcher) -> None:
        self._store, self._fetcher = store, fetcher

    async def gather(self, refs: list[ArtifactRef], owner: str) -> int:
        """Have every artifact in the store and pinned; gives the bytes that were fetched.

        Raises:
            UnknownArtifact: ``details["missing"]``.
        """
        hashes = [ref.hash for ref in refs]
        self._store.pin(owner, hashes)
        missing = set(await asyncio.to_thread(self._store.missing, hashes))
        if not missing:
            return 0
        wanted = [ref for ref in refs if ref.hash in missing and ref.url is not None and self._fetcher.allows(ref.url, ref.hash)]
        came = await asyncio.gather(*(self._fetcher.fetch(ref) for ref in wanted))
        fetched = {ref.hash: ref.nbytes for ref, ok in zip(wanted, came, strict=True) if ok}
        lacking = [name for name in hashes if name in missing and name not in fetched]
        if lacking:
            raise UnknownArtifact(
                f"this endpoint lacks {len(lacking)} of the {len(hashes)} artifacts of the inputs; send them, then send the same call again",
                missing=lacking,
            )
        return sum(fetched.values())

    async def close(self) -> None:
        """Give up what is being fetched."""
        await self._fetcher.close()
