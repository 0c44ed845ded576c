"""What is handed to ComfyUI is JSON, of a size that it can take."""

from __future__ import annotations

import json
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["json_copy"]

_MAX_MESSAGE = 8 << 20


def json_copy(value: Any, what: str) -> Any:
    """A deep copy of JSON values, or `InvalidArgument`."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is no JSON: {error}") from None
    if len(text) > _MAX_MESSAGE:
        raise InvalidArgument(f"{what} has {len(text)} bytes of JSON; ComfyUI is given at most {_MAX_MESSAGE}")
    return json.loads(text)
