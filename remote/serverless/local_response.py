"""A response that this process makes itself, in the place of one that arrives over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from yggdrasill.protocol.version import PROTOCOL, PROTOCOL_HEADER
from yggdrasill.remote.channel import Response

__all__ = ["LocalResponse"]

_CHUNK = 1 << 20


class LocalResponse(Response):
    """A response with a status, and a JSON body, bytes, or a stream of server-sent events."""

    def __init__(
        self, status: int, body: Mapping[str, Any] | memoryview | AsyncIterator[bytes], headers: Mapping[str, str] | None = None
    ) -> None:
        self._status, self._body = status, body
        self._given = {PROTOCOL_HEADER: str(PROTOCOL), **(headers or {})}

    def release(self) -> None:
        """Do nothing: the answer was made in this process, without a connection."""

    def close(self) -> None:
        """Do nothing: the answer was made in this process, without a connection."""

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the header fields."""
        return self._given

    @property
    def is_event_stream(self) -> bool:
        """Return whether the body is a stream of server-sent events."""
        return isinstance(self._body, AsyncIterator)

    async def chunks(self, silence: float | None = None) -> AsyncIterator[bytes]:
        """Yield the body."""
        body = self._body
        if isinstance(body, memoryview):
            for start in range(0, body.nbytes, _CHUNK):
                yield bytes(body[start : start + _CHUNK])
        elif isinstance(body, Mapping):
            yield json.dumps(body).encode("utf-8")
        else:
            async for chunk in body:
                yield chunk
