"""The cache of downloaded artifacts."""

from __future__ import annotations

import os

import pytest
import torch

from samples.endpoints import Cutter, EndpointProcess, registry_of
from samples.graphs import bits, graph_of
from yggdrasill.remote import ArtifactClient
from yggdrasill.remote.artifact_client import DownloadCache
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.memory import aligned_memory

MIB = 1 << 20


def arrived(nbytes: int = 1000) -> tuple[str, memoryview]:
    memory = aligned_memory(nbytes)
    memory[:] = os.urandom(nbytes)
    return blake3_hex(memory), memory


def test_what_is_given_out_while_it_is_in_use_is_a_copy() -> None:
    cache = DownloadCache()
    name, memory = arrived()
    kept = cache.keep(name, memory)
    first, second = cache.take(name), cache.take(name)
    assert first == second == kept
    assert first is not None
    first[:3] = b"own"
    assert cache.take(name) == second


@pytest.mark.parametrize("nbytes", [1000, 4 * MIB + 1000])
def test_memory_that_nothing_uses_is_given_out_again_without_a_copy(nbytes: int) -> None:
    cache = DownloadCache()
    name, memory = arrived(nbytes)
    tensor = torch.frombuffer(cache.keep(name, memory), dtype=torch.uint8)
    address, part = tensor.data_ptr(), tensor[5:9].numpy()
    del tensor
    other = cache.take(name)
    assert other is not None
    assert torch.frombuffer(other, dtype=torch.uint8).data_ptr() != address
    del part
    again = cache.take(name)
    assert again is not None
    assert torch.frombuffer(again, dtype=torch.uint8).data_ptr() == address
    assert again == other


@pytest.mark.parametrize("nbytes", [1000, 4 * MIB + 1000])
@pytest.mark.parametrize("in_use", [False, True])
def test_memory_that_its_owner_wrote_to_is_forgotten(nbytes: int, in_use: bool) -> None:
    cache = DownloadCache()
    name, memory = arrived(nbytes)
    views = [cache.keep(name, memory)]
    memory[nbytes // 2] ^= 1
    if not in_use:
        views.clear()
    assert cache.take(name) is None
    assert name not in cache
    assert cache.nbytes == 0


def test_the_longest_unused_goes_when_the_limit_is_reached() -> None:
    cache = DownloadCache(3000)
    things = [arrived() for _ in range(3)]
    for name, memory in things:
        cache.keep(name, memory)
    cache.take(things[0][0])
    name, memory = arrived(1500)
    cache.keep(name, memory)
    assert [name in cache for name, _ in things] == [True, False, False]
    assert cache.nbytes == 2500


@pytest.mark.parametrize("limit", [0, 999])
def test_what_is_larger_than_the_limit_is_not_kept(limit: int) -> None:
    cache = DownloadCache(limit)
    name, memory = arrived()
    cache.keep(name, memory)
    assert cache.take(name) is None
    assert cache.nbytes == 0


def test_the_same_bytes_again_count_once() -> None:
    cache = DownloadCache()
    name, memory = arrived()
    cache.keep(name, memory)
    cache.keep(name, memory)
    assert cache.nbytes == memory.nbytes


def test_an_equal_result_is_not_fetched_again(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    registry = registry_of(forge.endpoint(forge_proxy.url), default="forge", artifact_client=ArtifactClient())
    remote = graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="equal").place(registry)
    x = torch.randn(4 * MIB // 4)
    first = remote.run({"x": x})["y"]
    before = forge_proxy.to_client
    second = remote.run({"x": x})["y"]
    assert bits(second) == bits(first) == bits(x + x)
    assert forge_proxy.to_client - before < 64 * 1024
    first += 1
    assert bits(second) == bits(x + x)
    # The second one came last, so it is cached; after a write it no longer has the bytes of its hash.
    second.zero_()
    first.zero_()
    assert bits(remote.run({"x": x})["y"]) == bits(x + x)
    assert forge_proxy.to_client - before > 4 * MIB


def test_an_artifact_client_without_cache_fetches_again(forge: EndpointProcess, forge_proxy: Cutter) -> None:
    registry = registry_of(forge.endpoint(forge_proxy.url), default="forge", artifact_client=ArtifactClient(kept_bytes=0))
    remote = graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id="forgetful").place(registry)
    x = torch.randn(4 * MIB // 4)
    for _ in range(2):
        before = forge_proxy.to_client
        assert bits(remote.run({"x": x})["y"]) == bits(x + x)
        assert forge_proxy.to_client - before > 4 * MIB
