"""The summary of an endpoint that the editor shows: whether it is up, its versions, its load and its inventory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from yggdrasill.server_ext.comfy.placement.endpoint_monitor import STARTING, EndpointState

__all__ = ["LOOPBACK", "endpoint_summary", "host_of", "models_of"]

LOOPBACK = ("127.", "localhost", "[::1]")
"""How the addresses of one machine itself begin."""

_STATES = {
    "EndpointUnreachable": "down",
    "AccessDenied": "refused",
    "ProtocolMismatch": "other version",
    STARTING: "starting",
    None: "down",
}


def endpoint_summary(state: EndpointState, url: str) -> dict[str, Any]:
    """Return ``{name, host, state, problem, version, comfy, torch, queue, memory, devices, models, graphs}``.

    The last eight are present only if the endpoint is up. ``state`` is ``up``, ``down``, ``refused`` (the token), ``other version``,
    ``starting`` or ``failing``; ``problem`` is the error message. ``models`` has the number of files in each folder.
    """
    facts: dict[str, Any] = {"name": state.name, "host": host_of(url), "state": "up", "problem": None}
    if not state.up:
        return {**facts, "state": _STATES.get(state.kind, "failing"), "problem": state.reason or "no answer yet"}
    comfy = state.facts.get("comfy") or {}
    return {
        **facts,
        "version": state.health.get("version"),
        "queue": dict(state.queue),
        "memory": state.health.get("memory") or [],
        "comfy": comfy.get("version"),
        "torch": (state.facts.get("torch") or {}).get("version"),
        "devices": [device.get("name") for device in state.facts.get("devices") or ()],
        "models": {folder: len(files) for folder, files in models_of(state.facts).items()},
        "graphs": state.facts.get("graphs"),
    }


def host_of(url: str) -> str:
    """Return the host and port of a URL. The path is left out because it may contain a key of a gateway."""
    return urlsplit(url).netloc


def models_of(capabilities: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the model files by folder, empty for an endpoint that is not a ComfyUI."""
    comfy = capabilities.get("comfy")
    models = comfy.get("models") if isinstance(comfy, Mapping) else None
    return {str(folder): [str(file) for file in files] for folder, files in models.items()} if isinstance(models, Mapping) else {}
