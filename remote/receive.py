"""Bytes from a socket into a store: received on the event loop, hashed and written in a thread at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from yggdrasill.values.stores.base import ArtifactWriter

__all__ = ["pour"]

_BATCH = 1 << 20
"""Bytes handed to the thread at a time; twice as many are in memory at most."""


async def pour(chunks: AsyncIterator[bytes], writer: ArtifactWriter) -> None:
    """Write every chunk, in order; the next batch is received while the last is written.

    Raises what ``writer.write`` raises. However it ends, nothing is written any more.
    """
    loop = asyncio.get_running_loop()
    batch: list[bytes] = []
    size = 0
    writing: asyncio.Future[None] | None = None
    try:
        async for chunk in chunks:
            batch.append(chunk)
            size += len(chunk)
            if size >= _BATCH:
                if writing is not None:
                    await writing
                writing = loop.run_in_executor(None, _write, writer, batch)
                batch, size = [], 0
        if writing is not None:
            await writing
        if batch:
            writing = loop.run_in_executor(None, _write, writer, batch)
            await writing
    finally:
        if writing is not None and not writing.done():
            # a thread cannot be interrupted: the writer is the caller's again only when it has ended
            await asyncio.wait([writing])


def _write(writer: ArtifactWriter, batch: list[bytes]) -> None:
    for chunk in batch:
        writer.write(chunk)
