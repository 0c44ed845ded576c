"""Limits, specs of payloads, and memory order as numbers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded
from yggdrasill.values import ArraySpec, Limits, Payload
from yggdrasill.values.payload import contiguous_strides, element_count, is_dense

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
SPEC: dict[str, Any] = {"dtype": "float32", "shape": [2, 3], "nbytes": 24}


@given(SHAPES)
def test_contiguous_strides_are_those_of_torch(shape: tuple[int, ...]) -> None:
    tensor = torch.empty(shape)
    assert contiguous_strides(shape) == tensor.stride()
    assert element_count(shape) == tensor.numel()


@given(SHAPES, st.randoms(use_true_random=False))
def test_any_order_of_the_axes_of_a_contiguous_tensor_is_dense(shape: tuple[int, ...], random: Any) -> None:
    axes = random.sample(range(len(shape)), len(shape))
    permuted = torch.empty(shape).permute(axes)
    assert is_dense(permuted.shape, permuted.stride())


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_dense_strides_visit_each_element_of_one_block_once(shape: list[int], strides: list[int]) -> None:
    strides = strides[: len(shape)]
    offsets = sorted(
        sum(place * stride for place, stride in zip(index, strides, strict=True)) for index in itertools.product(*map(range, shape))
    )
    assert is_dense(shape, strides) == (offsets == list(range(element_count(shape))))


@pytest.mark.parametrize("depth", [0, -1, 241])
def test_a_depth_limit_outside_the_range_is_refused(depth: int) -> None:
    with pytest.raises(InvalidArgument, match="between 1 and 240"):
        Limits(max_depth=depth)


def test_a_limit_that_is_exceeded_is_reported_with_bound_and_need() -> None:
    with pytest.raises(LimitExceeded, match=r"max_items = 11, and the limit is 10") as caught:
        Limits(max_items=10).check("max_items", 11)
    assert (caught.value.details["limit"], caught.value.details["bound"], caught.value.details["found"]) == ("max_items", 10, 11)


@pytest.mark.parametrize("strides", [None, (3, 1), (1, 2)])
def test_a_spec_is_read_from_its_json(strides: tuple[int, ...] | None) -> None:
    spec = ArraySpec("float32", (2, 3), 24, strides)
    assert ArraySpec.from_json({**spec.to_json(), "hash": "0" * 64}) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": 3},
        {"nbytes": -1},
        {"nbytes": True},
        {"shape": "23"},
        {"shape": [2, -3]},
        {"shape": [2, 2**63]},
        {"strides": [1]},
        {"strides": [0, 1]},
        {"device": "cuda"},
    ],
    ids=str,
)
def test_a_spec_that_no_encoder_writes_is_corrupt(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptData):
        ArraySpec.from_json({**SPEC, **change})


def test_bytes_that_do_not_fit_their_spec_are_corrupt() -> None:
    with pytest.raises(CorruptData, match="cannot be float32"):
        ArraySpec("float32", (2, 3), 23).require(4)
    with pytest.raises(CorruptData, match="is described as"):
        Payload(ArraySpec("bytes", (3,), 3), memoryview(b"four"))


def test_a_payload_with_a_wrong_hash_is_corrupt() -> None:
    payload = Payload(ArraySpec("bytes", (3,), 3), memoryview(b"abc"))
    payload.digest()
    payload.verify()
    with pytest.raises(CorruptData, match="checksum"):
        Payload(payload.description, memoryview(b"abd"), payload.hash).verify()
