"""The wire form: lossless, by reference for large payloads, and safe to read from untrusted senders."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.values import same, trees
from yggdrasill.errors import (
    Cancelled,
    CannotTravel,
    CorruptData,
    LimitExceeded,
    StorageFailed,
    UnknownArtifact,
    UnsupportedVersion,
    YggdrasillError,
)
from yggdrasill.values import (
    ArtifactHandle,
    ArtifactRef,
    DiskStore,
    Handle,
    Limits,
    LocalStore,
    MemoryStore,
    load_handles,
    pack,
    references,
    unpack,
    with_urls,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CASES: dict[str, Any] = {
    "wire_inline": {
        "small": torch.arange(4),
        "turned": torch.arange(6, dtype=torch.int16).view(2, 3).t(),
        "name": "Ymir",
        "blob": bytes(600),
    },
    "wire_artifacts": {
        "map": torch.arange(5000, dtype=torch.float32).view(50, 100).t(),
        "parts": ([1, (2.5, None)], np.arange(5000, dtype=">i4")),
        "text": b"log " * 5000,
    },
}
NAME = "5d" * 32
REFERENCE = {"dtype": "float32", "shape": [2, 3], "nbytes": 24, "artifact": NAME}


def loader(store: LocalStore) -> Callable[[ArtifactRef], memoryview]:
    return lambda ref: store.read(ref.hash)


def nothing(ref: ArtifactRef) -> memoryview:
    raise UnknownArtifact(f"{ref.hash} is not in any store")


def handles(store: LocalStore) -> Callable[[ArtifactRef], ArtifactHandle]:
    return lambda ref: ArtifactHandle(ref, loader(store))


def wire_of(entry: Any, skeleton: Any = None) -> dict[str, Any]:
    return {"skeleton": {"$tensor": 0} if skeleton is None else skeleton, "payloads": [entry]}


@settings(max_examples=80, deadline=None)
@given(trees(), st.sampled_from([0, 20, 16 << 10]), st.booleans())
def test_every_value_tree_comes_back(value: Any, inline_bytes: int, with_handles: bool) -> None:
    store = MemoryStore()
    with pack(value, store, inline_bytes=inline_bytes) as packed:
        wire = json.loads(json.dumps(packed.wire, allow_nan=False))
        back = unpack(wire, loader(store), handles=handles(store) if with_handles else None)
        assert {ref.hash for ref in references(wire)} == set(packed.artifacts)
        if not with_handles:
            assert same(value, back)
        with pack(back, MemoryStore(), inline_bytes=inline_bytes) as again:
            assert [entry.get("artifact") for entry in again.wire["payloads"]] == [
                entry.get("artifact") for entry in packed.wire["payloads"]
            ]
            assert json.dumps(again.wire["skeleton"], sort_keys=True) == json.dumps(packed.wire["skeleton"], sort_keys=True)


@pytest.mark.parametrize("name", CASES)
def test_the_messages_are_the_golden_ones(name: str) -> None:
    assert golden(name) == json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def test_the_golden_message_without_artifacts_is_read() -> None:
    wire = json.loads((GOLDEN / "wire_inline.json").read_text(encoding="utf-8"))
    assert same(CASES["wire_inline"], unpack(wire, nothing))


def golden(name: str) -> Any:
    store = MemoryStore()
    store.store_id = "0" * 32
    with pack(CASES[name], store) as packed:
        return json.loads(json.dumps(packed.wire))


def test_small_payloads_are_inline_up_to_the_total_limit() -> None:
    with pack([torch.zeros(100) + number for number in range(10)], MemoryStore(), inline_bytes=400, max_inline_total=1500) as packed:
        assert ["inline" in entry for entry in packed.wire["payloads"]] == [True] * 3 + [False] * 7
        assert len(packed.artifacts) == 7
    with pack(torch.zeros(101), MemoryStore(), inline_bytes=400) as packed:
        assert "artifact" in packed.wire["payloads"][0]


def test_the_same_tensor_twice_is_one_artifact_and_one_object() -> None:
    store, tensor = MemoryStore(), torch.rand(100, 100)
    with pack([tensor, tensor, tensor.clone()], store) as packed:
        assert len(packed.artifacts) == 1
        first, second, third = unpack(packed.wire, loader(store))
    assert first is second
    third.zero_()
    assert torch.equal(first, tensor)


@pytest.mark.parametrize("writable", [False, True])
def test_equal_tensors_get_separate_memory(writable: bool) -> None:
    store, tensor = MemoryStore(), torch.rand(100, 100)
    with pack([tensor, tensor.clone()], store, owner="job") as packed:
        store.release("job")
        first, second = unpack(packed.wire, lambda ref: store.pop(ref.hash) if writable else store.read(ref.hash))
    first.zero_()
    assert torch.equal(second, tensor)


def test_a_tensor_is_sent_from_its_own_memory() -> None:
    store, tensor = MemoryStore(), torch.rand(100, 100)
    with pack(tensor, store) as packed:
        view = np.frombuffer(store.read(packed.artifacts[0]), np.uint8)
        assert view.ctypes.data == tensor.data_ptr()
    assert not store.has(packed.artifacts[0])
    packed.release()


def test_a_packed_value_that_is_never_released_is_reported() -> None:
    packed = pack(torch.rand(100, 100), MemoryStore())
    with pytest.warns(ResourceWarning, match="1 artifacts was never released"):
        del packed


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_with_an_owner_the_artifacts_are_copied_and_pinned(kind: str, tmp_path: Path) -> None:
    room = 50_000
    store: MemoryStore | DiskStore = MemoryStore(quota_bytes=room) if kind == "memory" else DiskStore(tmp_path, quota_bytes=room)
    tensor = torch.rand(100, 100)
    before = tensor.clone()
    packed = pack(tensor, store, owner="job")
    packed.release()
    tensor.zero_()
    assert torch.equal(unpack(packed.wire, loader(store)), before)
    with pytest.raises(StorageFailed, match="pinned"):
        pack(torch.rand(100, 100), store, owner="other")
    store.release("job")
    store.release("other")
    pack(torch.rand(100, 100), store, owner="other")
    assert not store.has(packed.artifacts[0])


@pytest.mark.parametrize("owner", [None, "job"])
def test_a_value_that_cannot_travel_leaves_nothing_in_the_store(owner: str | None) -> None:
    store = MemoryStore()
    with pytest.raises(CannotTravel, match=r'value\["b"\]'):
        pack({"a": torch.rand(100, 100), "b": object()}, store, owner=owner)
    assert not store._borrowed
    assert not store._kept
    assert not store._leases


def test_a_large_tensor_is_unpacked_as_a_handle_and_loaded_once() -> None:
    store, loads = MemoryStore(), []
    tensor = torch.arange(20_000.0).view(100, 200).t()

    def load(ref: ArtifactRef) -> memoryview:
        loads.append(ref.hash)
        return store.read(ref.hash)

    value = {"large": tensor, "small": torch.arange(3), "array": np.arange(9000), "again": tensor}
    with pack(value, store) as packed:
        back = unpack(packed.wire, load, handles=lambda ref: ArtifactHandle(ref, load))
        handle = back["large"]
        assert isinstance(handle, Handle)
        assert handle is back["again"]
        assert (handle.dtype, handle.shape, handle.hash, handle.nbytes) == ("float32", (200, 100), packed.artifacts[0], 80_000)
        assert handle.hash not in loads
        assert not handle.loaded
        assert "float32 [200, 100]" in repr(handle)
        assert same(value, load_handles(back))
        assert handle.load() is handle.load()
        assert loads.count(handle.hash) == 1


def test_a_handle_is_packed_as_its_reference() -> None:
    entry = {**REFERENCE, "strides": [1, 2], "url": "http://127.0.0.1:8401/x?sig=1", "store": "f" * 32}
    value = unpack(wire_of(entry), nothing, handles=lambda ref: ArtifactHandle(ref, nothing))
    with pack({"a": [value]}, MemoryStore()) as packed:
        assert packed.wire == {"skeleton": {"a": [{"$tensor": 0}]}, "payloads": [entry]}
        assert packed.artifacts == [NAME]


def test_the_artifact_of_a_packed_handle_is_pinned(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, quota_bytes=50_000)
    tensor = torch.rand(100, 100)
    with pack(tensor, store) as packed:
        handle = unpack(packed.wire, nothing, handles=handles(store))
        pack([handle], store, owner="job")
    with pytest.raises(StorageFailed, match="pinned"):
        store.put(bytes(40_000))
    assert torch.equal(handle.load(), tensor)


def test_two_calls_that_borrow_one_tensor_leave_no_copy() -> None:
    store, tensor = MemoryStore(), torch.rand(100, 100)
    first, second = pack(tensor, store), pack(tensor, store)
    first.release()
    assert torch.equal(unpack(second.wire, loader(store)), tensor)
    second.release()
    assert store.missing(first.artifacts) == first.artifacts


def test_handles_are_equal_by_hash_and_spec() -> None:
    here, there = (ArtifactHandle(ArtifactRef.from_json({**REFERENCE, "store": store}), nothing) for store in ("a", "b"))
    other = ArtifactHandle(ArtifactRef.from_json({**REFERENCE, "shape": [3, 2]}), nothing)
    assert here == there
    assert hash(here) == hash(there)
    assert here != other
    assert here != NAME


def test_a_handle_cannot_be_a_key() -> None:
    handle = ArtifactHandle(ArtifactRef.from_json(REFERENCE), nothing)
    with pytest.raises(CannotTravel, match="keys of dicts"):
        pack({handle: 1}, MemoryStore())


def test_a_handle_whose_bytes_do_not_fit_is_corrupt() -> None:
    handle = ArtifactHandle(ArtifactRef.from_json(REFERENCE), lambda _: memoryview(bytes(23)))
    with pytest.raises(CorruptData):
        handle.load()


def test_references_name_each_artifact_once() -> None:
    wire = {"skeleton": None, "payloads": [{**REFERENCE, "url": "https://a/1"}, REFERENCE, {**REFERENCE, "artifact": "ab" * 32}]}
    first, second = references(wire)
    assert (first.hash, first.nbytes, first.dtype, first.shape, first.url, first.store) == (
        NAME,
        24,
        "float32",
        (2, 3),
        "https://a/1",
        None,
    )
    assert second.hash == "ab" * 32


def test_urls_are_set_if_the_signer_returns_one() -> None:
    other = {**REFERENCE, "artifact": "ab" * 32, "url": "http://elsewhere/ab"}
    wire = {"skeleton": [], "payloads": [REFERENCE, other, {"dtype": "bytes", "shape": [3], "nbytes": 3, "inline": "AAAA"}]}
    before = json.dumps(wire)
    signed = with_urls(wire, lambda ref: f"http://here/{ref.hash}" if ref.hash == NAME else None)
    assert signed["payloads"] == [{**REFERENCE, "url": f"http://here/{NAME}"}, other, wire["payloads"][2]]
    assert json.dumps(wire) == before


def without(key: str) -> dict[str, Any]:
    return {name: item for name, item in REFERENCE.items() if name != key}


HOSTILE: dict[str, Any] = {
    "null": None,
    "list": [],
    "no payloads": {"skeleton": 1},
    "one more key": {"skeleton": 1, "payloads": [], "more": 1},
    "payloads no list": {"skeleton": 1, "payloads": {}},
    "payload no dict": wire_of([]),
    "neither inline nor artifact": wire_of(without("artifact")),
    "both": wire_of({**REFERENCE, "inline": "A" * 32}),
    "name no hash": wire_of({**REFERENCE, "artifact": "../../etc/passwd"}),
    "name too long": wire_of({**REFERENCE, "artifact": NAME + "0"}),
    "second name": wire_of({**REFERENCE, "hash": NAME}),
    "inline with a name": wire_of({**without("artifact"), "inline": "A" * 32, "hash": NAME}),
    "url of a file": wire_of({**REFERENCE, "url": "file:///etc/passwd"}),
    "url with a line end": wire_of({**REFERENCE, "url": "http://a/\r\nHost: b"}),
    "url too long": wire_of({**REFERENCE, "url": "http://" + "a" * 5000}),
    "url no text": wire_of({**REFERENCE, "url": 1}),
    "store no id": wire_of({**REFERENCE, "store": "a/b"}),
    "unknown field": wire_of({**REFERENCE, "device": "cuda"}),
    "no size": wire_of(without("nbytes")),
    "negative size": wire_of({**REFERENCE, "nbytes": -1}),
    "size is true": wire_of({**REFERENCE, "nbytes": True}),
    "size does not fit": wire_of({**REFERENCE, "nbytes": 25}),
    "strides overlap": wire_of({**REFERENCE, "strides": [0, 1]}),
    "inline shorter than said": wire_of({**without("artifact"), "inline": "AAAA"}),
    "inline no base64": wire_of({**without("artifact"), "inline": "!" * 32}),
    "inline no text": wire_of({**without("artifact"), "inline": 5}),
    "dtype of python": wire_of({**REFERENCE, "dtype": "__class__"}),
    "payload out of range": wire_of(REFERENCE, {"$tensor": 1}),
    "negative payload": wire_of(REFERENCE, {"$tensor": -1}),
    "tensor as bytes": wire_of(REFERENCE, {"$bytes": 0}),
    "tensor as key": wire_of(REFERENCE, {"$dict": [{"$tensor": 0}, 1]}),
}


@pytest.mark.parametrize("with_handles", [False, True], ids=["values", "handles"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_corrupt(name: str, with_handles: bool) -> None:
    made = handles(MemoryStore()) if with_handles else None
    with pytest.raises(CorruptData):
        unpack(HOSTILE[name], lambda ref: memoryview(bytes(min(ref.nbytes, 100))), handles=made)


def test_a_message_above_the_limits_is_refused_before_any_artifact_is_loaded() -> None:
    huge = {"dtype": "uint8", "shape": [1 << 40], "nbytes": 1 << 40, "artifact": NAME}
    with pytest.raises(LimitExceeded, match="max_bytes"):
        unpack(wire_of(huge), nothing)
    with pytest.raises(LimitExceeded, match="max_bytes"):
        references({"skeleton": None, "payloads": [REFERENCE] * 5}, limits=Limits(max_bytes=100))
    with pytest.raises(LimitExceeded, match="max_payloads"):
        unpack({"skeleton": None, "payloads": [REFERENCE] * 5}, nothing, limits=Limits(max_payloads=4))
    with pytest.raises(LimitExceeded, match="max_items"):
        unpack({"skeleton": [0] * 100, "payloads": []}, nothing, limits=Limits(max_items=99))
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(LimitExceeded, match="max_depth"):
        unpack({"skeleton": deep, "payloads": []}, nothing)


def test_values_above_the_limits_are_not_packed() -> None:
    with pytest.raises(LimitExceeded, match="max_bytes"):
        pack(torch.rand(1000), MemoryStore(), limits=Limits(max_bytes=3999))
    with pytest.raises(LimitExceeded, match="max_payloads"):
        pack([torch.rand(1), torch.rand(1)], MemoryStore(), limits=Limits(max_payloads=1))
    with pytest.raises(LimitExceeded, match="max_artifact_bytes"):
        pack(torch.rand(10_000), MemoryStore(max_artifact_bytes=1000))


def test_a_dtype_that_this_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "bits1x8")
    with pytest.raises(UnsupportedVersion, match="bits1x8"):
        unpack(wire_of({**REFERENCE, "dtype": "bits1x8"}), nothing, handles=handles(MemoryStore()))


def test_an_absent_artifact_is_an_unknown_artifact() -> None:
    with pytest.raises(UnknownArtifact, match=NAME):
        unpack(wire_of(REFERENCE), loader(MemoryStore()))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just(NAME)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "skeleton payloads dtype shape strides nbytes inline artifact url store hash data a $$b "
                "$tensor $array $bytes $bytearray $scalar $tuple $dict $set $frozenset $ext $int $float $str $complex".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["float32", "bytes", "<f4", "<U3", "bool", "complex64", '{"fields":[],"itemsize":8}', ">i2"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "nbytes": st.integers(0, 40) | JSON,
    },
    optional={
        "strides": st.lists(st.integers(0, 9), max_size=3) | JSON,
        "inline": st.binary(max_size=12).map(lambda data: base64.b64encode(data).decode()) | JSON,
        "artifact": st.just(NAME) | JSON,
        "url": st.just("http://a/b") | JSON,
        "store": st.just("f" * 32) | JSON,
    },
)
TAGGED = st.tuples(st.sampled_from(["$tensor", "$array", "$bytes", "$bytearray"]), st.integers(-1, 3)).map(lambda pair: {pair[0]: pair[1]})
WIRES = JSON | st.fixed_dictionaries({"skeleton": st.lists(TAGGED | JSON, max_size=3), "payloads": st.lists(ENTRIES | JSON, max_size=3)})


@settings(max_examples=400, deadline=None)
@given(WIRES, st.booleans(), st.binary(max_size=40))
def test_any_json_is_read_or_refused_with_one_of_our_errors(wire: Any, with_handles: bool, data: bytes) -> None:
    made = handles(MemoryStore()) if with_handles else None
    for act in (
        lambda: unpack(wire, lambda ref: memoryview(data), handles=made),
        lambda: references(wire),
        lambda: with_urls(wire, lambda ref: "http://a/b"),
    ):
        with contextlib.suppress(YggdrasillError):
            act()


def write_missing() -> None:
    """Write the golden files of new cases."""
    for name in CASES:
        path = GOLDEN / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(golden(name), indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    write_missing()


@pytest.mark.parametrize("tag", ["$dict", "$set", "$frozenset"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["integers", "tuples"])
def test_keys_with_equal_hashes_are_refused_in_linear_time(tag: str, wrapped: bool) -> None:
    keys: list[Any] = [{"$int": hex(number * sys.hash_info.modulus)} for number in range(1, 20_001)]
    if wrapped:
        keys = [{"$tuple": [key, "x"]} for key in keys]
    skeleton = {tag: [part for key in keys for part in (key, 0)] if tag == "$dict" else keys}
    started = time.thread_time()
    with pytest.raises(LimitExceeded, match="20000 keys of a dict or items of a set have the same hash"):
        unpack({"skeleton": skeleton, "payloads": []}, lambda ref: memoryview(b""))
    assert time.thread_time() - started < 2


def test_a_dict_with_too_many_equal_hashes_is_not_sent_either() -> None:
    value = dict.fromkeys(number * sys.hash_info.modulus for number in range(1, 100))
    with pytest.raises(LimitExceeded, match="99 keys"), pack(value, MemoryStore()):
        pass


def test_powers_of_two_are_keys_although_many_have_equal_hashes() -> None:
    value = {2.0**exponent: exponent for exponent in range(-1074, 1024)}
    with pack(value, MemoryStore()) as packed:
        assert unpack(packed.wire, lambda ref: memoryview(b"")) == value


def test_a_checkpoint_ends_the_decoding_of_a_large_value() -> None:
    skeleton = {"$dict": [part for number in range(50_000) for part in ({"$int": hex(number)}, 0)]}
    calls = []

    def checkpoint() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled, match="stop"):
        unpack({"skeleton": skeleton, "payloads": []}, lambda ref: memoryview(b""), checkpoint=checkpoint)
    assert len(calls) == 3
