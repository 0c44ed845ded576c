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

from samples.values import NUMPY_DTYPES, STRUCTURED, TORCH_DTYPES, arrays, same, tensors, travelled, trees
from yggdrasill.errors import CannotTravel, LimitExceeded
from yggdrasill.values import Limits, decode, dumps, encode, from_json, iter_envelope, loads, to_json
from yggdrasill.values.payload import ALIGNMENT

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


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_tensors_keep_dtype_shape_bits_and_memory_order(tensor: torch.Tensor) -> None:
    assert same(tensor, round_trip(tensor))


@settings(max_examples=100, deadline=None)
@given(arrays())
def test_arrays_keep_dtype_shape_bits_and_memory_order(array: Any) -> None:
    assert same(array, round_trip(array))


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_each_dtype_of_torch_keeps_every_bit(dtype: torch.dtype) -> None:
    patterns = torch.arange(32, dtype=torch.uint8) * 7 + 3
    tensor = (patterns % 2 if dtype is torch.bool else patterns).view(dtype)
    back = round_trip(tensor)
    assert back.dtype is dtype
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_all_plain_dtypes_of_this_torch_travel() -> None:
    here = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    assert {str(dtype) for dtype in here - set(TORCH_DTYPES)} == {
        f"torch.{name}" for name in "qint8 qint32 quint8 quint2x4 quint4x2".split()
    }


@pytest.mark.parametrize("dtype", [*map(np.dtype, NUMPY_DTYPES), STRUCTURED, np.dtype(np.longdouble), np.dtype(np.clongdouble)], ids=str)
def test_each_dtype_of_numpy_comes_back_with_its_byte_order(dtype: np.dtype[Any]) -> None:
    array: Any = np.ndarray((2, 3), dtype, bytes(6 * dtype.itemsize))
    assert same(array, round_trip(array))
    assert round_trip(array).dtype.str == dtype.str


def test_channels_last_and_permuted_strides_survive() -> None:
    channels_last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    permuted = torch.rand(2, 3, 4).permute(2, 0, 1)
    single = torch.rand(1, 1, 4, 4).to(memory_format=torch.channels_last)
    for tensor in (channels_last, permuted, single):
        assert round_trip(tensor).stride() == tensor.stride()
    assert round_trip(channels_last).is_contiguous(memory_format=torch.channels_last)


def test_views_with_gaps_or_overlaps_become_contiguous() -> None:
    base = torch.arange(12.0).view(3, 4)
    for view in (base[:, 1:3], base[::2], torch.arange(3.0).expand(4, 3), base.as_strided((3, 3), (1, 1))):
        back = round_trip(view)
        assert back.is_contiguous()
        assert torch.equal(back, view)
        assert travelled(view) == back.stride()


def test_a_view_with_gaps_keeps_the_order_of_its_axes() -> None:
    view = torch.rand(1, 3, 8, 8).permute(0, 2, 3, 1)[:, 1:-1, 1:-1]
    assert round_trip(view).stride() == (view * 1).stride() == (108, 6, 1, 36)
    assert torch.equal(round_trip(view), view)


def test_only_the_bytes_of_a_view_travel() -> None:
    assert len(dumps(torch.zeros(1_000_000)[:10])) < 1000


def test_inference_and_trainable_tensors_arrive_plain() -> None:
    with torch.inference_mode():
        inferred = torch.rand(3, 2).t()
    parameter = torch.nn.Parameter(torch.rand(3))
    conjugate = torch.rand(3, dtype=torch.complex64).conj()
    back = round_trip({"inferred": inferred, "parameter": parameter, "conjugate": conjugate})
    assert same(inferred, back["inferred"])
    assert not back["inferred"].is_inference()
    assert type(back["parameter"]) is torch.Tensor
    assert not back["parameter"].requires_grad
    assert torch.equal(back["parameter"], parameter.detach())
    assert torch.equal(back["conjugate"], conjugate.resolve_conj())


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


def test_gaps_between_fields_hold_no_chance_memory() -> None:
    grid: Any = np.zeros((4, 4), STRUCTURED)
    for view in (grid[::2, ::2], grid[0, 0]):
        assert len({dumps(view) for _ in range(20)}) == 1


class Fresh:
    def __init__(self, number: int) -> None:
        self.number = number


def test_decoded_tensors_are_aligned_and_own_their_memory() -> None:
    tensor = torch.arange(7.0)
    buffer = bytearray(dumps([tensor, tensor.double(), np.arange(3)]))
    back = loads(buffer)
    buffer[:] = bytes(len(buffer))
    assert torch.equal(back[0], tensor)
    assert all(item.data_ptr() % ALIGNMENT == 0 for item in back[:2])
    encoded = encode(tensor)
    decode(encoded.skeleton, encoded.payloads).zero_()
    assert tensor[3] == 3


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


def test_numpy_texts_keep_trailing_zeros() -> None:
    assert same([np.str_("a\x00"), np.bytes_(b"a\x00")], round_trip([np.str_("a\x00"), np.bytes_(b"a\x00")]))


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
    """A tensor with a state of its own."""


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
def test_what_cannot_travel_is_named_with_its_place(value: Any, place: str, kind: str) -> None:
    for act in (encode, to_json, dumps):
        with pytest.raises(CannotTravel) as caught:
            act(value)
        assert caught.value.details["place"] == place
        assert place in str(caught.value)
        assert kind in str(caught.value)


def test_the_location_of_a_value_under_a_very_long_integer_key_is_reported() -> None:
    with pytest.raises(CannotTravel, match=r"value\[<int>\]"):
        dumps({10**5000: object()})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_quantized_and_nested_tensors_are_refused() -> None:
    quantized = torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)
    nested = torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])
    for tensor, word in ((quantized, "quantized"), (nested, "nested")):
        with pytest.raises(CannotTravel, match=word):
            dumps([tensor])


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
