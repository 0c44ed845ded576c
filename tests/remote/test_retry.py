"""Retries: the error for a lost endpoint reports whether the endpoint may be working on the call."""

from __future__ import annotations

import asyncio

import pytest

from yggdrasill.errors import EndpointUnreachable
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.retry import Retry, RetryPolicy

SHORT = RetryPolicy(0.1, 0.2)


async def lost(drops: int) -> EndpointUnreachable:
    """The error of a request to a server that accepts that many connections, closes each after reading the request, and then accepts no
    more.
    """
    left = drops

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        await reader.readuntil(b"\r\n\r\n")
        left -= 1
        if left == 0:
            server.close()
        writer.close()

    server = await asyncio.start_server(drop, "127.0.0.1", 0)
    client = EndpointClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", token="x")
    if drops == 0:
        server.close()
        await server.wait_closed()
    with pytest.raises(EndpointUnreachable) as caught:
        await Retry(SHORT).persist(lambda: client.call("POST", "/graphs/x/jobs", {}))
    return caught.value


@pytest.mark.parametrize("drops, reached", [(0, False), (1, True)])
def test_a_request_that_broke_off_may_have_been_accepted(drops: int, reached: bool) -> None:
    from yggdrasill.remote.loop_thread import loop_thread

    error = loop_thread().run(lost(drops))
    assert "nothing answers" in error.message
    assert error.details["reached"] is reached
