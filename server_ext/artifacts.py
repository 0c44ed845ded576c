"""The artifacts that a job or a deployment needs before it starts, and those that are being written to the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from yggdrasill.errors import UnknownArtifact
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.stores.base import ArtifactStore

__all__ = ["ArtifactResolver", "Fetcher", "InFlightArtifacts"]


class Fetcher(Protocol):
    """A client that downloads artifacts from the endpoints that this endpoint's owner allows."""

    def allows(self, url: str, artifact: str) -> bool:
        """Return whether ``artifact`` may be fetched from ``url``."""
        ...

    async def fetch(self, ref: ArtifactRef) -> bool:
        """Download the bytes into the store. Return False on any failure."""
        ...

    async def close(self) -> None:
        """Cancel running downloads and close connections."""
        ...


class ArtifactResolver:
    """Ensures that all artifacts of a call or deployment are in the store: pins them and fetches missing ones from peers."""

    def __init__(self, store: ArtifactStore, fetcher: Fetcher) -> None:
        self._store, self._fetcher = store, fetcher

    async def gather(self, refs: list[ArtifactRef], owner: str) -> int:
        """Pin every artifact for ``owner``, fetch the missing ones, and return the number of bytes fetched.

        Raises:
            UnknownArtifact: some artifacts could not be fetched; their hashes are in ``details["missing"]``.
        """
        hashes = [ref.hash for ref in refs]
        self._store.pin(owner, hashes)
        missing = set(await asyncio.to_thread(self._store.missing, hashes))
        if not missing:
            return 0
        fetchable = [ref for ref in refs if ref.hash in missing and ref.url is not None and self._fetcher.allows(ref.url, ref.hash)]
        results = await asyncio.gather(*(self._fetcher.fetch(ref) for ref in fetchable))
        fetched = {ref.hash: ref.nbytes for ref, ok in zip(fetchable, results, strict=True) if ok}
        lacking = [name for name in hashes if name in missing and name not in fetched]
        if lacking:
            raise UnknownArtifact(
                f"this endpoint lacks {len(lacking)} of the {len(hashes)} artifacts of the inputs; send them, then send the same call again",
                missing=lacking,
            )
        return sum(fetched.values())

    async def close(self) -> None:
        """Cancel running downloads."""
        await self._fetcher.close()


class InFlightArtifacts:
    """Buffers of artifacts that are being written to disk, so that they can be sent from memory. Thread-safe.

    A buffer may still change after it was sent, so the receiver must verify the hash.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, tuple[memoryview, int]] = {}

    @contextmanager
    def register(self, digest: str, view: memoryview) -> Iterator[None]:
        """Serve ``view`` as the artifact ``digest`` inside the ``with`` block. Registrations may overlap."""
        with self._lock:
            known, users = self._views.get(digest, (view, 0))
            self._views[digest] = known, users + 1
        try:
            yield
        finally:
            with self._lock:
                known, users = self._views.pop(digest)
                if users > 1:
                    self._views[digest] = known, users - 1

    def get(self, digest: str) -> memoryview | None:
        """Return the bytes of an artifact that is being written, or None."""
        found = self._views.get(digest)
        return None if found is None else found[0]
