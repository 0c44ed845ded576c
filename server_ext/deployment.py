"""A deployment: a runnable under a graph id, and the hashes that identify deployments, states and calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.principals import OWNER_NAME
from yggdrasill.values.payload import blake3_hex

__all__ = ["Deployment", "body_hash", "canonical_json", "check_graph_id", "deployment_hash", "file_name", "state_facts"]

_MAX_ID_LENGTH = 200


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


def body_hash(deployment: Deployment, inputs: Mapping[str, Any], run: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return the hash that identifies a call: graph, inputs by content, options and run. Urls of artifacts do not count."""
    payloads = [{key: item for key, item in entry.items() if key not in ("url", "store")} for entry in inputs["payloads"]]
    value = {"skeleton": inputs["skeleton"], "payloads": payloads}
    facts = {"graph_id": deployment.graph_id, "hash": deployment.hash, "inputs": value, "options": options, "run": run}
    return blake3_hex(memoryview(canonical_json(facts)))
