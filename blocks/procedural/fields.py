"""Small operations on [height, width] fields that several terrain blocks share, and conversion from and to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from yggdrasill.blocks.procedural.noise import Field
from yggdrasill.errors import InvalidArgument

if TYPE_CHECKING:
    import torch

__all__ = ["as_field", "as_tensor", "blur", "resample", "smoothstep"]


def as_field(value: Any, port: str, block: str) -> Field:
    """Return a float64 copy of a [height, width] tensor or array.

    Raises:
        InvalidArgument: a different shape, or a value that is not finite.
    """
    import torch

    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != 2 or min(array.shape) < 2:
        raise InvalidArgument(
            f"{block}: port {port!r} got shape {list(array.shape)}; expected a field [height, width], such as the output of procedural/heightfield"
        )
    field = array.astype(np.float64)
    if not np.isfinite(field).all():
        raise InvalidArgument(f"{block}: port {port!r} has NaN or infinity; every cell of a field must be finite")
    return field


def as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return the array as a contiguous tensor of the same dtype."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def smoothstep(low: float, high: float, values: Field) -> Field:
    """Return 0 below ``low``, 1 above ``high``, and a smooth cubic in between; decreasing if ``low > high``."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    smooth: Field = t * t * (3.0 - 2.0 * t)
    return smooth


def blur(field: Field, radius: float, passes: int = 3) -> Field:
    """Return the field blurred by box filters of ``radius`` pixels (three of them come close to a Gaussian); edges are repeated."""
    whole = int(radius)
    part = radius - whole
    for _ in range(passes):
        for axis in (0, 1):
            field = _box(field, whole, axis) if part < 1e-6 else _box(field, whole, axis) * (1 - part) + _box(field, whole + 1, axis) * part
    return field


def _box(field: Field, radius: int, axis: int) -> Field:
    if radius == 0:
        return field
    pad = [(0, 0), (0, 0)]
    pad[axis] = (radius + 1, radius)
    running = np.cumsum(np.pad(field, pad, mode="edge"), axis=axis)
    window = 2 * radius + 1
    difference: Field = running[window:] - running[:-window] if axis == 0 else running[:, window:] - running[:, :-window]
    means: Field = difference / window
    return means


def resample(field: Field, size: int) -> Field:
    """Return the square field at a different size: block means if it shrinks by a whole factor, else cubic (Catmull-Rom)."""
    old = field.shape[0]
    if old == size:
        return np.array(field)
    if old % size == 0:
        step = old // size
        means: Field = field.reshape(size, step, size, step).mean(axis=(1, 3))
        return means
    across: Field = _cubic(_cubic(field, size).T, size).T
    return np.ascontiguousarray(across)


def _cubic(field: Field, size: int) -> Field:
    old = field.shape[0]
    place = (np.arange(size) + 0.5) * (old / size) - 0.5
    base = np.floor(place).astype(np.int64)
    t = (place - base)[:, None]
    a, b, c, d = (field[np.clip(base + offset, 0, old - 1)] for offset in (-1, 0, 1, 2))
    fitted: Field = b + 0.5 * t * (c - a + t * (2.0 * a - 5.0 * b + 4.0 * c - d + t * (3.0 * (b - c) + d - a)))
    return fitted
