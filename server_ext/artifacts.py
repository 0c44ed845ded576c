"""The artifacts that a job or a deployment needs before it starts, and those that are being written to the store."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Protocol

from yggdrasill.errors import StorageFailed, UnknownArtifact
from yggdrasill.values.payload import ArtifactRef
from yggdrasill.values.stores.base import LocalStore
from yggdrasill.values.stores.threaded import ThreadedStore

__all__ = ["ArtifactResolver", "Fetcher", "InFlightArtifacts", "PinThread"]

_LOG = logging.getLogger("yggdrasill.server")


class PinThread:
    """Leases of artifacts for jobs, made and ended in order on one thread, so that an event loop never waits for a disk."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "yggdrasill-leases")

    async def pin(self, owner: str, hashes: Iterable[str]) -> None:
        """Lease ``hashes`` for ``owner`` until `unpin`. Raises as `LocalStore.lease`; a cancelled caller waits for the end."""
        future = asyncio.wrap_future(self._thread.submit(self._store.lease, owner, list(hashes)))
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # retrieved, so that it is not logged
            raise

    def unpin(self, owner: str) -> None:
        """Release in the background all leases that ``owner`` received before."""
        self._submit(lambda: self._store.release(owner))

    def keep(self, owner: str, hashes: Iterable[str], measured: Callable[[int], None]) -> None:
        """Lease ``hashes`` in the background, and call ``measured`` from the thread with their bytes."""
        self._submit(lambda: self._keep(owner, list(hashes), measured))

    async def drain(self) -> None:
        """Return when all that was submitted before is done."""
        await asyncio.wrap_future(self._thread.submit(_do_nothing))

    async def release_others(self, prefix: str, owners: Collection[str]) -> None:
        """Release the leases of owners whose names begin with ``prefix`` and that are not among ``owners``."""

        def release() -> None:
            for owner in self._store.lease_owners():
                if owner.startswith(prefix) and owner not in owners:
                    self._store.release(owner)

        await asyncio.wrap_future(self._thread.submit(release))

    def close(self) -> None:
        """Finish what was submitted."""
        self._thread.shutdown(wait=True)

    def _keep(self, owner: str, hashes: list[str], measured: Callable[[int], None]) -> None:
        self._store.lease(owner, hashes)
        measured(sum(map(self._nbytes, hashes)))

    def _nbytes(self, name: str) -> int:
        try:
            return self._store.nbytes(name)
        except UnknownArtifact:
            return 0

    def _submit(self, act: Callable[[], None]) -> None:
        # After `close` the leases end with the process.
        with suppress(RuntimeError):
            self._thread.submit(act).add_done_callback(_log_failure)


def _do_nothing() -> None:
    """Do nothing."""


def _log_failure(future: Future[None]) -> None:
    error = future.exception()
    if isinstance(error, StorageFailed):
        _LOG.warning("Artifacts could not be leased: %s", error)
    elif error is not None:
        _LOG.error("Artifacts could not be leased", exc_info=error)


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
    """Ensures that all artifacts of a call or deployment are in the store: leases them and fetches missing ones from peers."""

    def __init__(self, store: LocalStore, pins: PinThread, fetcher: Fetcher) -> None:
        self._store, self._pins, self._fetcher = ThreadedStore(store), pins, fetcher

    async def gather(self, refs: list[ArtifactRef], owner: str) -> int:
        """Lease every artifact for ``owner``, fetch the missing ones, and return the number of bytes fetched.

        Raises:
            UnknownArtifact: some artifacts could not be fetched; their hashes are in ``details["missing"]``.
        """
        hashes = [ref.hash for ref in refs]
        await self._pins.pin(owner, hashes)
        missing = set(await self._store.missing(hashes))
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
