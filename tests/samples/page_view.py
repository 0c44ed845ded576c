"""The view that an editor page has of a prompt: its messages and images, the response to POST /prompt, the history entry."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from samples.comfy import Server

__all__ = ["Shown", "on_endpoints", "show"]


@dataclass
class Shown:
    """A prompt as a page sees it."""

    status: int
    answer: dict[str, Any]
    entry: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    #: Previews without metadata, and texts by node.
    pictures: list[bytes] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages of a kind."""
        return [data for name, data in self.messages if name == kind]

    @property
    def ran(self) -> set[str]:
        """The nodes that were executed, as the editor shows them."""
        return {str(data["display_node"]) for data in self.of("executing") if data.get("node") is not None}

    @property
    def cached(self) -> set[str]:
        """The nodes that came from a cache."""
        return {str(node) for data in self.of("execution_cached") for node in data["nodes"]}

    @property
    def error(self) -> dict[str, Any]:
        """The error that the prompt ended with."""
        return self.of("execution_error")[-1]

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs by node in the history."""
        found: dict[str, Any] = self.entry["outputs"]
        return found


def on_endpoints(**parts: tuple[str, list[str]]) -> dict[str, Any]:
    """Return the ``extra_data`` that places parts: name, endpoint and nodes of each."""
    return {"yggdrasill": {"graphs": {name: {"nodes": nodes, "endpoint": endpoint} for name, (endpoint, nodes) in parts.items()}}}


def show(
    server: Server,
    prompt: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    *,
    seconds: float = 100,
    knows_metadata: bool = True,
    **body: Any,
) -> Shown:
    """Queue a prompt as a page does, and watch it to its end. A page with ``knows_metadata`` takes previews with metadata."""
    whole = {**body, "prompt": prompt, "extra_data": dict(extra or {})}
    return asyncio.run(asyncio.wait_for(_show(server, whole, knows_metadata), seconds))


async def _show(server: Server, body: dict[str, Any], knows_metadata: bool) -> Shown:
    page = uuid.uuid4().hex
    async with aiohttp.ClientSession(server.url) as session, session.ws_connect("/ws", params={"clientId": page}, max_msg_size=0) as socket:
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": knows_metadata}})
        async with session.post("/prompt", json={**body, "client_id": page}) as answer:
            shown = Shown(answer.status, await answer.json())
        if shown.status != 200:
            return shown
        prompt_id = shown.answer["prompt_id"]
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                _take_binary(shown, message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                data = json.loads(message.data)
                if (data.get("data") or {}).get("prompt_id") == prompt_id:
                    shown.messages.append((data["type"], data["data"]))
                    if data["type"] == "executing" and data["data"]["node"] is None:
                        break
        async with session.get(f"/history/{prompt_id}") as answer:
            shown.entry = (await answer.json())[prompt_id]
    return shown


def _take_binary(shown: Shown, message: bytes) -> None:
    """Parse a binary message: u32 4, u32 length, JSON, image; or u32 3, u32 length, node, text; or u32 1, u32 format, image."""
    kind, length = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == 4:
        shown.previews.append((json.loads(message[8 : 8 + length]), message[8 + length :]))
    elif kind == 3:
        shown.texts.append((message[8 : 8 + length].decode(), message[8 + length :].decode()))
    elif kind == 1:
        shown.pictures.append(message[4:])
