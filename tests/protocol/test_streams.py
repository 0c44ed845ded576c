"""`read_chunk` on every kind of body that aiohttp delivers."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.test_utils import TestServer

from yggdrasill.protocol.streams import read_chunk


async def body_of(content: StreamReader) -> list[bytes]:
    chunks = []
    while chunk := await asyncio.wait_for(read_chunk(content), 5):
        chunks.append(chunk)
    assert await asyncio.wait_for(read_chunk(content), 5) == b""
    return chunks


async def test_an_empty_body_ends_each_time() -> None:
    for _ in range(3):
        assert await body_of(EMPTY_PAYLOAD) == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("parts", [[], [b"a"], [b"a", b"bc", b"d" * 100_000]])
async def test_a_response_is_read_to_its_end_and_the_connection_is_used_again(chunked: bool, parts: list[bytes]) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=200 if parts else 204)
        if chunked and parts:
            response.enable_chunked_encoding()
        else:
            response.content_length = sum(map(len, parts))
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0.01)
        return response

    application = web.Application()
    application.router.add_get("/", handle)
    async with TestServer(application) as server, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(3):
            async with session.get(server.make_url("/")) as response:
                assert b"".join(await body_of(response.content)) == b"".join(parts)


async def test_the_end_of_a_frame_is_not_the_end_of_the_body() -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    protocol.connection_made(asyncio.Transport())
    stream = StreamReader(protocol, 2**16)
    stream.begin_http_chunk_receiving()
    stream.feed_data(b"one")
    stream.end_http_chunk_receiving()
    assert await read_chunk(stream) == b"one"
    reading = asyncio.ensure_future(read_chunk(stream))
    stream.begin_http_chunk_receiving()
    stream.end_http_chunk_receiving()
    await asyncio.sleep(0.01)
    assert not reading.done()
    stream.feed_data(b"two")
    assert await reading == b"two"
    stream.feed_eof()
    assert await read_chunk(stream) == b""
