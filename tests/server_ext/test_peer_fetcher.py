"""Addresses from which artifacts may be fetched: the artifact's own path at a peer, with or without a signature."""

from __future__ import annotations

import pytest

from yggdrasill.remote.client import is_below
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.values import MemoryStore

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
