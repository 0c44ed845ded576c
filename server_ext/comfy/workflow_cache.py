"""A file cache of other endpoints' workflows: for each endpoint and graph the last one called, under the hash of its config."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yggdrasill.server_ext.deployment import deployment_hash
from yggdrasill.values.files import write_file
from yggdrasill.values.payload import blake3_hex

__all__ = ["MAX_WORKFLOWS", "CachedWorkflow", "WorkflowCache"]

MAX_WORKFLOWS = 200


@dataclass(frozen=True)
class CachedWorkflow:
    """A workflow's config as an endpoint served it. ``torch`` is that endpoint's build, ``kept`` the time of caching in seconds since 1970."""

    endpoint: str
    graph_id: str
    hash: str
    config: dict[str, Any]
    torch: dict[str, Any] | None = None
    kept: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Return whether the config has the recorded hash."""
        return deployment_hash("comfy", self.config) == self.hash


class WorkflowCache:
    """The files in ``folder``, which is created on the first write. Beyond `MAX_WORKFLOWS`, the least recently written are deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, endpoint: str, graph_id: str) -> CachedWorkflow | None:
        """Return the cached workflow of a graph, or None if there is none or its file is damaged."""
        try:
            record = json.loads(self._file(endpoint, graph_id).read_text(encoding="utf-8"))
            copy = CachedWorkflow(**record)
            sound = (copy.endpoint, copy.graph_id) == (endpoint, graph_id) and isinstance(copy.kept, (int, float)) and copy.is_sound
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return copy if sound else None

    def write(self, copy: CachedWorkflow) -> None:
        """Store ``copy`` in place of an earlier one of the same graph.

        Raises:
            StorageFailed
        """
        record = {**asdict(copy), "kept": copy.kept or time.time()}
        write_file(self._file(copy.endpoint, copy.graph_id), json.dumps(record).encode("utf-8"), durable=True)
        with contextlib.suppress(OSError):
            for file in sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-MAX_WORKFLOWS]:
                file.unlink()

    def drop(self, endpoint: str, graph_id: str) -> None:
        """Delete the cached workflow of a graph."""
        with contextlib.suppress(OSError):
            self._file(endpoint, graph_id).unlink()

    def _file(self, endpoint: str, graph_id: str) -> Path:
        return self._folder / f"{blake3_hex(memoryview(json.dumps([endpoint, graph_id]).encode('utf-8')))[:32]}.json"
