"""ComfyUI's server in this process: its main loop, its command line, messages to browsers, and sockets of ours that receive messages.

A message that is not JSON ends ComfyUI's process, so messages are checked before they are sent.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = [
    "add_on_prompt_handler",
    "close_socket",
    "command_line",
    "json_copy",
    "main_loop",
    "multi_user",
    "next_number",
    "on_main_loop",
    "open_socket",
    "own_addresses",
    "prompt_server",
    "request_user",
    "running_client",
    "send_any",
    "send_json",
    "send_preview",
    "send_text",
    "web_app",
    "wrap_send",
]

_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4
_JPEG, _PNG = 1, 2
_MAX_LINE = 500
_WRAPPED = "_yggdrasill_original_send_sync"
_MAX_MESSAGE = 8 << 20


def prompt_server() -> Any:
    """Return the PromptServer of this process.

    Raises:
        InvalidArgument: this process does not run ComfyUI.
    """
    instance = getattr(importlib.import_module("server").PromptServer, "instance", None)
    if instance is None:
        raise InvalidArgument("This process has no ComfyUI server. The extension runs only inside ComfyUI.")
    return instance


def web_app() -> Any:
    """Return ComfyUI's aiohttp application."""
    return prompt_server().app


def main_loop() -> asyncio.AbstractEventLoop:
    """Return ComfyUI's main event loop."""
    loop: asyncio.AbstractEventLoop = prompt_server().loop
    return loop


def on_main_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on ComfyUI's main loop from another thread, and return its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, main_loop()).result()


def add_on_prompt_handler(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let ``handler`` read and replace the body of every POST /prompt. ComfyUI ignores a handler that raises."""
    prompt_server().add_on_prompt_handler(handler)


def next_number() -> float:
    """Take the next number of ComfyUI's queue. Call it on the main loop, which also assigns the owner's numbers."""
    server = prompt_server()
    number = float(server.number)
    server.number += 1
    return number


def running_client() -> str | None:
    """Return the client that started the running prompt, or None. Call it in the task of a node."""
    client: str | None = prompt_server().client_id
    return client


def command_line() -> Any:
    """Return ComfyUI's parsed command line."""
    return importlib.import_module("comfy.cli_args").args


def multi_user() -> bool:
    """Return whether ComfyUI keeps the files of several users apart (``--multi-user``)."""
    return bool(command_line().multi_user)


def request_user(request: Any) -> str | None:
    """Return the user who sent a request to ComfyUI, or None if it names none that ComfyUI knows."""
    try:
        return str(prompt_server().user_manager.get_request_user_id(request))
    except KeyError:
        return None


def own_addresses() -> tuple[list[str], int, str]:
    """Return the addresses and the port that ComfyUI listens on, and the URL at which this machine reaches it."""
    args = command_line()
    addresses = [part.strip() for part in str(args.listen).split(",")]
    scheme = "https" if args.tls_keyfile and args.tls_certfile else "http"
    name = "127.0.0.1" if addresses[0] in ("0.0.0.0", "::", "") else addresses[0]  # noqa: S104 - compared with
    return addresses, int(args.port), f"{scheme}://{f'[{name}]' if ':' in name else name}:{args.port}"


# -- messages ----------------------------------------------------------------------------------------------------


def json_copy(value: Any, what: str) -> Any:
    """Return a deep copy of a JSON value. Raise `InvalidArgument` for another value, or one over 8 MiB; ``what`` names it in the message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {error}") from None
    if len(text) > _MAX_MESSAGE:
        raise InvalidArgument(f"{what} has {len(text)} bytes of JSON; the limit is {_MAX_MESSAGE}")
    return json.loads(text)


def send_json(event: str, data: Mapping[str, Any], sid: str | None) -> None:
    """Send a message to the browser ``sid``, or to all if it is None.

    Raises:
        InvalidArgument: the message is not JSON.
    """
    send_any(event, dict(data), sid)


def send_any(event: str, data: Any, sid: str | None) -> None:
    """Send a message whose data are any JSON value, as `send_json`."""
    if not isinstance(event, str) or not event:
        raise InvalidArgument(f"The name of a message must be a non-empty string, got {event!r}. Use send_preview for pictures.")
    prompt_server().send_sync(event, json_copy(data, f"message {event!r}"), sid)


def wrap_send(wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Replace the function ``send_sync(event, data, sid)`` with which nodes and ComfyUI send messages, once per process."""
    server = prompt_server()
    if not hasattr(server, _WRAPPED):
        setattr(server, _WRAPPED, server.send_sync)
        server.send_sync = wrap(server.send_sync)


class _EncodedEvent(int):
    """The number of a binary message whose bytes are complete.

    ComfyUI encodes the pictures of some events itself. Only an event that is equal to none of them is sent as it is.
    """

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


def send_preview(metadata: Mapping[str, Any], image: bytes, sid: str | None) -> None:
    """Send an encoded picture (JPEG or PNG) for the node in ``metadata`` to the browser ``sid``.

    As ComfyUI's own preview, it has the workflow's metadata too, and arrives before the messages that are sent after it. A browser that does
    not support metadata receives the picture alone.

    Raises:
        InvalidArgument: metadata that is not JSON, or a picture that is not bytes.
    """
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise InvalidArgument(f"A preview must be bytes, got {type(image).__name__}.")
    server = prompt_server()
    facts = {**_workflow_metadata(server, metadata), **metadata}
    text = json.dumps(json_copy(facts, "a preview's metadata")).encode("utf-8")
    if sid is None or _knows_metadata(server, sid):
        event, payload = _EncodedEvent(_PREVIEW_WITH_METADATA), len(text).to_bytes(4, "big") + text + bytes(image)
    else:
        kind = _PNG if "png" in str(metadata.get("image_type")).lower() else _JPEG
        event, payload = _EncodedEvent(_PREVIEW), kind.to_bytes(4, "big") + bytes(image)
    server.send_sync(event, payload, sid)


def _workflow_metadata(server: Any, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ComfyUI adds to each message about the running prompt, such as the id of its workflow; empty before ComfyUI 0.38."""
    found = getattr(server, "workflow_metadata", None)
    return found if isinstance(found, Mapping) and "prompt_id" in metadata else {}


def _knows_metadata(server: Any, sid: str) -> bool:
    flags = (server.sockets_metadata.get(sid) or {}).get("feature_flags") or {}
    return flags.get("supports_preview_metadata") is True


def send_text(text: str, node_id: str, sid: str | None) -> None:
    """Show a line of text, at most 500 characters, on a node while it runs."""
    prompt_server().send_progress_text(text[:_MAX_LINE], node_id, sid)


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
