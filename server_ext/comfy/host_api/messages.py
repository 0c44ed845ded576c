"""Messages to browsers, and sockets of ours that receive messages.

A message that is not JSON ends ComfyUI's process, so messages are checked before they are sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy.host_api.json_values import json_copy
from yggdrasill.server_ext.comfy.host_api.process import prompt_server, shielded

__all__ = ["close_socket", "open_socket", "send_json", "send_preview", "send_text"]

_PREVIEW_WITH_METADATA = 4
_MAX_LINE = 500


def send_json(event: str, data: Mapping[str, Any], sid: str | None) -> None:
    """Send a message to the browser ``sid``, or to all if it is None.

    Raises:
        InvalidArgument: the message is not JSON.
    """
    if not isinstance(event, str) or not event:
        raise InvalidArgument(f"The name of a message must be a non-empty string, got {event!r}. Use send_preview for pictures.")
    prompt_server().send_sync(event, json_copy(dict(data), f"message {event!r}"), sid)


def send_preview(metadata: Mapping[str, Any], image: bytes, sid: str | None) -> None:
    """Send an encoded picture (JPEG or PNG) for the node in ``metadata`` to the browser ``sid``.

    Raises:
        InvalidArgument: metadata that is not JSON, or a picture that is not bytes.
    """
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise InvalidArgument(f"A preview must be bytes, got {type(image).__name__}.")
    text = json.dumps(json_copy(dict(metadata), "a preview's metadata")).encode("utf-8")
    server = prompt_server()
    payload = len(text).to_bytes(4, "big") + text + bytes(image)
    asyncio.run_coroutine_threadsafe(_quietly(server, payload, sid), server.loop)


def send_text(text: str, node_id: str, sid: str | None) -> None:
    """Show a line of text, at most 500 characters, on a node while it runs."""
    prompt_server().send_progress_text(text[:_MAX_LINE], node_id, sid)


async def _quietly(server: Any, payload: bytes, sid: str | None) -> None:
    with shielded("a preview could not be sent"):
        await server.send_bytes(_PREVIEW_WITH_METADATA, payload, sid)


def open_socket(sid: str, socket: Any) -> None:
    """Register ``socket`` for the messages sent to ``sid``. Call it on the main loop.

    ``socket`` has coroutines ``send_json`` and ``send_bytes``, which must never raise.
    """
    server = prompt_server()
    server.sockets[sid] = socket
    server.sockets_metadata[sid] = {"feature_flags": {"supports_preview_metadata": True}}


def close_socket(sid: str) -> None:
    """Undo `open_socket`. Call it on the main loop."""
    server = prompt_server()
    server.sockets.pop(sid, None)
    server.sockets_metadata.pop(sid, None)
