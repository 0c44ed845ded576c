"""The capabilities of an endpoint: versions, torch build, devices, block types, limits."""

from __future__ import annotations

import platform
from typing import Any

import yggdrasill
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.protocol.version import OLDEST_PROTOCOL, PROTOCOL
from yggdrasill.server_ext.service import Service

__all__ = ["describe_endpoint"]


def describe_endpoint(service: Service) -> dict[str, Any]:
    """Return the body of ``GET /capabilities``. Imports torch, which takes time on the first call."""
    from yggdrasill.values.wire import INLINE_BYTES

    limits = service.limits
    return {
        "protocol": PROTOCOL,
        "oldest_protocol": OLDEST_PROTOCOL,
        "version": yggdrasill.__version__,
        "host": service.host.name,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_torch(),
        "block_types": BlockRegistry.global_registry().types(),
        "limits": {
            "max_body_bytes": limits.max_body_bytes,
            "max_artifact_bytes": limits.max_artifact_bytes,
            "max_queue": limits.max_queue,
            "inline_bytes": INLINE_BYTES,
        },
        "store_id": service.store.store_id,
        "peer_url": service.signer.peer_url,
        "graphs": len(service.deployments.names()),
        "model_sources": list(service.models.prefixes) if service.models else [],
        **service.host.describe(),
    }


def _torch() -> dict[str, Any]:
    import torch

    devices: list[dict[str, Any]] = [{"name": platform.processor() or platform.machine(), "type": "cpu", "memory": None}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": properties.name, "type": "cuda", "memory": properties.total_memory})
    build = {"version": str(torch.__version__), "cuda": torch.version.cuda, "git": torch.version.git_version}
    return {"torch": build, "devices": devices}
