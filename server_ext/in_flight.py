"""Artifacts that are on their way to the disk, to be had from memory meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["InFlightArtifacts"]


class InFlightArtifacts:
    """Memory that somebody may still write to: whoever takes it compares the hash. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, tuple[memoryview, int]] = {}

    @contextmanager
    def offered(self, digest: str, view: memoryview) -> Iterator[None]:
        """Let ``view`` stand for the artifact ``digest`` while this is open."""
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
        """The bytes, if they are on their way right now."""
        found = self._views.get(digest)
        return None if found is None else found[0]
