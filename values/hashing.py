"""Hashes of tensors' bytes, remembered while the tensor lives and is unchanged."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yggdrasill.values.payload import Description, Payload

if TYPE_CHECKING:
    import torch

__all__ = ["HashCache"]

_SAMPLES = 128


@dataclass(frozen=True)
class _Stamp:
    """What changes when torch changes a tensor."""

    version: int
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    sample: bytes


@dataclass(frozen=True)
class _Entry:
    tensor: weakref.ref[torch.Tensor]
    stamp: _Stamp
    description: Description
    hash: str


class HashCache:
    """The hashes of tensors that were hashed before and that torch has not changed since.

    Torch counts its own changes to a tensor. It does not count those made through numpy, ``.data`` or a foreign kernel: for their
    sake a sample of bytes is compared, which finds memory that was filled anew but not a single altered element, so who alters
    tensors behind torch's back does without a cache. Inference tensors, which have no such count, and numpy arrays are hashed each
    time. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def known(self, value: object) -> tuple[str, Description] | None:
        """Hash and description of ``value``'s payload if it was hashed before and is unchanged."""
        entry = self._entries.get(id(value))
        if entry is None or entry.tensor() is not value or entry.stamp != _stamp(value):
            return None
        return entry.hash, entry.description

    def digest(self, value: object, payload: Payload) -> str:
        """The hash of ``payload``, which is that of ``value``: remembered, or computed and remembered."""
        known = self.known(value)
        if known is not None and known[1] == payload.description:
            payload.hash = known[0]
            return known[0]
        # before hashing, so that a change meanwhile makes the entry stale and not wrong
        stamp = _stamp(value)
        digest = payload.digest()
        if stamp is not None:
            self._remember(value, stamp, payload.description, digest)
        return digest

    def _remember(self, tensor: Any, stamp: _Stamp, description: Description, digest: str) -> None:
        key = id(tensor)

        def forget(gone: weakref.ref[torch.Tensor]) -> None:
            entry = self._entries.get(key)
            if entry is not None and entry.tensor is gone:
                self._entries.pop(key, None)

        self._entries[key] = _Entry(weakref.ref(tensor, forget), stamp, description, digest)


def _stamp(value: object) -> _Stamp | None:
    """The stamp of a tensor, or None for what cannot be remembered."""
    if "torch" not in sys.modules:
        return None
    import torch

    if (
        not isinstance(value, torch.Tensor)
        or value.is_inference()
        or value.layout is not torch.strided
        or value.is_conj()
        or value.is_neg()
    ):
        return None
    return _Stamp(value._version, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, _sample(value))


def _sample(tensor: torch.Tensor) -> bytes:
    """Some bytes spread over the memory of a tensor on the CPU."""
    if tensor.device.type != "cpu" or not tensor.numel():
        return b""
    import torch

    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    plain = tensor.detach()
    memory = torch.as_strided(plain, (span,), (1,), plain.storage_offset()).view(torch.uint8).numpy().data
    # an odd step, so that not the same byte of every element is looked at
    return bytes(memory[:: memory.nbytes // _SAMPLES | 1])
