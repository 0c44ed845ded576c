"""Handles in values: found and loaded at any depth, without recursion and without needless copies."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from yggdrasill.values import ArtifactHandle, ArtifactRef, Handle, load_handles
from yggdrasill.values.handles import find_handles
from yggdrasill.values.payload import ArraySpec

TENSOR = torch.arange(3.0)


def handle() -> ArtifactHandle:
    spec = ArraySpec("float32", (3,), 12)
    return ArtifactHandle(ArtifactRef("0" * 64, spec), lambda ref: TENSOR.numpy().data.cast("B"))


def nested(depth: int, inner: Any, wrap: Any) -> Any:
    value = inner
    for _ in range(depth):
        value = wrap(value)
    return value


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and torch.equal(value, TENSOR)


@pytest.mark.parametrize("value", [None, 3, "text", b"bytes", TENSOR, object, [], (), {}, [1, [2.0, ("a",)], {"k": TENSOR}]], ids=str)
def test_load_handles_returns_a_value_without_handles_by_identity(value: Any) -> None:
    assert load_handles(value) is value


def test_load_handles_replaces_handles_at_any_depth() -> None:
    value = {"a": handle(), "b": [1, (handle(), {"c": handle()})]}
    loaded = load_handles(value)
    assert is_tensor(loaded["a"])
    assert is_tensor(loaded["b"][1][0])
    assert is_tensor(loaded["b"][1][1]["c"])
    assert isinstance(value["a"], Handle)
    assert isinstance(value["b"][1][0], Handle)  # type: ignore[index]


def test_load_handles_loads_a_handle_that_is_the_value() -> None:
    single = handle()
    assert load_handles(single) is single.load()


def test_load_handles_copies_only_the_containers_that_lead_to_a_handle() -> None:
    plain = [1, 2]
    value = {"plain": plain, "with": [handle(), plain]}
    loaded = load_handles(value)
    assert loaded["plain"] is plain
    assert loaded["with"][1] is plain


def test_load_handles_keeps_shared_containers_shared() -> None:
    shared = [handle()]
    first, second = load_handles([shared, (shared,)])
    assert first is second[0]
    assert is_tensor(first[0])


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}], ids=["list", "tuple", "dict"])
@pytest.mark.parametrize("has_handle", [True, False])
def test_load_handles_does_not_recurse(wrap: Any, has_handle: bool) -> None:
    depth = 3 * sys.getrecursionlimit()
    value = nested(depth, handle() if has_handle else 0, wrap)
    loaded = load_handles(value)
    assert (loaded is value) == (not has_handle)
    for _ in range(depth):
        (loaded,) = loaded.values() if isinstance(loaded, dict) else loaded
    assert is_tensor(loaded) if has_handle else loaded == 0


def test_load_handles_returns_a_cycle_without_handles_by_identity() -> None:
    ring: dict[str, Any] = {}
    ring["self"] = ring
    assert load_handles(ring) is ring


def test_load_handles_keeps_cycles_through_lists_tuples_and_dicts() -> None:
    ring: list[Any] = [handle()]
    ring.append(({"back": ring},))
    loaded = load_handles(ring)
    assert loaded is not ring
    assert loaded[1][0]["back"] is loaded
    assert is_tensor(loaded[0])


def test_load_handles_visits_each_container_once() -> None:
    value: Any = [handle()]
    for _ in range(60):
        value = (value, value)
    loaded = load_handles(value)
    assert loaded[0] is loaded[1]


def test_load_handles_leaves_subclasses_of_containers_alone() -> None:
    class Named(list[Any]):
        pass

    value = [Named([handle()])]
    assert load_handles(value) is value


def test_find_handles_visits_each_container_once_and_ends_on_cycles() -> None:
    first, second = handle(), handle()
    ring: dict[str, Any] = {"first": first}
    ring["self"] = ring
    value: Any = [second, ring]
    for _ in range(60):
        value = [value, value]
    assert sorted(map(id, find_handles(value))) == sorted([id(first), id(second)])
    assert len(find_handles(nested(3 * sys.getrecursionlimit(), first, lambda inner: [inner]))) == 1
