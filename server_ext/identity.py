"""When two calls are the same call, and two states the same state."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from yggdrasill.server_ext.deployments import Deployment, canonical_json

__all__ = ["body_hash", "state_facts"]


def _payload_name(entry: Mapping[str, Any]) -> str:
    """The hash of a payload, wherever its bytes are."""
    from blake3 import blake3

    return str(entry["artifact"]) if "artifact" in entry else blake3(base64.b64decode(entry["inline"])).hexdigest()


def state_facts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two states the same: skeleton and payloads by hash."""
    return {"skeleton": state["skeleton"], "payloads": [_payload_name(entry) for entry in state["payloads"]]}


def body_hash(deployment: Deployment, inputs: Mapping[str, Any], run: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What makes two calls the same: graph, inputs by content, options, run; not where the inputs may be fetched."""
    from blake3 import blake3

    payloads = [{key: item for key, item in entry.items() if key not in ("url", "store")} for entry in inputs["payloads"]]
    value = {"skeleton": inputs["skeleton"], "payloads": payloads}
    facts = {"graph_id": deployment.graph_id, "hash": deployment.hash, "inputs": value, "options": options, "run": run}
    return blake3(canonical_json(facts)).hexdigest()
