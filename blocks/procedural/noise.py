"""Gradient noise on the plane: arithmetic on arrays, the same bits for the same seed, independent of maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "fractal", "gradient_noise", "mix", "ridged", "unit_grid"]

Field = NDArray[np.float64]

#: Points per step, so that intermediate results stay in the processor's cache.
_CHUNK = 16384

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def unit_grid(size: int) -> tuple[Field, Field]:
    """Return the x and y of each pixel's centre, float64 [size, size] in 0..1; y grows downwards."""
    line = (np.arange(size, dtype=np.float64) + 0.5) / size
    x, y = np.meshgrid(line, line)
    return x, y


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return scrambled 64-bit integers (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def gradient_noise(x: Field, y: Field, seed: int) -> Field:
    """Return gradient noise (Perlin 1985, fade of 2002) at ``x, y`` in lattice cells; about -0.8..0.8, zero on the lattice."""
    left, top = int(np.floor(x.min())), int(np.floor(y.min()))
    width = int(np.floor(x.max())) - left + 2
    gx, gy = _gradients(left, top, width, int(np.floor(y.max())) - top + 2, seed)
    flat_x, flat_y = x.ravel(), y.ravel()
    noise = np.empty_like(flat_x)
    for start in range(0, noise.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        noise[part] = _interpolate(flat_x[part] - left, flat_y[part] - top, gx, gy, width)
    return noise.reshape(x.shape)


def _interpolate(x: Field, y: Field, gx: Field, gy: Field, width: int) -> Field:
    column, row = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - column, y - row
    corner = row * width + column

    def dot(offset: int, dx: Field, dy: Field) -> Field:
        at = corner + offset
        product: Field = gx.take(at) * dx
        product += gy.take(at) * dy
        return product

    u = fx * fx * fx * (fx * (fx * 6.0 - 15.0) + 10.0)
    v = fy * fy * fy * (fy * (fy * 6.0 - 15.0) + 10.0)
    upper = dot(0, fx, fy)
    upper += u * (dot(1, fx - 1.0, fy) - upper)
    lower = dot(width, fx, fy - 1.0)
    lower += u * (dot(width + 1, fx - 1.0, fy - 1.0) - lower)
    lower -= upper
    lower *= v
    lower += upper
    return lower


def _gradients(left: int, top: int, width: int, height: int, seed: int) -> tuple[Field, Field]:
    columns = np.arange(left, left + width, dtype=np.int64).astype(np.uint64)
    rows = np.arange(top, top + height, dtype=np.int64).astype(np.uint64)
    start = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    keys = mix(mix(columns[None, :] ^ start) + mix(rows + _GOLDEN)[:, None])
    angle = (keys >> np.uint64(11)).astype(np.float64) * (2.0 * np.pi / 2.0**53)
    return np.cos(angle).ravel(), np.sin(angle).ravel()


def fractal(x: Field, y: Field, seed: int, *, frequency: float, octaves: int, gain: float = 0.5) -> Field:
    """Return the sum of ``octaves`` of noise, each twice as fine and ``gain`` times as strong as the last; about -1..1.

    Octaves finer than a pixel would only be grain and are omitted; the others keep their strength.
    """
    total = np.zeros_like(x)
    strength, reach = 1.0, 0.0
    for octave in range(octaves):
        if frequency <= x.shape[1]:
            total += strength * gradient_noise(x * frequency + 17.17 * octave, y * frequency - 9.31 * octave, seed + octave)
        reach += strength
        strength *= gain
        frequency *= 2.03
    return total * (1.6 / reach)


def ridged(x: Field, y: Field, seed: int, *, frequency: float, octaves: int, gain: float = 0.5) -> Field:
    """Return ridged multifractal noise (Musgrave 1993): crests where the noise crosses zero, rougher where higher; 0..1.

    Octaves finer than a pixel are omitted, as in `fractal`.
    """
    total = np.zeros_like(x)
    weight = np.ones_like(x)
    strength, reach = 1.0, 0.0
    for octave in range(octaves):
        if frequency <= x.shape[1]:
            crest = 1.0 - np.abs(gradient_noise(x * frequency - 5.7 * octave, y * frequency + 3.9 * octave, seed + 101 * octave)) * 1.8
            crest = np.clip(crest, 0.0, 1.0) ** 2
            total += strength * weight * crest
            weight = np.clip(crest * 1.6, 0.0, 1.0)
        reach += strength
        strength *= gain
        frequency *= 2.1
    return total / reach
