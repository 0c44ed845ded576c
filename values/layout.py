"""Shapes and strides as numbers: which tensors fill their memory without gaps, and in what order. Knows neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = ["ALIGNMENT", "contiguous_strides", "element_count", "is_dense"]

ALIGNMENT = 64
"""Bytes. Kernels may add in another order in memory aligned otherwise, so every decoded tensor starts on such a boundary, as torch's own do."""


def element_count(shape: Sequence[int]) -> int:
    """Elements in ``shape``; 1 for a scalar's ``()``."""
    return prod(shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of ``shape`` in elements; an empty axis counts as 1, as in torch."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements at ``strides`` (in elements) fill one block of memory, each place once; axes may stand in any order."""
    if 0 in shape:
        return all(stride >= 0 for stride in strides)
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return all(stride >= 0 for stride in strides)
