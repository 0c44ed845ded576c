"""Refuses posted prompts with placed parts where placement is off, so that no placed part runs locally without notice.

It is a middleware of ComfyUI's web application, because the hooks that placement itself uses may be what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from yggdrasill.errors import InvalidConfig, YggdrasillError
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.placement.validation_result import error_result
from yggdrasill.server_ext.comfy.placement.workflow_placements import WorkflowPlacements, posted_parts

__all__ = ["refuse_placed_prompts", "refuse_prompt"]

_PATHS = frozenset({"/prompt", "/api/prompt"})


_NOTHING_STORED = WorkflowPlacements(None)


def refuse_placed_prompts(
    app: web.Application, reason: str, read_registry: Callable[[], EndpointRegistry], stored: WorkflowPlacements = _NOTHING_STORED
) -> None:
    """Answer each POST /prompt that has placed parts with ComfyUI's error response and ``reason``. Call it before the server starts."""

    @web.middleware
    async def refuse(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if request.method != "POST" or request.path not in _PATHS:
            return await handler(request)
        # the handler receives the same bytes: the request keeps them
        refusal = refuse_prompt(await request.read(), reason, read_registry, stored)
        return await handler(request) if refusal is None else web.json_response(refusal, status=400)

    app.middlewares.append(refuse)


def _none(
    body: bytes, reason: str, read_registry: Callable[[], EndpointRegistry], stored: WorkflowPlacements = _NOTHING_STORED
) -> dict[str, Any] | None:
    return None


@compat.guarded("a prompt could not be checked for placed parts", _none)
def refuse_prompt(
    body: bytes, reason: str, read_registry: Callable[[], EndpointRegistry], stored: WorkflowPlacements = _NOTHING_STORED
) -> dict[str, Any] | None:
    """Return ComfyUI's error response for a posted body with placed parts, or None for one without."""
    try:
        posted = json.loads(body)
    except ValueError:
        return None
    prompt = posted.get("prompt") if isinstance(posted, dict) else None
    if not isinstance(prompt, dict):
        return None
    registry = read_registry()
    nodes, refused = list(prompt)[:1], list[str]()
    try:
        parts = posted_parts(posted, prompt, registry, stored).parts
    except YggdrasillError as found:
        names = f"The placement of this workflow is not valid ({found.message}), and"
    else:
        if not parts:
            return None
        names = f"Part {parts[0].part.name!r} is placed on an endpoint, but"
        nodes, refused = sorted({node for placed in parts for node in placed.part.nodes}), [placed.part.name for placed in parts]
    problem = InvalidConfig(f"{names} placement is off in this ComfyUI: {reason}. Remove the placement to run the workflow here.")
    _, error, _, node_errors = error_result(problem, prompt, nodes, refused)
    return {"error": error, "node_errors": node_errors}
