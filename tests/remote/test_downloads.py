"""Streams of artifacts whose connections break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from yggdrasill.errors import EndpointUnreachable, InvalidArgument
from yggdrasill.remote.downloads import stream_artifact
from yggdrasill.remote.retry import Retry
from yggdrasill.values.payload import ArraySpec, ArtifactRef

DATA = b"artifact" * 100


class _Response:
    status = 200

    async def chunks(self) -> AsyncIterator[bytes]:
        yield DATA
        raise EndpointUnreachable("the connection broke")


class _BreakingClient:
    """A client whose connections break after the last byte, and whose endpoint refuses a range that begins there."""

    name = "breaking"

    @asynccontextmanager
    async def get_artifact(self, name: str, offset: int = 0, stop: int | None = None) -> AsyncIterator[_Response]:
        if offset >= len(DATA):
            raise InvalidArgument("Invalid Range header: it begins after the last byte.")
        yield _Response()


def test_a_connection_that_breaks_after_the_last_byte_is_a_complete_stream() -> None:
    client: Any = _BreakingClient()
    ref = ArtifactRef("ab" * 32, ArraySpec("uint8", (len(DATA),), len(DATA)))

    async def read() -> bytes:
        return b"".join([chunk async for chunk in stream_artifact(client, ref, Retry())])

    assert asyncio.run(read()) == DATA
