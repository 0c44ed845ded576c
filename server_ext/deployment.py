"""A deployment: a runnable under a graph id, the hashes that identify deployments, states and calls, and the removal of idle ones."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import InvalidArgument, LimitExceeded, UnknownGraph
from yggdrasill.server_ext.principals import OWNER_NAME
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.wire import references

__all__ = [
    "Deployment",
    "IdleReaper",
    "RepeatedFailures",
    "body_hash",
    "canonical_json",
    "check_graph_id",
    "check_state_size",
    "deployment_hash",
    "file_name",
    "state_facts",
]

_MAX_ID_LENGTH = 200
_MAX_STATE_BYTES = 16 << 20


@dataclass(frozen=True)
class Deployment:
    """A runnable that is ready to run under a graph id.

    ``by_owner`` is True for deployments that the endpoint's owner configured; callers cannot replace them.
    """

    graph_id: str
    kind: str
    hash: str
    config: dict[str, Any]
    runnable: Any = field(repr=False)
    contract: dict[str, Any] = field(repr=False)
    by_owner: bool = False
    #: Seconds without a call after which the deployment is removed; None keeps it.
    idle_after: float | None = None
    #: The name of the principal that deployed it.
    deployer: str = OWNER_NAME

    @property
    def exclusive(self) -> bool:
        """Whether calls run one at a time, because they change the runnable's state."""
        return bool(self.contract["stateful"])

    @property
    def accepts_handles(self) -> bool:
        """Whether inputs may be handles. Stages accept them: they pass them to pipelines or carry them over."""
        return self.kind == "stage" or bool(getattr(self.runnable, "accepts_handles", False))

    def summary(self) -> dict[str, Any]:
        """Return ``{graph_id, kind, hash}``."""
        return {"graph_id": self.graph_id, "kind": self.kind, "hash": self.hash}


def check_graph_id(graph_id: str) -> str:
    """Return ``graph_id`` if it is a valid id.

    Raises:
        InvalidArgument: it is blank, too long or contains unprintable characters.
    """
    if not graph_id.strip() or len(graph_id) > _MAX_ID_LENGTH or not graph_id.isprintable():
        raise InvalidArgument(f"A graph id must have 1 to {_MAX_ID_LENGTH} printable characters, got {graph_id[:60]!r}.")
    return graph_id


def file_name(graph_id: str) -> str:
    """Return a file name for a graph id, without suffix. A hash in it prevents collisions and path traversal."""
    readable = re.sub(r"[^a-z0-9]+", "-", graph_id.lower()).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(graph_id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def deployment_hash(kind: str, config: Mapping[str, Any], state: Any = None) -> str:
    """Return the BLAKE3 hash of kind, config and ``state`` (as returned by `state_facts`)."""
    return blake3_hex(memoryview(canonical_json({"kind": kind, "config": config, "state": state})))


def _payload_hash(entry: Mapping[str, Any]) -> str:
    """Return the hash of a payload, inline or artifact."""
    return str(entry["artifact"]) if "artifact" in entry else blake3_hex(memoryview(base64.b64decode(entry["inline"])))


def state_facts(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a state in wire form: its skeleton and the hashes of its payloads."""
    return {"skeleton": state["skeleton"], "payloads": [_payload_hash(entry) for entry in state["payloads"]]}


def check_state_size(graph_id: str, state: Mapping[str, Any]) -> None:
    """Raise `LimitExceeded` if a state in wire form is too large to be sent along with a config, and `CorruptData` if it is malformed."""
    references(state)
    nbytes = sum(int(entry["nbytes"]) for entry in state["payloads"])
    if nbytes > _MAX_STATE_BYTES:
        raise LimitExceeded(
            f"The state of {graph_id!r} has {nbytes} bytes; at most {_MAX_STATE_BYTES} can be sent. Give its blocks a checkpoint_ref "
            "that exists on the endpoint.",
            bound=_MAX_STATE_BYTES,
            found=nbytes,
        )


def body_hash(graph_id: str, graph_hash: str, inputs: Mapping[str, Any], run: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return the hash that identifies a call: graph, inputs by content, options and run. Urls of artifacts do not count."""
    payloads = [{key: item for key, item in entry.items() if key not in ("url", "store")} for entry in inputs["payloads"]]
    value = {"skeleton": inputs["skeleton"], "payloads": payloads}
    facts = {"graph_id": graph_id, "hash": graph_hash, "inputs": value, "options": options, "run": run}
    return blake3_hex(memoryview(canonical_json(facts)))


_LOG = logging.getLogger("yggdrasill.server")
_SWEEP_SECONDS = 1.0


class IdleReaper:
    """Last call and time limit of each deployment with an ``idle_after``. Thread-safe.

    Deployments without a limit are never removed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called: dict[str, tuple[float, float]] = {}

    def start(self, graph_id: str, idle_after: float | None) -> None:
        """Track a deployment with a limit of ``idle_after`` seconds from now; None removes its limit."""
        with self._lock:
            self._called.pop(graph_id, None)
            if idle_after is not None:
                self._called[graph_id] = time.monotonic(), idle_after

    def touch(self, graph_id: str) -> None:
        """Record a call."""
        with self._lock:
            if graph_id in self._called:
                self._called[graph_id] = time.monotonic(), self._called[graph_id][1]

    def untrack(self, graph_id: str) -> None:
        """Stop tracking a deployment."""
        with self._lock:
            self._called.pop(graph_id, None)

    def idle(self) -> list[str]:
        """Return the ids of deployments whose limit has expired."""
        now = time.monotonic()
        with self._lock:
            return [graph_id for graph_id, (called, limit) in self._called.items() if now - called > limit]

    async def sweep(self, in_use: Callable[[], Iterable[str]], remove: Callable[[str], None]) -> None:
        """Remove idle deployments with ``remove(graph_id)``, in a thread, until cancelled. Ids in ``in_use()`` count as called.

        A failed removal is tried again after another ``idle_after`` seconds.
        """
        failures = RepeatedFailures("The removal of idle graphs failed; it is repeated.")
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            with failures.logged():
                for graph_id in in_use():
                    self.touch(graph_id)
                for graph_id in self.idle():
                    await self._remove(graph_id, remove)

    async def _remove(self, graph_id: str, remove: Callable[[str], None]) -> None:
        try:
            await asyncio.to_thread(remove, graph_id)
        except UnknownGraph:
            self.untrack(graph_id)
        except Exception as error:  # noqa: BLE001 - one graph must not keep the others from being removed
            self.touch(graph_id)
            _LOG.warning("Idle graph %r cannot be removed: %s: %s", graph_id, type(error).__name__, error)
        else:
            _LOG.info("Idle graph %r was removed: it was not called within its idle_after.", graph_id)


class RepeatedFailures:
    """The failures of a periodic task, which must survive them. Each kind of exception is logged once, with ``message``."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._seen: set[type[Exception]] = set()

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Catch and log exceptions raised inside."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the periodic task must survive every error
            if type(error) not in self._seen:
                self._seen.add(type(error))
                _LOG.exception(self._message)
