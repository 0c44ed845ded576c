"""Drainage on a grid: filled depressions, one receiver per cell, and amounts accumulated downhill.

Cells are flat indices of a [height, width] field; the edge of the map and every cell at or below 0 m are outlets.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
from numpy.typing import NDArray

from yggdrasill.blocks.procedural.noise import Field

__all__ = ["Cells", "accumulate", "carve", "fill_depressions", "receivers"]

Cells = NDArray[np.int64]

#: Metres by which a filled cell is higher than its outlet: enough to give flats a direction.
SLOPE = 1e-4

_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def fill_depressions(elevation: Field) -> Field:
    """Return the lowest surface over ``elevation`` from which every land cell drains to the sea or off the map.

    Priority-flood with an increment (Barnes, Lehman and Mulla 2014, algorithm 3): land is flooded inwards from the
    outlets in order of height, cells inside a depression are in a plain queue.
    """
    rows, columns = elevation.shape
    width = columns + 2
    padded = np.zeros((rows + 2, width))
    padded[1:-1, 1:-1] = elevation
    land = np.zeros((rows + 2, width), dtype=bool)
    land[2:-2, 2:-2] = elevation[1:-1, 1:-1] > 0.0
    near_land = np.zeros_like(land)
    for dy, dx in _NEIGHBOURS:
        near_land[1:-1, 1:-1] |= land[1 + dy : rows + 1 + dy, 1 + dx : columns + 1 + dx]
    height: list[float] = padded.ravel().tolist()
    todo = bytearray(land.astype(np.uint8).tobytes())
    seeds = np.flatnonzero(near_land & ~land).tolist()
    heap = [(height[cell], cell) for cell in seeds]
    heapq.heapify(heap)
    pit: deque[int] = deque()
    offsets = tuple(dy * width + dx for dy, dx in _NEIGHBOURS)
    push, pop = heapq.heappush, heapq.heappop
    while heap or pit:
        cell = pit.popleft() if pit else pop(heap)[1]
        floor = height[cell] + SLOPE
        for offset in offsets:
            other = cell + offset
            if todo[other]:
                todo[other] = 0
                if height[other] <= floor:
                    height[other] = floor
                    pit.append(other)
                else:
                    push(heap, (height[other], other))
    return np.array(height).reshape(rows + 2, width)[1:-1, 1:-1]


def receivers(filled: Field) -> Cells:
    """Return the flat index of the steepest lower neighbour of each land cell (D8, O'Callaghan and Mark 1984); outlets receive themselves."""
    rows, columns = filled.shape
    best = np.zeros_like(filled)
    target = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    inner = filled[1:-1, 1:-1]
    self_index = target.copy()
    for dy, dx in _NEIGHBOURS:
        there = (slice(1 + dy, rows - 1 + dy), slice(1 + dx, columns - 1 + dx))
        drop = (inner - filled[there]) / (2.0**0.5 if dy and dx else 1.0)
        better = drop > best[1:-1, 1:-1]
        best[1:-1, 1:-1] = np.where(better, drop, best[1:-1, 1:-1])
        target[1:-1, 1:-1] = np.where(better, self_index[there], target[1:-1, 1:-1])
    target = np.where(filled > 0.0, target, self_index)
    return target.ravel()


def accumulate(filled: Field, receiver: Cells, amount: Field) -> Field:
    """Return the total through each cell: its ``amount`` and all amounts that drain into it, summed from the top down."""
    flow: list[float] = amount.ravel().tolist()
    moving = np.flatnonzero(receiver != np.arange(receiver.size))
    order = moving[np.argsort(-filled.ravel()[moving], kind="stable")]
    for cell, below in zip(order.tolist(), receiver[order].tolist(), strict=True):
        flow[below] += flow[cell]
    return np.array(flow).reshape(filled.shape)


def carve(elevation: Field, filled: Field, receiver: Cells, strength: Field) -> Field:
    """Return the heights after one implicit step of stream-power erosion (Braun and Willett 2013): each cell sinks towards its receiver.

    ``strength`` is K * dt * A**m / distance without unit; from the outlets upwards
    ``z = (z + strength * z_receiver) / (1 + strength)``, which is stable for any strength.
    """
    height: list[float] = elevation.ravel().tolist()
    moving = np.flatnonzero(receiver != np.arange(receiver.size))
    order = moving[np.argsort(filled.ravel()[moving], kind="stable")]
    factor = strength.ravel()[order].tolist()
    for cell, below, pull in zip(order.tolist(), receiver[order].tolist(), factor, strict=True):
        floor = height[below]
        if height[cell] > floor:
            height[cell] = (height[cell] + pull * floor) / (1.0 + pull)
    return np.array(height).reshape(elevation.shape)
