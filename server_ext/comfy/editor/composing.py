"""What a graph that was put together on the canvas takes and gives, before anything of it runs."""

from __future__ import annotations

import asyncio

from aiohttp import web

from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.levels.composed import PortsModel, composed_contract

__all__ = ["Composing"]


class Composing:
    """The handler."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard

    async def ports(self, request: web.Request) -> web.Response:
        """POST /ports: its contract."""
        body = await self._guard.body(request, PortsModel)
        return json_answer({"contract": await asyncio.to_thread(composed_contract, body)})
