"""A decoded value equals the encoded one."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.values import same, trees
from yggdrasill.errors import CannotTravel, LimitExceeded
from yggdrasill.values import Limits, decode, dumps, encode, from_json, iter_envelope, loads, to_json

modest = settings(max_examples=60, deadline=None)


def round_trip(value: Any) -> Any:
    return loads(dumps(value))


@modest
@given(trees())
def test_every_value_tree_comes_back_from_bytes(value: Any) -> None:
    assert same(value, round_trip(value))


@modest
@given(trees())
def test_every_value_tree_comes_back_from_json_text(value: Any) -> None:
    assert same(value, from_json(json.loads(json.dumps(to_json(value), allow_nan=False))))


@modest
@given(trees())
def test_every_value_tree_comes_back_from_its_two_planes(value: Any) -> None:
    encoded = encode(value)
    assert same(value, decode(json.loads(json.dumps(encoded.skeleton)), encoded.payloads))


@modest
@given(trees())
def test_the_same_value_gives_the_same_bytes_after_a_round_trip(value: Any) -> None:
    data = dumps(value)
    assert dumps(value) == data
    assert dumps(loads(data)) == data


def test_a_tensor_that_occurs_twice_travels_once_and_stays_one_object() -> None:
    tensor = torch.rand(1000)
    value = {"a": tensor, "b": [tensor]}
    assert len(encode(value).payloads) == 1
    back = round_trip(value)
    assert back["a"] is back["b"][0]


def test_payloads_of_values_made_while_encoding_are_not_confused() -> None:
    from yggdrasill.values import register_type

    register_type("test.fresh", Fresh, lambda value: torch.full((3,), float(value.number)), lambda state: Fresh(int(state[0])))
    back = round_trip([Fresh(number) for number in range(20)])
    assert [fresh.number for fresh in back] == list(range(20))


class Fresh:
    def __init__(self, number: int) -> None:
        self.number = number


def test_payloads_and_chunks_are_views_of_the_tensor() -> None:
    tensor = torch.arange(1000.0)
    (payload,) = encode(tensor).payloads
    chunk = list(iter_envelope(tensor))[-1]
    tensor[0] = 42.0
    assert struct.unpack("<f", payload.data[:4]) == (42.0,)
    assert struct.unpack("<f", chunk[:4]) == (42.0,)
    assert payload.description.to_json() == {"dtype": "float32", "shape": [1000], "nbytes": 4000}


@modest
@given(trees(), st.booleans())
def test_the_length_is_known_before_the_chunks(value: Any, checksum: bool) -> None:
    envelope = iter_envelope(value, checksum=checksum)
    joined = b"".join(envelope)
    assert len(joined) == envelope.nbytes
    assert joined == dumps(value, checksum=checksum)


def test_json_stays_readable_where_json_loses_nothing() -> None:
    plain = {
        "name": "Æsir 🌳",
        "count": 3,
        "share": 0.5,
        "one": 1.0,
        "none": None,
        "flags": [True, False],
        "low": -0.0,
        "nested": {"x": []},
    }
    assert to_json(plain) == plain
    assert to_json((1, 2)) == {"$tuple": [1, 2]}
    assert to_json({"$tuple": 1}) == {"$$tuple": 1}
    assert to_json(math.inf) == {"$float": "inf"}
    assert to_json({1: "a", "1": "b"}) == {"$dict": [1, "a", "1", "b"]}


def test_one_true_and_their_text_stay_apart() -> None:
    value = [1, 1.0, True, "1", b"1", {1: "int", "1": "text", b"1": "bytes", (1, "1"): "tuple"}, {True: 0}, {1.0: 0}, {None: 0}]
    assert same(value, round_trip(value))
    assert same(value, from_json(json.loads(json.dumps(to_json(value)))))


@pytest.mark.parametrize("text", ["\ud800", "\ud83d\ude00", "a\udfffb", "\x00", "😀"])
def test_texts_with_and_without_surrogates_come_back_code_point_by_code_point(text: str) -> None:
    value = [text, {text: text}, np.str_(text)]
    assert same(value, round_trip(value))
    assert same(value, from_json(json.loads(json.dumps(to_json(value)))))


def test_long_integers_and_not_a_number_keep_every_bit() -> None:
    signalling = struct.unpack("<d", bytes.fromhex("010000000000f47f"))[0]
    value = [10**6000, -(2**53) - 1, math.nan, -math.nan, signalling, complex(-0.0, math.inf), Fraction(-1, 3), math.inf, -math.inf]
    assert same(value, round_trip(value))


def nan_bits(key: Any) -> Any:
    return tuple(map(nan_bits, key)) if isinstance(key, tuple) else struct.pack(">d", key) if isinstance(key, float) else key


@pytest.mark.parametrize("form", ["bytes", "json"])
def test_several_nan_keys_of_a_dict_and_items_of_a_set_come_back(form: str) -> None:
    nans = [float("nan"), float("nan"), -float("nan"), struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]]
    value: dict[str, Any] = {
        "keys": {key: number for number, key in enumerate(nans)},
        "tuples": {(nans[0], "a"): 0, (nans[1], "a"): 1},
        "items": set(nans),
        "frozen": frozenset(nans),
    }

    again = loads(dumps(value)) if form == "bytes" else from_json(json.loads(json.dumps(to_json(value))))

    for name in ("keys", "tuples"):
        assert [(nan_bits(key), item) for key, item in again[name].items()] == [(nan_bits(key), item) for key, item in value[name].items()]
    for name in ("items", "frozen"):
        assert type(again[name]) is type(value[name])
        assert sorted(map(nan_bits, again[name])) == sorted(map(nan_bits, nans))


def test_the_bytes_of_a_set_are_the_same_in_every_process(tmp_path: Path) -> None:
    code = "from yggdrasill.values import dumps; print(dumps({f'name {n}' for n in range(20)}).hex())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) > 100


class Stranger:
    """A type that is not registered with the codec."""


class Labelled(torch.Tensor):
    """A subclass of Tensor."""


def looped() -> list[Any]:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    return loop


@pytest.mark.parametrize(
    "value, place, kind",
    [
        ({"a": [0, 1, 2, Stranger()]}, 'value["a"][3]', "Stranger"),
        ([torch.zeros(2).to_sparse()], "value[0]", "torch.sparse_coo"),
        ({"m": torch.zeros(2, device="meta")}, 'value["m"]', "meta"),
        (({1: torch.zeros(2).as_subclass(Labelled)},), "value[0][1]", "Labelled"),
        ([np.array([object()], object)], "value[0]", "dtype('O')"),
        ([np.ma.masked_array([1])], "value[0]", "MaskedArray"),
        ([{torch.zeros(1): 2}], "value[0]<key 0>", "Tensor"),
        ([{Stranger}], "value[0]<item>", "type"),
        (looped(), 'value[1]["again"]', "list"),
    ],
)
def test_a_value_that_cannot_be_encoded_is_named_with_its_location(value: Any, place: str, kind: str) -> None:
    for act in (encode, to_json, dumps):
        with pytest.raises(CannotTravel) as caught:
            act(value)
        assert caught.value.details["place"] == place
        assert place in str(caught.value)
        assert kind in str(caught.value)


def test_the_location_of_a_value_under_a_very_long_integer_key_is_reported() -> None:
    with pytest.raises(CannotTravel, match=r"value\[<int>\]"):
        dumps({10**5000: object()})


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}, lambda inner: {1: inner}])
def test_depth_is_a_limit_and_never_the_stack(wrap: Any) -> None:
    value: Any = 0
    for _ in range(200):
        value = wrap(value)
    assert same(value, round_trip(value))
    deeper = wrap(value)
    with pytest.raises(LimitExceeded, match="max_depth = 201"):
        dumps(deeper)
    data = dumps(deeper, limits=Limits(max_depth=240))
    with pytest.raises(LimitExceeded, match="max_depth"):
        loads(data)
    bottomless: Any = 0
    for _ in range(100_000):
        bottomless = [bottomless]
    with pytest.raises(LimitExceeded):
        from_json(bottomless)
    with pytest.raises(LimitExceeded):
        dumps(bottomless)


@pytest.mark.parametrize(
    "limits, value",
    [
        (Limits(max_items=10), list(range(11))),
        (Limits(max_items=10), {"a": [1] * 5, "b": {str(number): 0 for number in range(5)}}),
        (Limits(max_payloads=2), [torch.zeros(1), torch.zeros(1), torch.zeros(1)]),
        (Limits(max_bytes=1000), [torch.zeros(200), torch.zeros(200)]),
        (Limits(max_header=1000), "x" * 1000),
    ],
    ids=["items", "entries", "payloads", "bytes", "header"],
)
def test_each_limit_holds_in_both_directions(limits: Limits, value: Any) -> None:
    with pytest.raises(LimitExceeded):
        dumps(value, limits=limits)
    with pytest.raises(LimitExceeded):
        loads(dumps(value), limits=limits)


def test_a_value_that_multiplies_itself_meets_the_item_limit() -> None:
    value: Any = [0] * 10
    for _ in range(20):
        value = [value] * 10
    with pytest.raises(LimitExceeded, match="max_items"):
        dumps(value, limits=Limits(max_items=10_000))


def test_importing_values_loads_neither_torch_nor_numpy(tmp_path: Path) -> None:
    code = (
        "import sys, yggdrasill.values as v; v.dumps([1, 'a', (2,)]); v.Limits; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
