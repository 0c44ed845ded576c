"""The file that keeps a world's last state and content in a save."""

from __future__ import annotations

from typing import Any

from yggdrasill.errors import CodecError, CorruptData, InvalidState
from yggdrasill.stage.state import State

__all__ = ["LAST_STATE_FILE", "pack_last", "unpack_last"]

LAST_STATE_FILE = "last_state.ygg"


def pack_last(last_state: State | None, content: Any) -> bytes:
    """The file's bytes; the content is written once if it is the state's."""
    from yggdrasill.values import dumps

    last = None if last_state is None else last_state.to_dict()
    separate = {} if last is not None and last["content"] is content else {"content": content}
    return dumps({"last_state": last, **separate})


def unpack_last(data: bytes, where: str) -> tuple[State | None, Any]:
    """What `pack_last` packed; ``where`` names the file in errors.

    Raises:
        CorruptData
    """
    from yggdrasill.values import loads

    try:
        record = loads(data)
        last = None if record["last_state"] is None else State.from_dict(record["last_state"])
        return last, record["content"] if last is None or "content" in record else last.content
    except (CodecError, InvalidState, KeyError, TypeError) as error:
        raise CorruptData(f"{where} is damaged: {error}; delete it to start from the initial world") from error
