"""Messages that nodes of other packs send to the page themselves, such as new values for a widget.

Many packs send them to every connected page. While a node of a job runs, they go to the caller of the job instead: the ids in them are those
of the caller's workflow, and a page of this server could have other nodes under the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from yggdrasill.server_ext.comfy import compat

__all__ = ["CUSTOM_MESSAGE", "MAX_MESSAGE", "is_custom", "route_custom_messages"]

CUSTOM_MESSAGE = "yggdrasill.custom_message"
"""The event that contains a custom message on its way to the socket of a run."""
MAX_MESSAGE = 64 << 10
"""Bytes of JSON of the largest custom message. A larger one is left out."""
_MAX_NAME = 100
_OWN = "yggdrasill"
_STATUS = "status"
_OF_COMFYUI = frozenset(
    {
        _STATUS,
        "execution_start",
        "execution_cached",
        "executing",
        "executed",
        "execution_error",
        "execution_interrupted",
        "execution_success",
        "feature_flags",
        "logs",
        "progress",
        "progress_state",
    }
)

Send = Callable[[Any, Any, "str | None"], None]


def is_custom(event: Any) -> bool:
    """Return whether a message belongs to a pack: it has a name that neither ComfyUI nor this extension uses."""
    return isinstance(event, str) and 0 < len(event) <= _MAX_NAME and event not in _OF_COMFYUI and not event.startswith(_OWN)


def route_custom_messages(is_run: Callable[[str], bool]) -> None:
    """Send the messages of nodes to the caller of their job. ``is_run(prompt_id)`` returns whether a prompt belongs to a job."""
    compat.wrap_send(lambda send: _routed(send, is_run))


def _routed(send: Send, is_run: Callable[[str], bool]) -> Send:
    def send_sync(event: Any, data: Any, sid: str | None = None) -> None:
        if event == _STATUS or (sid is not None and not is_custom(event)):
            send(event, data, sid)
            return
        with compat.shielded("a message of a node could not be sent to the caller of its job"):
            prompt_id = _run_of(sid, is_run)
            if prompt_id is not None and is_custom(event):
                facts = {"prompt_id": prompt_id, "event": event, "data": data}
                problem = _problem(facts)
                if problem is not None:
                    compat.log_failure(f"message {event!r} of a node is left out", ValueError(problem))
                    return
                event, data = CUSTOM_MESSAGE, facts
            sid = sid or prompt_id
        send(event, data, sid)

    return send_sync


def _run_of(sid: str | None, is_run: Callable[[str], bool]) -> str | None:
    """Return the prompt of a job that a message belongs to: that of the addressed socket, else that of the executing node."""
    if sid is None:
        node = compat.executing_node()
        sid = None if node is None else node.prompt_id
    return sid if sid is not None and is_run(sid) else None


def _problem(facts: dict[str, Any]) -> str | None:
    try:
        size = len(json.dumps(facts))
    except (TypeError, ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    return None if size <= MAX_MESSAGE else f"it has {size} bytes, and the limit is {MAX_MESSAGE}"
