"""Local peers: tensors go through their artifact folder, or over a socket where that is not possible."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.endpoints import Cutter, EndpointProcess, cutter, free_port, registry_of
from samples.graphs import bits, graph_of
from yggdrasill.errors import EndpointUnreachable, PayloadTooLarge, StorageFailed, UnknownGraph
from yggdrasill.foundation import Graph
from yggdrasill.remote import RetryPolicy
from yggdrasill.remote.local_peers import LocalPeer, is_this_machine
from yggdrasill.values.stores.shared import SharedFolderStore

MIB = 1 << 20
MESSAGES = 64 << 10


def double(name: str = "near") -> Graph:
    return graph_of({"d": "double"}, [], ["d.x = x"], ["d.y = y"], graph_id=name)


def fresh(mib: int = 4) -> torch.Tensor:
    """A tensor that no endpoint has seen."""
    return torch.randn(mib * MIB // 4)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    """An endpoint that shares its folder with callers on its machine."""
    process = EndpointProcess("near", tmp_path_factory.mktemp("near"), share_folder=True).start()
    yield process
    process.stop()


@pytest.fixture
def way(near: EndpointProcess) -> Iterator[Cutter]:
    """A connection to it that counts the bytes."""
    with cutter(near) as proxy:
        yield proxy


def placed(process: EndpointProcess, proxy: Cutter, **options: Any) -> Any:
    return double().place(registry_of(process.endpoint(proxy.url), default=process.name, **options))


def crossed(proxy: Cutter) -> int:
    return proxy.to_server + proxy.to_client


# -- calls ----------------------------------------------------------------------------------------------------------


def test_no_tensor_crosses_the_socket(near: EndpointProcess, way: Cutter) -> None:
    remote = placed(near, way)
    for mib in (4, 9):
        x = fresh(mib)
        assert bits(remote.run({"x": x})) == bits({"y": x + x})
    assert crossed(way) < MESSAGES


def test_small_tensors_go_with_the_messages(near: EndpointProcess, way: Cutter) -> None:
    x = torch.randn(100_000)
    assert bits(placed(near, way).run({"x": x})) == bits({"y": x + x})
    assert crossed(way) > 2 * x.nbytes


def test_writing_to_a_result_changes_no_artifact(near: EndpointProcess, way: Cutter) -> None:
    remote, x = placed(near, way), fresh()
    first = remote.run({"x": x})["y"]
    first.zero_()
    assert bits(remote.run({"x": x})) == bits({"y": x + x})
    assert crossed(way) < MESSAGES


def test_a_result_outlives_its_artifact(near: EndpointProcess, way: Cutter) -> None:
    x = fresh()
    result = placed(near, way).run({"x": x})["y"]
    for path in (near.data_dir / "artifacts" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    assert torch.equal(result, x + x)


def test_a_tensor_that_stays_there_is_loaded_from_the_folder(near: EndpointProcess, way: Cutter) -> None:
    from yggdrasill.executor.context import enter_run

    remote, x = placed(near, way), fresh()
    with enter_run(seed=1):
        handle = remote.run({"x": x})["y"]
        assert torch.equal(handle.load(), x + x)
    assert crossed(way) < MESSAGES


def test_tensors_are_sent_to_an_endpoint_that_shares_no_folder(forge: EndpointProcess) -> None:
    with cutter(forge) as proxy:
        x = fresh()
        assert bits(placed(forge, proxy).run({"x": x})) == bits({"y": x + x})
        assert crossed(proxy) > 2 * x.nbytes


def test_an_endpoint_that_comes_back_with_another_folder_is_sent_the_tensors(tmp_path: Path) -> None:
    port = free_port()
    options: dict[str, Any] = {"share_folder": True, "port": port}
    first = EndpointProcess("moved", tmp_path / "first", **options).start()
    with cutter(first) as proxy:
        try:
            remote = placed(first, proxy, retry_policy=RetryPolicy(10, 10))
            remote.run({"x": fresh()})
            first.stop()
            second = first = EndpointProcess("moved", tmp_path / "second", **options).start()
            x, before = fresh(), crossed(proxy)
            assert bits(remote.run({"x": x})) == bits({"y": x + x})
            assert crossed(proxy) - before > x.nbytes
            assert second.client().url == first.client().url
        finally:
            first.stop()


def test_what_the_endpoint_does_not_take_is_not_put_into_its_folder(tmp_path: Path) -> None:
    process = EndpointProcess("strict", tmp_path / "strict", share_folder=True, max_artifact_bytes=8 * MIB).start()
    try:
        with pytest.raises(PayloadTooLarge, match="12582912 bytes is over the 8388608"):
            double().place(registry_of(process, default="strict")).run({"x": fresh(12)})
        assert not [path for path in (process.data_dir / "artifacts").rglob("*") if path.is_file() and path.stat().st_size > MIB]
    finally:
        process.stop()


def test_a_full_folder_is_the_error_that_the_endpoint_reports(tmp_path: Path) -> None:
    process = EndpointProcess("narrow", tmp_path / "narrow", share_folder=True, artifact_quota=8 * MIB).start()
    try:
        remote = double().place(registry_of(process, default="narrow"))
        with pytest.raises(StorageFailed, match="quota is 8388608 bytes"):
            remote.run({"x": fresh(12)})
        x = fresh(3)
        assert bits(remote.run({"x": x})) == bits({"y": x + x})
    finally:
        process.stop()


# -- who is a local_peer ---------------------------------------------------------------------------------------------


def test_addresses_of_this_machine_are_distinguished_from_others() -> None:
    assert all(map(is_this_machine, ("127.0.0.1", "localhost", "127.0.0.7")))
    # Addresses reserved for documentation, and an invalid name.
    assert not any(map(is_this_machine, ("192.0.2.7", "2001:db8::7", "no such host", "x" * 300)))


def found(host: str = "127.0.0.1", **reported: Any) -> SharedFolderStore | None:
    async def ask() -> Mapping[str, Any]:
        return reported

    return asyncio.run(LocalPeer(host, ask).store())


def test_a_folder_is_used_if_it_has_the_reported_id(tmp_path: Path) -> None:
    own = SharedFolderStore(tmp_path / "own")
    facts: dict[str, Any] = {"folder": str(own.folder), "store_id": own.store_id, "quota_bytes": 1 << 30}
    store = found(**facts)
    assert store is not None
    assert (store.folder, store.store_id, store.quota_bytes) == (own.folder, own.store_id, 1 << 30)
    assert found(**facts) is store
    assert found("192.0.2.7", **facts) is None
    assert found(**{**facts, "store_id": "0" * 32}) is None
    assert found(**{**facts, "folder": None}) is None
    assert found(**{**facts, "folder": str(tmp_path)}) is None
    assert found(**{**facts, "folder": "own"}) is None
    assert found(**{**facts, "folder": str(own.folder / "store-id")}) is None
    assert found() is None


def test_nothing_is_made_in_a_folder_that_is_not_used(tmp_path: Path) -> None:
    assert found(folder=str(tmp_path / "new"), store_id="0" * 32) is None
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_without_that_route_is_not_a_local_peer_and_a_lost_one_is_asked_again() -> None:
    answers: list[Exception] = [EndpointUnreachable("lost"), UnknownGraph("what?")]
    asked = []

    async def ask() -> Mapping[str, Any]:
        asked.append(1)
        raise answers[len(asked) - 1]

    async def act() -> None:
        local_peer = LocalPeer("127.0.0.1", ask)
        with pytest.raises(EndpointUnreachable):
            await local_peer.store()
        assert await local_peer.store() is None
        assert await local_peer.store() is None

    asyncio.run(act())
    assert len(asked) == 2
