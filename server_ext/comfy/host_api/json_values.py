"""Checks that a value is JSON of a size that ComfyUI accepts."""

from __future__ import annotations

import json
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["json_copy"]

_MAX_MESSAGE = 8 << 20


def json_copy(value: Any, what: str) -> Any:
    """Return a deep copy of a JSON value. Raise `InvalidArgument` for another value, or one over 8 MiB; ``what`` names it in the message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {error}") from None
    if len(text) > _MAX_MESSAGE:
        raise InvalidArgument(f"{what} has {len(text)} bytes of JSON; the limit is {_MAX_MESSAGE}")
    return json.loads(text)
