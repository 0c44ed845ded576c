"""Weights files: json and safetensors. A checkpoint maps ids to states, nested as deep as the level is high.

json holds any state in the codec's readable form (`yggdrasill.values.to_json`). safetensors holds the tensors under their
dotted path (``node.key``) and the rest, with the memory order of the tensors, in the metadata entry ``yggdrasill``; a
plain safetensors file from elsewhere is read as a flat state dict. Pickle formats are refused.

Loading states into blocks: what goes where is settled and checked for the whole container before any block changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import (
    CheckpointMismatch,
    CodecError,
    InvalidCheckpoint,
    MissingFile,
    StorageFailed,
    UnsupportedFormat,
    YggdrasillError,
)
from yggdrasill.foundation.pool import reuse_identity

if TYPE_CHECKING:
    from yggdrasill.foundation.block import AbstractBaseBlock

__all__ = ["BACKENDS", "StateLoader", "check_backend", "check_block_state", "pack_state", "read_state", "unpack_state"]

BACKENDS = ("json", "safetensors")

_METADATA_KEY = "yggdrasill"


def check_backend(backend: str) -> str:
    """``backend`` if it is one of `BACKENDS`.

    Raises:
        UnsupportedFormat: (a NotImplementedError) torch and other pickle formats, and anything unknown.
    """
    if backend not in BACKENDS:
        raise UnsupportedFormat(f"checkpoint backend {backend!r} is not supported (pickle can run code); use one of {', '.join(BACKENDS)}")
    return backend


def pack_state(state: Mapping[str, Any], backend: str = "json") -> bytes:
    """A nested state dict as the bytes of a checkpoint file."""
    if check_backend(backend) == "json":
        from yggdrasill.values import to_json

        return (json.dumps(to_json(dict(state)), indent=1, ensure_ascii=False) + "\n").encode("utf-8")
    return _pack_safetensors(state)


def unpack_state(data: bytes, backend: str, where: str) -> dict[str, Any]:
    """What `pack_state` packed; ``where`` names the file in errors.

    Raises:
        InvalidCheckpoint: the bytes are truncated, altered, or no state.
    """
    try:
        state = _unpack_json(data) if check_backend(backend) == "json" else _unpack_safetensors(data)
    except UnsupportedFormat:
        raise
    except (CodecError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"{where}: not a {backend} checkpoint: {error}; save it again or choose another file") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"{where}: a checkpoint maps ids to states, this file holds {type(state).__name__}")
    return state


def read_state(path: str | Path, backend: str | None = None) -> dict[str, Any]:
    """The state in a ``.json`` or ``.safetensors`` file; ``backend`` says which it is whatever its name.

    Raises:
        MissingFile, InvalidCheckpoint, UnsupportedFormat, StorageFailed
    """
    file = Path(path)
    backend = check_backend(file.suffix.lstrip(".").lower() if backend is None else backend)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"there is no checkpoint {str(path)!r}; check the path", path=str(path)) from None
    except OSError as error:
        raise StorageFailed(f"cannot read checkpoint {str(path)!r}: {error.strerror or error}", path=str(path)) from error
    return unpack_state(data, backend, repr(str(path)))


def check_block_state(block: AbstractBaseBlock, state: Any, where: str, *, strict: bool) -> None:
    """Raise `CheckpointMismatch` unless ``state`` fits the block: tensors of the block's shapes and, if ``strict``, its very keys.

    What a stateful block keeps between calls may have any shape.
    """
    if not isinstance(state, Mapping):
        raise CheckpointMismatch(f"{where}: a block state maps names to values, got {type(state).__name__}")
    expected = block.state_dict()
    missing, stray = sorted(set(expected) - set(state)), sorted(str(key) for key in set(state) - set(expected))
    if strict and (missing or stray):
        raise CheckpointMismatch(
            f"{where} ({block.block_type}): state keys do not match; missing {missing or 'none'}, unexpected {stray or 'none'}",
            missing=missing,
            unexpected=stray,
        )
    if block.stateful:
        return
    for key, own in expected.items():
        have, given = getattr(own, "shape", None), getattr(state.get(key), "shape", None)
        if have is not None and given is not None and tuple(have) != tuple(given):
            raise CheckpointMismatch(
                f"{where} ({block.block_type}): {key!r} has shape {list(have)}, the state's has {list(given)}; it belongs to another model"
            )


def _unpack_json(data: bytes) -> Any:
    from yggdrasill.values import from_json

    return from_json(json.loads(data.decode("utf-8")))


def _pack_safetensors(state: Mapping[str, Any]) -> bytes:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save

    from yggdrasill.values import to_json

    tensors: dict[str, torch.Tensor] = {}
    strides: dict[str, list[int]] = {}

    def split(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            name = ".".join(path)
            while name in tensors:
                name += "'"
            tensors[name] = value.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()
            strides[name] = list(value.stride())
            return {"$weight": name}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"$state": {key: split(item, (*path, key)) for key, item in value.items()}}
        return {"$value": to_json(value)}

    skeleton = split(dict(state), ())
    try:
        return save(tensors, metadata={_METADATA_KEY: json.dumps({"state": skeleton, "strides": strides})})
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise InvalidCheckpoint(f"safetensors cannot hold this state: {type(error).__name__}: {error}; use the json backend") from error


def _unpack_safetensors(data: bytes) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from yggdrasill.values import from_json

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode("utf-8"))
    except SafetensorError as error:
        raise InvalidCheckpoint(str(error)) from error
    ours = header.get("__metadata__", {}).get(_METADATA_KEY)
    if ours is None:
        return dict(tensors)
    described = json.loads(ours)
    strides = described["strides"]

    def join(node: Any) -> Any:
        if "$weight" in node:
            tensor = tensors[node["$weight"]]
            return _with_strides(torch, tensor, strides[node["$weight"]])
        if "$state" in node:
            return {key: join(item) for key, item in node["$state"].items()}
        return from_json(node["$value"])

    return join(described["state"])


def _with_strides(torch: Any, tensor: Any, strides: list[int]) -> Any:
    """``tensor`` in the memory order it was saved from, if that was dense; else contiguous."""
    if len(strides) != tensor.dim() or list(tensor.stride()) == strides:
        return tensor
    order = sorted(range(tensor.dim()), key=lambda i: -strides[i])
    dense = 1
    for i in reversed(order):
        if tensor.shape[i] > 1 and strides[i] != dense:
            return tensor
        dense *= tensor.shape[i]
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


class StateLoader:
    """One load: `add` every block with the state meant for it, then `apply`. Each block is loaded once.

    A block that got no state takes the one given to another block of the same reuse identity, since a shared block is
    written once.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._blocks: dict[int, tuple[AbstractBaseBlock, str | None, str]] = {}
        self._states: dict[int, Mapping[str, Any]] = {}
        self._by_identity: dict[str, Mapping[str, Any]] = {}

    def add(self, block: AbstractBaseBlock, state: Any, where: str) -> None:
        """Note a block and the state meant for it (None if there is none); ``where`` names its place in errors.

        Raises:
            CheckpointMismatch: the state is not one of this block, or one block got two different states.
        """
        identity = reuse_identity(block.block_type, block.config)
        self._blocks.setdefault(id(block), (block, identity, where))
        if state is None:
            return
        check_block_state(block, state, where, strict=self._strict)
        known = self._states.setdefault(id(block), state)
        if known is not state and not _equal(known, state):
            raise CheckpointMismatch(
                f"{where}: its state differs from that of {self._blocks[id(block)][2]}, but both share one block; "
                "build with pool=ReusePool.off() to keep them apart"
            )
        if identity is not None:
            self._by_identity.setdefault(identity, state)

    def apply(self) -> None:
        """Load every block that has a state.

        Raises:
            CheckpointMismatch: a block refuses its state.
        """
        for key, (block, identity, where) in self._blocks.items():
            state = self._states.get(key, self._by_identity.get(identity) if identity is not None else None)
            if state is None:
                continue
            try:
                block.load_state_dict(state, self._strict)
            except YggdrasillError:
                raise
            except Exception as error:
                raise CheckpointMismatch(
                    f"{where} ({block.block_type}) refuses its state: {type(error).__name__}: {error}; it belongs to another block"
                ) from error


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    from yggdrasill.values import dumps

    return bytes(dumps(dict(first))) == bytes(dumps(dict(second)))
