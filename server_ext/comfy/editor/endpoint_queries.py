"""Queries to other endpoints while a user waits: each has a timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from yggdrasill.errors import EndpointUnreachable, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext.comfy.url_redaction import redact_urls

__all__ = ["CALLABLE", "query_endpoint", "served_graphs"]

CALLABLE = ("graph", "pipeline", "comfy")
"""The kinds of graphs that a Remote Graph node can call."""
_TIMEOUT = 10.0
_Answer = TypeVar("_Answer")


async def query_endpoint(client: EndpointClient, request: Coroutine[Any, Any, _Answer], timeout: float = _TIMEOUT) -> _Answer:
    """Return the answer of another endpoint within ``timeout`` seconds.

    Raises:
        EndpointUnreachable, and the errors of the endpoint, without its URL.
    """
    try:
        return await asyncio.wait_for(loop_thread().run_async(request), timeout)
    except asyncio.TimeoutError:
        raise EndpointUnreachable(f"endpoint {client.name!r} did not answer within {timeout:g} s", endpoint=client.name) from None
    except YggdrasillError as error:
        raise redact_urls(error, client.url) from error


async def served_graphs(client: EndpointClient) -> list[dict[str, Any]]:
    """Return the graphs at an endpoint that can be called, as ``{graph_id, kind}``. Raises as `query_endpoint`."""
    served = await query_endpoint(client, client.graphs())
    return [{"graph_id": entry["graph_id"], "kind": entry["kind"]} for entry in served if entry["kind"] in CALLABLE]
