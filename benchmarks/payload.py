"""The large payload of the remote benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ELEMENTS", "NBYTES", "bytes_of"]

NBYTES = 96 << 20
ELEMENTS = NBYTES // 4


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's memory without a copy."""
    import torch

    return tensor.view(torch.uint8).numpy().data
