"""Truncated, altered, hostile or oversized bytes raise one of our errors before memory is allocated."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samples.values import trees
from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, UnsupportedVersion, YggdrasillError
from yggdrasill.values import Limits, decode, dumps, encode, loads, read_envelope
from yggdrasill.values.envelope import FORMAT_VERSION, MAGIC, PREFIX_BYTES

SAMPLE = {"t": torch.arange(5.0), "n": np.arange(6, dtype=">i2").reshape(2, 3).T, "b": bytes(600), "x": [(1, 2.5), {3: "a"}, 2**70]}
modest = settings(max_examples=150, deadline=None)


def seal(header: bytes | dict[str, Any], body: bytes = b"", *, version: int = FORMAT_VERSION) -> bytes:
    """Return an envelope with correct checksums around any header and body."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    gap = bytes(-len(text) % 64) if body else b""
    prefix = struct.pack("<8sIIQQ", MAGIC, version, 0, len(text), PREFIX_BYTES + len(text) + len(gap) + len(body))
    return prefix + blake3(prefix + text).digest() + text + gap + body


def test_every_flipped_bit_is_found() -> None:
    data = bytearray(dumps(SAMPLE))
    for position in range(len(data) * 8):
        data[position // 8] ^= 1 << position % 8
        with pytest.raises(YggdrasillError):
            loads(data)
        data[position // 8] ^= 1 << position % 8
    loads(data)


def test_every_truncation_is_found() -> None:
    data = dumps(SAMPLE)
    for length in range(len(data)):
        with pytest.raises(CorruptData):
            loads(data[:length])
    with pytest.raises(CorruptData):
        loads(data + b"\0")


def test_without_a_checksum_the_header_is_still_guarded_and_payloads_are_not() -> None:
    data = bytearray(dumps(torch.arange(4.0), checksum=False))
    data[-1] ^= 1
    assert loads(data)[3] != 3
    data[PREFIX_BYTES + 20] ^= 1
    with pytest.raises(CorruptData, match="checksum"):
        loads(data)


def test_a_flipped_bit_in_a_large_payload_is_found() -> None:
    data = bytearray(dumps(torch.zeros(2 << 20)))
    data[len(data) // 2] ^= 4
    with pytest.raises(CorruptData, match="do not match their checksum"):
        loads(data)


def test_a_newer_version_is_named() -> None:
    with pytest.raises(UnsupportedVersion, match="format version 2, and this Yggdrasill reads version 1"):
        loads(seal({"payloads": [], "value": 1}, version=2))


def test_a_value_that_is_not_bytes_is_refused() -> None:
    for data in (3, "text", None):
        with pytest.raises(InvalidArgument):
            loads(data)  # type: ignore[arg-type]


@modest
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_give_only_our_error(data: bytes, with_magic: bool) -> None:
    with pytest.raises(CorruptData if not with_magic else YggdrasillError):
        loads((MAGIC + struct.pack("<II", 1, 0) if with_magic else b"") + data)


@settings(max_examples=60, deadline=None)
@given(trees(), st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_mutated_envelopes_give_only_our_error(value: Any, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(dumps(value))
    before = bytes(data)
    for place, patch in edits:
        start = place % len(data)
        data[start : start + len(patch)] = patch
    if data == before:
        loads(data)
        return
    with pytest.raises(YggdrasillError):
        loads(data)


TAGS = "$tuple $dict $set $frozenset $ext $tensor $array $bytes $bytearray $scalar $int $float $str $complex $new $ $$".split()
DTYPE_NAMES = [
    "float32",
    "bool",
    "bfloat16",
    "qint8",
    "<f4",
    "|O",
    "|b1",
    "<U2",
    "|V3",
    "<M8[s]",
    "<M8[9999999999s]",
    "<f16:63",
    "bytes",
    "{}",
    "str",
]
SMALL = st.sampled_from([0, 1, 2, 3, 4, 8, -1, 2**31, 2**62, 2**63, 1.5, True, None])
DESCRIPTIONS = st.fixed_dictionaries(
    {"dtype": st.sampled_from(DTYPE_NAMES) | st.text(max_size=4), "shape": st.lists(SMALL, max_size=4), "nbytes": SMALL},
    optional={"strides": st.lists(SMALL, max_size=4), "hash": st.text(max_size=3)},
)
INLINE = st.builds(lambda about, data: {**about, "data": data}, DESCRIPTIONS, st.sampled_from(["", "AAAA", "AAAAAAAAAAA=", "!", 3]))
JSON_LEAVES = st.one_of(st.none(), st.booleans(), SMALL, st.floats(), st.text(max_size=5), st.sampled_from(DTYPE_NAMES), INLINE)
SKELETONS = st.recursive(
    JSON_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(TAGS) | st.text(max_size=3), inner, max_size=2),
        st.tuples(st.sampled_from(TAGS), inner).map(lambda pair: {pair[0]: pair[1]}),
        st.tuples(st.sampled_from(TAGS), st.lists(inner, max_size=3)).map(lambda pair: {pair[0]: pair[1]}),
        st.tuples(st.sampled_from(["fraction", "ordered_dict", "x"]), st.just(1), inner).map(lambda triple: {"$ext": [*triple]}),
    ),
    max_leaves=10,
)


@settings(max_examples=400, deadline=None)
@given(SKELETONS)
@example({"$tensor": {"dtype": "float32", "shape": [0, 2**62, 2**62], "nbytes": 0, "data": ""}})
@example({"$tensor": {"dtype": "float32", "shape": [1], "strides": [2**62], "nbytes": 4, "data": "AAAAAA=="}})
@example({"$array": {"dtype": "<f8", "shape": [1], "strides": [2**62], "nbytes": 8, "data": "AAAAAAAAAAA="}})
@example({"$array": {"dtype": "|S0", "shape": [2**62, 2**62], "nbytes": 0, "data": ""}})
@example({"$array": {"dtype": '{"fields":[["a","<i4",0],["a","<i4",4]],"itemsize":8}', "shape": [1], "nbytes": 8, "data": "AAAAAAAAAAA="}})
@example({"$array": {"dtype": '{"base":"<i4","shape":[1073741824,1073741824]}', "shape": [1], "nbytes": 8, "data": "AAAAAAAAAAA="}})
@example({"$set": [{"$tensor": 0}]})
@example({"$dict": [{"$tuple": [{"$tensor": 0}]}, 1]})
@example({"$set": [[1]]})
@example({"$dict": [[1], 2]})
@example({"$dict": [1, 2, True, 3]})
@example({"$ext": ["fraction", 1, [1, 0]]})
@example({"$ext": ["fraction", 1, {"$tensor": 0}]})
def test_hostile_skeletons_give_a_value_or_our_error(skeleton: Any) -> None:
    payload = encode(torch.arange(2.0)).payloads
    for payloads in ((), payload):
        try:
            value = decode(skeleton, payloads)
        except YggdrasillError:
            continue
        dumps(value)


@settings(max_examples=200, deadline=None)
@given(st.lists(DESCRIPTIONS, max_size=2), SKELETONS, st.binary(max_size=70))
def test_hostile_headers_with_right_checksums_give_a_value_or_our_error(entries: list[Any], skeleton: Any, body: bytes) -> None:
    try:
        loads(seal({"payloads": entries, "value": skeleton}, body))
    except YggdrasillError:
        return


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"payloads":[],"value":NaN}',
        b'{"payloads":[],"value":1e999}',
        b'{"payloads":[],"value":' + b"9" * 5000 + b"}",
        b'{"payloads":{},"value":1}',
        b'{"payloads":[],"value":1,"more":2}',
        b'{"payloads":[3],"value":1}',
        b'{"payloads":[{"dtype":"bytes","shape":[9],"nbytes":9}],"value":1}',
        b'{"payloads":[{"dtype":"bytes","shape":[0],"nbytes":0,"hash":7}],"value":1}',
        b'{"payloads":[],"value":{"$tensor":0}}',
        b'{"payloads":[],"value":{"$unheard":0}}',
        b'{"payloads":[],"value":{"a":1,"$tuple":[]}}',
    ],
)
def test_headers_that_no_encoder_writes_are_corrupt(header: bytes) -> None:
    with pytest.raises(CorruptData):
        loads(seal(header))


def test_a_header_as_deep_as_it_is_long_is_refused() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(LimitExceeded):
        loads(seal(b'{"payloads":[],"value":' + deep + b"}"))


def test_claims_are_checked_before_memory_is_taken() -> None:
    huge = {"dtype": "float32", "shape": [2**40], "nbytes": 2**42}
    many = b'{"payloads":[],"value":[' + b"[]," * 200_000 + b"0]}"
    hostile: list[bytes | memoryview] = [
        struct.pack("<8sIIQQ", MAGIC, 1, 0, 2**60, 2**61) + bytes(32),
        seal({"payloads": [huge], "value": {"$tensor": 0}}),
        seal({"payloads": [], "value": {"$tensor": {**huge, "data": ""}}}),
        seal({"payloads": [], "value": {"$array": {"dtype": "|V999999999", "shape": [1], "nbytes": 999999999, "data": ""}}}),
        seal({"payloads": [], "value": {"$scalar": ["|V999999999", ""]}}),
        seal(many),
    ]
    limits = Limits(max_items=50_000)
    with pytest.raises(CorruptData):
        loads(b"warm up")
    tracemalloc.start()
    try:
        for data in hostile:
            with pytest.raises((CorruptData, LimitExceeded)):
                loads(data, limits=limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_an_unknown_dtype_of_a_newer_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dumps(torch.zeros(2, dtype=torch.float8_e5m2))
    monkeypatch.delattr(torch, "float8_e5m2")
    with pytest.raises(UnsupportedVersion, match="float8_e5m2"):
        loads(data)


def test_an_extended_precision_of_another_machine_is_named() -> None:
    entry = {"dtype": "<f16:112", "shape": [1], "nbytes": 16}
    with pytest.raises(UnsupportedVersion, match="<f16:112"):
        loads(seal({"payloads": [entry], "value": {"$array": 0}}, bytes(16)))


def test_an_envelope_splits_into_planes_without_decoding() -> None:
    tensor = torch.arange(5.0)
    data = dumps(["name", tensor])
    encoded = read_envelope(data)
    assert encoded.skeleton == ["name", {"$tensor": 0}]
    (payload,) = encoded.payloads
    assert payload.hash == blake3(tensor.numpy().tobytes()).hexdigest() == encode(tensor).payloads[0].digest()
    assert payload.data.obj is data


def test_adopted_memory_is_the_tensors_own() -> None:
    data = dumps(torch.arange(4.0))
    storage = np.zeros(len(data) + 64, np.uint8)
    start = -storage.ctypes.data % 64
    buffer = storage[start : start + len(data)]
    buffer[:] = np.frombuffer(data, np.uint8)
    tensor = loads(buffer.data, adopt=True)
    tensor[3] = 9.0
    assert struct.unpack("<f", buffer[-4:].tobytes()) == (9.0,)
    assert loads(data, adopt=True)[3] == 3.0
