"""Hashes are remembered while a tensor lives and is unchanged, and no longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from yggdrasill.values import HashCache, decode, encode
from yggdrasill.values.payload import Payload


def payload_of(value: object) -> Payload:
    return encode(value).payloads[0]


def remembered(value: object) -> HashCache:
    cache = HashCache()
    assert cache.known(value) is None
    assert cache.digest(value, payload_of(value)) == payload_of(value).digest()
    return cache


def test_an_unchanged_tensor_is_not_hashed_again() -> None:
    tensor = torch.rand(50, 40).t()
    cache = remembered(tensor)
    payload = payload_of(tensor)
    assert cache.known(tensor) == (payload.digest(), payload.description)
    again = payload_of(tensor)
    again.digest = None  # type: ignore[method-assign, assignment]
    assert cache.digest(tensor, again) == payload.hash


CHANGES: dict[str, Callable[[torch.Tensor], object]] = {
    "add": lambda tensor: tensor.add_(1),
    "one element": lambda tensor: tensor.__setitem__((0, 0), 5.0),
    "through a view": lambda tensor: tensor[3:].zero_(),
    "reshaped": lambda tensor: tensor.t_(),
    "other memory": lambda tensor: setattr(tensor, "data", torch.rand(50, 40)),
    "filled through numpy": lambda tensor: tensor.numpy().fill(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tensor_is_hashed_again(change: str) -> None:
    tensor = torch.rand(50, 40)
    cache = remembered(tensor)
    CHANGES[change](tensor)
    assert cache.known(tensor) is None
    assert cache.digest(tensor, payload_of(tensor)) == payload_of(tensor).digest()
    assert cache.known(tensor) is not None


def test_a_tensor_that_died_is_forgotten() -> None:
    tensor = torch.rand(10)
    cache = remembered(tensor)
    assert len(cache) == 1
    del tensor
    assert len(cache) == 0


def test_what_cannot_be_watched_is_not_remembered() -> None:
    with torch.inference_mode():
        inferred = torch.rand(10)
    for value in (inferred, torch.complex(torch.rand(5), torch.rand(5)).conj(), np.arange(5), b"x" * 600):
        assert len(remembered(value)) == 0


@pytest.mark.parametrize("value", [torch.empty(0, 3), torch.tensor(5.0), torch.rand(4, 4)[::2], torch.zeros(3, dtype=torch.bfloat16)])
def test_tensors_of_every_layout_are_remembered(value: torch.Tensor) -> None:
    assert remembered(value).known(value) is not None


def test_coding_a_tensor_does_not_keep_it_alive() -> None:
    tensor = torch.rand(1000)
    encoded = encode({"a": [tensor]})
    decoded = decode(encoded.skeleton, encoded.payloads)["a"][0]
    gone = weakref.ref(tensor), weakref.ref(decoded)
    gc.disable()
    try:
        del tensor, decoded
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
