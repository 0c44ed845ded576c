"""Downloads from peers: which addresses are allowed, and connections that break."""

from __future__ import annotations

import asyncio
import os

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from blake3 import blake3

from yggdrasill.remote import downloads
from yggdrasill.remote.client import is_below
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.values import ArtifactRef, MemoryStore
from yggdrasill.values.payload import ArraySpec

NAME = "ab" * 32
PEER = "http://peer:8400"
PATH = f"/yggdrasill/v1/artifacts/{NAME}"


def allows(url: str) -> bool:
    return PeerFetcher(MemoryStore(), lambda url: is_below(url, PEER), 1 << 20).allows(url, NAME)


@pytest.mark.parametrize("suffix", ["", "?exp=1&sig=ab", "?sig=ab&exp=1"])
def test_the_path_of_an_artifact_at_a_peer_is_allowed(suffix: str) -> None:
    assert allows(PEER + PATH + suffix)


@pytest.mark.parametrize(
    "rest",
    [
        f"/any/path#{PATH}",
        f"/interrupt?x=1#{PATH}",
        f"{PATH}#",
        f"{PATH}#fragment",
        f"{PATH}?exp=1&sig=ab#{PATH}",
        f"{PATH}?exp=1",
        f"{PATH}?exp=1&sig=ab&x=1",
        f"{PATH}?exp=1&exp=2&sig=ab",
        f"{PATH}?x",
        f"{PATH}?token=secret",
        f"/interrupt?{PATH}",
        f"/interrupt;{PATH}?exp=1&sig=ab#",
        PATH[:-1],
    ],
)
def test_another_path_query_or_fragment_at_a_peer_is_refused(rest: str) -> None:
    assert not allows(PEER + rest)


@pytest.mark.parametrize("url", ["http://[peer" + PATH, "http://peer:99999" + PATH, "http://other:8400" + PATH, ""])
def test_an_invalid_or_foreign_address_is_refused(url: str) -> None:
    assert not allows(url)


class BreakingPeer:
    """A peer that closes the connection after ``after`` bytes of each of the first ``breaks`` responses; records the ranges requested."""

    def __init__(self, data: bytes, *, breaks: int, after: int, harm: int | None = None) -> None:
        self.data, self.breaks, self.after = data, breaks, after
        self.sent = data if harm is None else data[:harm] + bytes([data[harm] ^ 1]) + data[harm + 1 :]
        self.ranges: list[str | None] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        span = request.http_range
        part = self.sent[span]
        headers = {"Content-Range": f"bytes {span.start or 0}-{(span.start or 0) + len(part) - 1}/{len(self.sent)}"}
        response = web.StreamResponse(status=206 if span.start is not None else 200, headers=headers)
        response.content_length = len(part)
        await response.prepare(request)
        if self.breaks:
            self.breaks -= 1
            await response.write(part[: self.after])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(part)
        return response

    def fetch(self, store: MemoryStore) -> bool:
        """Fetch the artifact from this peer."""

        async def act() -> bool:
            app = web.Application()
            app.router.add_get("/{rest:.*}", self.handle)
            async with TestServer(app) as server:
                name = blake3(self.data).hexdigest()
                url = str(server.make_url(f"/yggdrasill/v1/artifacts/{name}"))
                fetcher = PeerFetcher(store, lambda _: True, 1 << 30)
                try:
                    return await fetcher.fetch(ArtifactRef(name, ArraySpec("bytes", (len(self.data),), len(self.data)), url))
                finally:
                    await fetcher.close()

        return asyncio.run(act())


def test_a_download_is_resumed_at_the_byte_and_in_bounded_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_RANGE_BYTES", 400_000)
    data, store = os.urandom(1_000_000), MemoryStore()
    peer = BreakingPeer(data, breaks=2, after=100_000)
    assert peer.fetch(store)
    assert bytes(store.read(blake3(data).hexdigest())) == data
    starts = [int((given or "bytes=0-").removeprefix("bytes=").partition("-")[0]) for given in peer.ranges]
    assert len(starts) >= 4
    assert starts == sorted(starts)
    assert starts[1] > 0
    for given in peer.ranges:
        first, _, last = (given or "").removeprefix("bytes=").partition("-")
        assert int(last) - int(first) < 400_000


def test_a_download_with_other_bytes_is_not_stored() -> None:
    data, store = os.urandom(100_000), MemoryStore()
    assert not BreakingPeer(data, breaks=0, after=0, harm=50_000).fetch(store)
    assert not store.has(blake3(data).hexdigest())
