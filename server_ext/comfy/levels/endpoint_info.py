"""The answers of endpoints for the Endpoint Info node."""

from __future__ import annotations

import asyncio
from typing import Any

from yggdrasill.errors import RemoteError, UnknownEndpoint
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext.comfy.extension_context import extension_context

__all__ = ["query_endpoints", "unknown_endpoint"]

_TIMEOUT = 15.0


def unknown_endpoint(name: Any) -> str | None:
    """Return the message that no endpoint has this name, or None if one has or the name is blank."""
    if not isinstance(name, str) or not name.strip():
        return None
    try:
        extension_context().registry.endpoint(name.strip())
    except UnknownEndpoint as error:
        return error.message
    return None


def query_endpoints(name: str) -> tuple[bool, str, str]:
    """Return whether the endpoint (or every endpoint, for a blank name) answers, its answers as YAML, and the graphs it serves.

    Raises:
        UnknownEndpoint
    """
    from yaml import safe_dump

    registry = extension_context().registry
    names = [registry.endpoint(name.strip()).name] if name.strip() else sorted(registry.endpoints)
    answers = loop_thread().run(_query_all([registry.client(one) for one in names]))
    served = [f"{one}/{graph}" for one, answer in answers.items() for graph in answer.get("graphs", ())]
    text = safe_dump(answers, sort_keys=False, allow_unicode=True) if answers else ""
    return bool(answers) and all("error" not in answer for answer in answers.values()), text, "\n".join(served)


async def _query_all(clients: list[EndpointClient]) -> dict[str, dict[str, Any]]:
    return dict(zip([client.name for client in clients], await asyncio.gather(*map(_query, clients)), strict=True))


async def _query(client: EndpointClient) -> dict[str, Any]:
    try:
        parts = await asyncio.wait_for(asyncio.gather(client.health(), client.capabilities(), client.graphs()), _TIMEOUT)
    except asyncio.TimeoutError:
        return {"error": f"no answer within {_TIMEOUT:g} s"}
    except RemoteError as error:
        return {"error": error.message}
    health, capabilities, graphs = parts
    about = {key: capabilities[key] for key in ("host", "versions", "devices") if key in capabilities}
    return {**health, **about, "graphs": [entry["graph_id"] for entry in graphs]}
