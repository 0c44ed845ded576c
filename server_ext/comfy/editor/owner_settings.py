"""Routes for the settings of this server that its owner changes in the editor. They are stored in settings.yaml; the rest of it is unchanged."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.settings import ComfySettings
from yggdrasill.values.files import write_file

__all__ = ["OwnerSettings", "SettingsModel"]

_QUEUE = re.compile(r"(?m)^queue:[^#\n]*?(?=[ \t]*(?:#|$))")


class SettingsModel(BaseModel):
    """How calls of other machines are queued relative to the owner's prompts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queue: Literal["fifo", "front"]


class OwnerSettings:
    """The handlers, over a settings.yaml."""

    def __init__(self, file: Path, guard: RouteGuard) -> None:
        self._file, self._guard = file, guard

    async def settings(self, request: web.Request) -> web.Response:
        """Answer GET /settings: the current ``{queue}``."""
        return json_answer({"queue": extension_context().runner.policy})

    async def change(self, request: web.Request) -> web.Response:
        """Answer POST /settings: apply the settings now and after a restart. Raises `InvalidConfig`, `StorageFailed`."""
        body = await self._guard.body(request, SettingsModel)
        await asyncio.to_thread(self._write, body.queue)
        extension_context().runner.policy = body.queue
        return json_answer({"queue": body.queue})

    def _write(self, queue: str) -> None:
        ComfySettings.read(self._file)
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        line = f"queue: {queue}"
        changed, found = _QUEUE.subn(line, text, count=1)
        write_file(self._file, (changed if found else f"{line}\n{text}").encode("utf-8"))
