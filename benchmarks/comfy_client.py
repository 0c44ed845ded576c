"""A client of a ComfyUI server like a browser's page: queues a prompt and receives its messages until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

__all__ = ["Ended", "Page"]

LONGEST_SECONDS = 300.0


@dataclass
class Ended:
    """The result of a prompt: the outputs of each output node, and the number of previews."""

    reported: dict[str, Any] = field(default_factory=dict)
    previews: int = 0


class Page:
    """One connection to the server at ``url``, open while `open` is entered. Not for several threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sid = uuid.uuid4().hex
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession
        self._socket: Any

    @classmethod
    @contextlib.contextmanager
    def open(cls, url: str) -> Iterator[Page]:
        """Connect, and close at the end of the block."""
        page = cls(url)
        page._loop.run_until_complete(page._connect())
        try:
            yield page
        finally:
            page._loop.run_until_complete(page._session.close())
            page._loop.close()

    def run(self, prompt: Mapping[str, Any], path: str = "/prompt", **body: Any) -> Ended:
        """Queue the prompt and return when ComfyUI reports its end.

        Raises:
            RuntimeError: the prompt was refused or failed; the message is ComfyUI's.
        """
        request = {"client_id": self.sid, "prompt": prompt, **body}
        return self._loop.run_until_complete(asyncio.wait_for(self._run(path, request), LONGEST_SECONDS))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON response to a JSON request.

        Raises:
            RuntimeError: the request was refused.
        """
        return self._loop.run_until_complete(self._post(path, body))

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``."""
        return self._loop.run_until_complete(self._get(path))

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession(self.url)
        self._socket = await self._session.ws_connect(f"/ws?clientId={self.sid}", max_msg_size=0)
        await self._socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})

    async def _get(self, path: str) -> Any:
        async with self._session.get(path) as answer:
            return await answer.json()

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._session.post(path, json=body) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise RuntimeError(f"{path}: HTTP {answer.status}: {text[:2000]}")
            return json.loads(text)

    async def _run(self, path: str, request: Mapping[str, Any]) -> Ended:
        prompt_id = (await self._post(path, request))["prompt_id"]
        ended = Ended()
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                ended.previews += int.from_bytes(message.data[:4], "big") in (1, 4)
            elif message.type is aiohttp.WSMsgType.TEXT and _is_last(message.json(), prompt_id, ended):
                return ended
        raise RuntimeError("the server closed the connection")


def _is_last(message: Mapping[str, Any], prompt_id: str, ended: Ended) -> bool:
    kind, data = message["type"], message.get("data") or {}
    if data.get("prompt_id") != prompt_id:
        return False
    if kind in ("execution_error", "execution_interrupted"):
        raise RuntimeError(f"node {data.get('node_id')} ({data.get('node_type')}): {data.get('exception_message', kind)}")
    if kind == "executed" and data.get("output"):
        ended.reported[str(data["node"])] = data["output"].get("reported")
    return bool(kind == "executing" and data.get("node") is None)
