"""Weights files: json and safetensors. A checkpoint maps ids to states, nested as deep as the level is high.

json holds any state in the codec's readable form (`yggdrasill.values.to_json`). safetensors holds the tensors under their
dotted path (``node.key``); the rest, with the memory order of the tensors, is in the metadata entry ``yggdrasill``. A
plain safetensors file of another program is read as a flat state dict. Pickle formats are refused.

Tensors are written one after another and read from a copy-on-write map of the file, so neither needs a second copy of the
weights. A save names its weights files by the digest of the state; ``checkpoint.json`` then refers to them.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from yggdrasill.errors import CheckpointMismatch, CodecError, InvalidCheckpoint, MissingFile, StorageFailed, UnsupportedFormat
from yggdrasill.foundation.archive import FolderSource, Source
from yggdrasill.foundation.safetensors_file import (
    dtype_name,
    is_tensor,
    lay_out,
    read_mapped,
    read_stream,
    tensor_bytes,
    tensors_in,
    view_key,
)

if TYPE_CHECKING:
    import torch

    from yggdrasill.foundation.block import AbstractBaseBlock

__all__ = [
    "BACKENDS",
    "STATE_FILE",
    "StateFile",
    "StateShape",
    "StoredState",
    "check_backend",
    "check_block_state",
    "choose_backend",
    "pack_manifest",
    "pack_state",
    "read_saved_states",
    "read_state",
    "state_digest",
    "unpack_state",
]

BACKENDS = ("json", "safetensors")

_MANIFEST = "$manifest"
#: The name of a weights file in a save: the digest of the state and the backend.
STATE_FILE = re.compile(r"([0-9a-f]{64})\.(json|safetensors)")
_CHUNK = 4 << 20
#: What reading a damaged file raises.
_DAMAGE = (CodecError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_backend(backend: str) -> str:
    """Return ``backend`` if it is one of `BACKENDS`.

    Raises:
        UnsupportedFormat: (a NotImplementedError) torch and other pickle formats, and unknown names.
    """
    if backend not in BACKENDS:
        raise UnsupportedFormat(f"checkpoint backend {backend!r} is not supported (pickle can run code); use one of {', '.join(BACKENDS)}")
    return backend


def choose_backend(state: Mapping[str, Any], backend: str | None = None) -> str:
    """Return ``backend``, or for None: safetensors for a state with tensors that it can hold, json for any other."""
    if backend is not None:
        return check_backend(backend)
    tensors = list(tensors_in(state))
    return "safetensors" if tensors and all(dtype_name(tensor) for tensor in tensors) else "json"


class StoredState(dict[str, Any]):
    """A state read from a file that is named by its digest."""

    digest: str = ""


def state_digest(state: Mapping[str, Any], known: Mapping[Any, bytes] | None = None) -> str:
    """Return the digest of a state in hex: equal digests are equal keys (in any order), types, bits and memory order.

    It is a BLAKE3 over the digests of the values; ``known`` has those of tensors by `view_key`, if they were computed.
    """
    stored: str = getattr(state, "digest", "")
    if stored:
        return stored
    from blake3 import blake3

    whole = blake3()

    def add(value: Any) -> None:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            whole.update(b"{%d" % len(value))
            for key, item in sorted(value.items()):
                name = key.encode("utf-8", "surrogatepass")
                whole.update(b":%d:%s" % (len(name), name))
                add(item)
        elif is_tensor(value) and dtype_name(value) is not None:
            tensor = value.detach()
            whole.update((known or {}).get(view_key(tensor)) or _tensor_hasher(tensor, blake3.AUTO).update(tensor_bytes(tensor)).digest())
        else:
            whole.update(_value_digest(value))

    add(state)
    return whole.hexdigest()


def _tensor_hasher(tensor: torch.Tensor, threads: int = 1) -> Any:
    from blake3 import blake3

    return blake3(repr((str(tensor.dtype), list(tensor.shape), list(tensor.stride()))).encode("ascii"), max_threads=threads)


def _value_digest(value: Any) -> bytes:
    from blake3 import blake3

    from yggdrasill.values import iter_envelope
    from yggdrasill.values.payload import Limits

    limits = Limits(max_items=sys.maxsize, max_payloads=sys.maxsize, max_bytes=sys.maxsize)
    digest = blake3()
    for chunk in iter_envelope(value.detach() if is_tensor(value) else value, checksum=False, limits=limits):
        digest.update(chunk)
    return digest.digest()


# -- writing ----------------------------------------------------------------------------------------------------


class StateFile:
    """The bytes of a state's file, made while they are iterated; ``nbytes`` is their number."""

    def __init__(self, state: Mapping[str, Any], backend: str) -> None:
        self._state = state
        self._head: bytes
        self._tensors: list[torch.Tensor] = []
        self._known: dict[Any, bytes] = {}
        if check_backend(backend) == "json":
            from yggdrasill.values import to_json

            self._head = (json.dumps(to_json(dict(state)), indent=1, ensure_ascii=False) + "\n").encode("utf-8")
            self.nbytes = len(self._head)
        else:
            self._head, self._tensors = lay_out(state)
            self.nbytes = len(self._head) + sum(tensor.nbytes for tensor in self._tensors)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        if not self._tensors:
            return
        # each tensor is digested while it is written
        with ThreadPoolExecutor(1) as worker:
            for tensor in self._tensors:
                data, digest = tensor_bytes(tensor), _tensor_hasher(tensor)
                for start in range(0, len(data), _CHUNK):
                    chunk = data[start : start + _CHUNK]
                    done = worker.submit(digest.update, chunk)
                    yield chunk
                    done.result()
                self._known[view_key(tensor)] = digest.digest()

    @property
    def digest(self) -> str:
        """Return the state's digest, computed without reading the tensors again if they were written before."""
        return state_digest(self._state, self._known)


def pack_state(state: Mapping[str, Any], backend: str = "json") -> bytes:
    """Return a nested state dict as the bytes of a checkpoint file."""
    return b"".join(StateFile(state, backend))


def pack_manifest(states: Mapping[str, Mapping[str, Any] | str]) -> bytes:
    """Return the bytes of a graph's ``checkpoint.json`` in a save: each node's state, or the name of its weights file."""
    if not any(isinstance(state, str) for state in states.values()):
        return pack_state({node_id: state for node_id, state in states.items() if not isinstance(state, str)})
    from yggdrasill.values import to_json

    entries = {node_id: {"file": state} if isinstance(state, str) else {"state": to_json(dict(state))} for node_id, state in states.items()}
    return (json.dumps({_MANIFEST: 1, "states": entries}, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


# -- reading ----------------------------------------------------------------------------------------------------


def read_state(path: str | Path, backend: str | None = None) -> dict[str, Any]:
    """Return the state in a ``.json`` or ``.safetensors`` file; ``backend`` overrides the ending.

    Tensors of a safetensors file are views of a copy-on-write map of it.

    Raises:
        MissingFile, InvalidCheckpoint, UnsupportedFormat, StorageFailed
    """
    file = Path(path)
    backend = check_backend(file.suffix.lstrip(".").lower() if backend is None else backend)
    where = repr(str(path))
    try:
        if backend == "safetensors":
            # opened first: a missing or unreadable file is reported as such
            with file.open("rb") as stream:
                return _checked(lambda: read_mapped(file, stream), backend, where)
        data = file.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"checkpoint {str(path)!r} does not exist; check the path", path=str(path)) from None
    except OSError as error:
        raise StorageFailed(f"cannot read checkpoint {str(path)!r}: {error.strerror or error}", path=str(path)) from error
    return _from_json(data, where, FolderSource(file.parent), "")


def unpack_state(data: bytes | BinaryIO, backend: str, where: str) -> dict[str, Any]:
    """Return the state in the bytes of a checkpoint file, or in an open file; ``where`` names it in errors.

    Raises:
        InvalidCheckpoint: the bytes are truncated, altered, or not a state.
    """
    if check_backend(backend) == "json":
        return _checked(lambda: _state_of_json(_parsed(data)), backend, where)
    return _checked(lambda: read_stream(io.BytesIO(data) if isinstance(data, bytes) else data), backend, where)


def read_saved_states(source: Source, folder: str) -> dict[str, Any] | None:
    """Return the states of a graph in ``folder`` of a save, by node id; None if it has no checkpoint.

    Raises:
        InvalidCheckpoint, MissingFile: a weights file that the graph shares with the rest of its save is not there.
    """
    for backend in BACKENDS:
        name = f"{folder}checkpoint.{backend}"
        data = source.read(name)
        if data is not None:
            return (
                _from_json(data, source.describe(name), source, folder)
                if backend == "json"
                else unpack_state(data, backend, source.describe(name))
            )
    return None


def _from_json(data: bytes, where: str, source: Source, folder: str) -> dict[str, Any]:
    document = _checked(lambda: _parsed(data), "json", where)
    if _MANIFEST not in document:
        return _checked(lambda: _state_of_json(document), "json", where)
    entries = document.get("states")
    if document[_MANIFEST] != 1 or not isinstance(entries, dict):
        raise InvalidCheckpoint(f"{where}: this version reads manifests of version 1, got {document[_MANIFEST]!r}; update yggdrasill")
    states: dict[str, Any] = {}
    for node_id, entry in entries.items():
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            states[node_id] = _shared_state(source, folder, entry["file"], where, node_id)
        else:
            states[node_id] = _checked(partial(_inline_state, entry), "json", where)
    return states


def _inline_state(entry: Any) -> Any:
    return _state_of_json(entry["state"])


def _shared_state(source: Source, folder: str, name: str, where: str, node_id: str) -> StoredState:
    parts = STATE_FILE.fullmatch(name)
    if parts is None:
        raise InvalidCheckpoint(f"{where}: the state of node {node_id!r} is in {name!r}, which is not the name of a weights file")
    known: dict[str, StoredState] = source.__dict__.setdefault("_states", {})
    if name not in known:
        digest, backend = parts.groups()
        place = source.find_blob(folder, name)
        if place is None:
            raise MissingFile(
                f"{where}: the state of node {node_id!r} is in 'checkpoints/blobs/{name}' of the save that this part belongs to, "
                "which was not found; load the part inside its save, or copy that file to 'checkpoints/blobs' of this folder",
                path=name,
            )
        if isinstance(place, Path):
            state = read_state(place)
        else:
            with place:
                state = unpack_state(place if backend == "safetensors" else place.read(), backend, source.describe(name))
        known[name] = StoredState(state)
        known[name].digest = digest
    return known[name]


def _checked(read: Callable[[], Any], backend: str, where: str) -> dict[str, Any]:
    try:
        state = read()
    except UnsupportedFormat:
        raise
    except _DAMAGE as error:
        raise InvalidCheckpoint(f"{where}: not a {backend} checkpoint: {error}; save it again or choose another file") from error
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"{where}: a checkpoint maps ids to states, this file holds {type(state).__name__}")
    return state


def _parsed(data: bytes | BinaryIO) -> Any:
    return json.loads((data if isinstance(data, bytes) else data.read()).decode("utf-8"))


def _state_of_json(document: Any) -> Any:
    from yggdrasill.values import from_json

    return from_json(document)


# -- checking ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateShape:
    """The keys of a block's state with the shapes of its tensors."""

    shapes: Mapping[str, tuple[int, ...] | None]

    @classmethod
    def of(cls, block: AbstractBaseBlock) -> StateShape:
        """Return the shape of the block's present state."""
        found = ((key, getattr(value, "shape", None)) for key, value in block.state_dict().items())
        return cls({key: None if shape is None else tuple(shape) for key, shape in found})


def check_block_state(block: AbstractBaseBlock, state: Any, where: str, *, strict: bool, expected: StateShape | None = None) -> None:
    """Raise `CheckpointMismatch` unless ``state`` fits the block: tensors of the block's shapes and, if ``strict``, its keys.

    The values that a stateful block keeps between calls may have any shape. ``expected`` is the block's `StateShape` if
    it is known.
    """
    if not isinstance(state, Mapping):
        raise CheckpointMismatch(f"{where}: a block state maps names to values, got {type(state).__name__}")
    shapes = (expected or StateShape.of(block)).shapes
    missing, stray = sorted(set(shapes) - set(state)), sorted(str(key) for key in set(state) - set(shapes))
    if strict and (missing or stray):
        raise CheckpointMismatch(
            f"{where} ({block.block_type}): state keys do not match; missing {missing or 'none'}, unexpected {stray or 'none'}",
            missing=missing,
            unexpected=stray,
        )
    if block.stateful:
        return
    for key, have in shapes.items():
        given = getattr(state.get(key), "shape", None)
        if have is not None and given is not None and have != tuple(given):
            raise CheckpointMismatch(
                f"{where} ({block.block_type}): {key!r} has shape {list(have)}, the state's has {list(given)}; it belongs to another model"
            )
