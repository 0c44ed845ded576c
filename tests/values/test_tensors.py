"""Tensors, arrays and numpy scalars keep dtype, shape, bits and memory order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from samples.values import NUMPY_DTYPES, STRUCTURED, TORCH_DTYPES, arrays, same, tensors, travelled
from yggdrasill.errors import CannotTravel
from yggdrasill.values import decode, dumps, encode, loads
from yggdrasill.values.payload import ALIGNMENT


def round_trip(value: Any) -> Any:
    return loads(dumps(value))


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


def test_gaps_between_fields_hold_no_chance_memory() -> None:
    grid: Any = np.zeros((4, 4), STRUCTURED)
    for view in (grid[::2, ::2], grid[0, 0]):
        assert len({dumps(view) for _ in range(20)}) == 1


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


def test_numpy_texts_keep_trailing_zeros() -> None:
    assert same([np.str_("a\x00"), np.bytes_(b"a\x00")], round_trip([np.str_("a\x00"), np.bytes_(b"a\x00")]))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_quantized_and_nested_tensors_are_refused() -> None:
    quantized = torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)
    nested = torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])
    for tensor, word in ((quantized, "quantized"), (nested, "nested")):
        with pytest.raises(CannotTravel, match=word):
            dumps([tensor])
