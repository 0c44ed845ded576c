"""When two deployments, two states, or two calls are the same: hashes of what makes them so."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.values.payload import blake3_hex

__all__ = ["body_hash", "canonical_json", "deployment_hash", "state_facts"]


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def deployment_hash(kind: str, config: Mapping[str, Any], state: Any = None) -> str:
    """The name of what is deployed: blake3 over kind, config and ``state`` (its skeleton and payload hashes)."""
    return blake3_hex(memoryview(canonical_json({"kind": kind, "config": config, "state": state})))


def _payload_name(entry: Mapping[str, Any]) -> str:
    """The hash of a payload, wherever its bytes are."""
    return str(entry["artifact"]) if "artifact" in entry else blake3_hex(memoryview(base64.b64decode(entry["inline"])))


def state_facts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two states the same: skeleton and payloads by hash."""
    return {"skeleton": state["skeleton"], "payloads": [_payload_name(entry) for entry in state["payloads"]]}


def body_hash(deployment: Deployment, inputs: Mapping[str, Any], run: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What makes two calls the same: graph, inputs by content, options, run; not where the inputs may be fetched."""
    payloads = [{key: item for key, item in entry.items() if key not in ("url", "store")} for entry in inputs["payloads"]]
    value = {"skeleton": inputs["skeleton"], "payloads": payloads}
    facts = {"graph_id": deployment.graph_id, "hash": deployment.hash, "inputs": value, "options": options, "run": run}
    return blake3_hex(memoryview(canonical_json(facts)))
