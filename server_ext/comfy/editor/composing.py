"""What a graph that was put together on the canvas takes and gives, before anything of it runs."""

from __future__ import annotations

import asyncio

from aiohttp import web

from yggdrasill.server_ext.comfy.editor.door import Door, json_answer
from yggdrasill.server_ext.comfy.levels.composed import PortsModel, composed_contract

__all__ = ["Composing"]


class Composing:
    """The handler."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def ports(self, request: web.Request) -> web.Response:
        """POST /ports: its contract."""
        body = await self._door.body(request, PortsModel)
        return json_answer({"contract": await asyncio.to_thread(composed_contract, body)})
