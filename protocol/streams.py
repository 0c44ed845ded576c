"""Reading of HTTP bodies as they arrive, of requests and of responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import StreamReader

__all__ = ["read_chunk"]


async def read_chunk(content: StreamReader) -> bytes:
    """Return the next bytes of a body, or no bytes at its end.

    Unlike `StreamReader.readany`, it does not join what has arrived, which would copy every byte once more. Raises as `StreamReader.readchunk`.
    """
    while True:
        chunk, ends_frame = await content.readchunk()
        # No bytes are also the end of a frame of chunked transfer encoding; the stream of an empty body reports such ends for ever.
        if chunk or not ends_frame or content.at_eof():
            return chunk
