"""The input values of jobs by content hash. Input nodes contain the hash, so equal inputs give equal prompts."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from yggdrasill.errors import UnknownArtifact
from yggdrasill.server_ext.deployment import canonical_json
from yggdrasill.values.handles import load_handles
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.wire import described

__all__ = ["JobInputs", "content_hash"]


def content_hash(value: Any) -> str:
    """Return the BLAKE3 hash of the wire form of ``value``: equal for equal bits in equal memory order, and for handles to them.

    Raises:
        CannotTravel: part of the value has no lossless wire form.
    """
    return blake3_hex(memoryview(canonical_json(described(value))))


class JobInputs:
    """Values by hash, each kept while a running job needs it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, tuple[Any, int]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def put(self, value: Any) -> str:
        """Store a value until `drop` has been called once per `put`, and return its hash. Raises as `content_hash`."""
        digest = content_hash(value)
        with self._lock:
            known, users = self._values.get(digest, (value, 0))
            self._values[digest] = known, users + 1
        return digest

    def take(self, digest: str) -> Any:
        """Return a value with its handles loaded.

        Raises:
            UnknownArtifact: no running job needs the value.
        """
        with self._lock:
            found = self._values.get(digest)
        if found is None:
            raise UnknownArtifact(
                f"The input {digest[:12]}... belongs to a job that has ended. Start the job again instead of its prompt.", name=digest
            )
        return load_handles(found[0])

    def drop(self, digests: Iterable[str]) -> None:
        """Undo one `put` of each value."""
        with self._lock:
            for digest in digests:
                value, users = self._values.pop(digest)
                if users > 1:
                    self._values[digest] = value, users - 1
