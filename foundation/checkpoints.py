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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from yggdrasill.errors import CheckpointMismatch, CodecError, InvalidCheckpoint, MissingFile, StorageFailed, UnsupportedFormat
from yggdrasill.foundation.archive import FolderSource, Source

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

_METADATA_KEY = "yggdrasill"
_MANIFEST = "$manifest"
#: The name of a weights file in a save: the digest of the state and the backend.
STATE_FILE = re.compile(r"([0-9a-f]{64})\.(json|safetensors)")
_CHUNK = 16 << 20
#: Dtypes of the safetensors format by torch's names.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
}
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
    tensors = list(_tensors(state))
    return "safetensors" if tensors and all(_dtype_name(tensor) for tensor in tensors) else "json"


class StoredState(dict[str, Any]):
    """A state read from a file that is named by its digest."""

    digest: str = ""


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the BLAKE3 of a state in hex: equal digests are equal keys (in any order), types, bits and memory order."""
    known: str = getattr(state, "digest", "")
    if known:
        return known
    from blake3 import blake3

    from yggdrasill.values import iter_envelope
    from yggdrasill.values.payload import Limits

    digest = blake3(max_threads=blake3.AUTO)
    limits = Limits(max_items=sys.maxsize, max_payloads=sys.maxsize, max_bytes=sys.maxsize)

    def add(value: Any) -> None:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            digest.update(b"{%d" % len(value))
            for key, item in sorted(value.items()):
                name = key.encode("utf-8", "surrogatepass")
                digest.update(b":%d:%s" % (len(name), name))
                add(item)
            return
        # one value at a time, so that at most one tensor is copied to the CPU or made contiguous
        envelope = iter_envelope(value.detach() if _is_tensor(value) else value, checksum=False, limits=limits)
        digest.update(b"=%d:" % envelope.nbytes)
        for chunk in envelope:
            digest.update(chunk)

    add(state)
    return digest.hexdigest()


# -- writing ----------------------------------------------------------------------------------------------------


class StateFile:
    """The bytes of a state's file, made while they are iterated; ``nbytes`` is their number."""

    def __init__(self, state: Mapping[str, Any], backend: str) -> None:
        self._head: bytes
        self._tensors: list[torch.Tensor] = []
        if check_backend(backend) == "json":
            from yggdrasill.values import to_json

            self._head = (json.dumps(to_json(dict(state)), indent=1, ensure_ascii=False) + "\n").encode("utf-8")
            self.nbytes = len(self._head)
        else:
            self._head, self._tensors = _safetensors_parts(state)
            self.nbytes = len(self._head) + sum(tensor.nbytes for tensor in self._tensors)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        for tensor in self._tensors:
            data = _bytes_of(tensor)
            for start in range(0, len(data), _CHUNK):
                yield data[start : start + _CHUNK]


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


def _safetensors_parts(state: Mapping[str, Any]) -> tuple[bytes, list[torch.Tensor]]:
    """The header and the tensors in file order.

    Tensors that fill whole blocks of `ALIGNMENT` bytes come first, then the others by size of their elements: a map of
    the file then has every tensor at an address its dtype allows, and the large ones where torch would put them.
    """
    from yggdrasill.values import to_json
    from yggdrasill.values.payload import ALIGNMENT

    tensors: dict[str, torch.Tensor] = {}
    strides: dict[str, list[int]] = {}
    names: dict[Any, str] = {}

    def split(value: Any, path: tuple[str, ...]) -> Any:
        if _is_tensor(value):
            tensor = value.detach()
            view = (
                tensor.data_ptr(),
                tensor.dtype,
                tuple(tensor.shape),
                tuple(tensor.stride()),
                tensor.is_conj(),
                tensor.is_neg(),
                tensor.device,
            )
            if view in names and tensor.numel():
                return {"$weight": names[view]}
            name = ".".join(path)
            while name in tensors or name == "__metadata__":
                name += "'"
            names[view], tensors[name], strides[name] = name, tensor, list(tensor.stride())
            return {"$weight": name}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"$state": {key: split(item, (*path, key)) for key, item in value.items()}}
        if type(value) in (list, tuple) and any(True for _ in _tensors(value)):
            return {"$list" if type(value) is list else "$tuple": [split(item, (*path, str(i))) for i, item in enumerate(value)]}
        return {"$value": to_json(value)}

    skeleton = split(dict(state), ())
    header: dict[str, Any] = {"__metadata__": {_METADATA_KEY: json.dumps({"state": skeleton, "strides": strides})}}
    ordered = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].element_size(), name))
    end = 0
    for name in ordered:
        tensor, dtype = tensors[name], _dtype_name(tensors[name])
        if dtype is None:
            raise InvalidCheckpoint(
                f"safetensors cannot hold {name!r}, a {str(tensor.layout).removeprefix('torch.')} tensor of {tensor.dtype}; use the json backend"
            )
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, [tensors[name] for name in ordered]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements in order; a view of its memory where that is possible."""
    import torch

    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if _is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif type(value) in (list, tuple):
        for item in value:
            yield from _tensors(item)


def _dtype_name(tensor: torch.Tensor) -> str | None:
    """The dtype's name in a safetensors file, None for what the format cannot hold."""
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.device.type == "meta":
        return None
    name = str(tensor.dtype).removeprefix("torch.")
    return next((code for code, known in _DTYPES.items() if known == name), None)


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
                return _checked(lambda: _read_mapped(file, stream), backend, where)
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
    return _checked(lambda: _read_stream(io.BytesIO(data) if isinstance(data, bytes) else data), backend, where)


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
    states = {}
    for node_id, entry in entries.items():
        if isinstance(entry, dict) and isinstance(entry.get("file"), str):
            states[node_id] = _shared_state(source, folder, entry["file"], where, node_id)
        else:
            states[node_id] = _checked(lambda entry=entry: _state_of_json(entry["state"]), "json", where)
    return states


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


def _read_mapped(path: Path, stream: BinaryIO) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InvalidCheckpoint(str(error)) from error
    if sys.platform == "win32":
        # a mapped file could not be replaced by the next save
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return _joined(tensors, _header(stream))


def _read_stream(stream: BinaryIO) -> Any:
    """Read a safetensors file that cannot be mapped, each tensor straight into its memory."""
    import torch

    header = _header(stream)
    entries = sorted(((name, entry) for name, entry in header.items() if name != "__metadata__"), key=lambda item: item[1]["data_offsets"])
    tensors = {}
    end = 0
    for name, entry in entries:
        dtype, shape, (start, stop) = getattr(torch, _DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        count = 1
        for size in shape:
            if type(size) is not int or size < 0:
                raise ValueError(f"{name!r} has shape {shape!r}")
            count *= size
        if start != end or stop - start != count * dtype.itemsize:
            raise ValueError(f"{name!r} does not fill its place in the file")
        memory = _read_exactly(stream, stop - start)
        tensors[name] = memory.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
        end = stop
    if stream.read(1):
        raise ValueError("the file is longer than its tensors")
    return _joined(tensors, header)


def _read_exactly(stream: BinaryIO, nbytes: int) -> torch.Tensor:
    import torch

    memory = torch.empty(nbytes, dtype=torch.uint8)
    view = memory.numpy().data
    done = 0
    while done < nbytes:
        data = stream.read(min(_CHUNK, nbytes - done))
        if not data:
            raise ValueError("the file ends within a tensor")
        view[done : done + len(data)] = data
        done += len(data)
    return memory


def _header(stream: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(stream.read(8), "little")
    text = stream.read(min(length, 100_000_000))
    if len(text) != length or not text:
        raise ValueError("the file ends within its header")
    header = json.loads(text.decode("utf-8"))
    if not isinstance(header, dict):
        raise TypeError("the header is not a mapping")
    return header


def _joined(tensors: Mapping[str, Any], header: Mapping[str, Any]) -> Any:
    import torch

    ours = header.get("__metadata__", {}).get(_METADATA_KEY)
    if ours is None:
        return dict(tensors)
    from yggdrasill.values import from_json
    from yggdrasill.values.payload import ALIGNMENT

    described = json.loads(ours)
    strides = described["strides"]

    def aligned(tensor: Any) -> Any:
        # kernels may sum in another order in memory aligned otherwise
        return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor

    def join(node: Any) -> Any:
        if "$weight" in node:
            return aligned(_with_strides(torch, tensors[node["$weight"]], strides[node["$weight"]]))
        if "$state" in node:
            return {key: join(item) for key, item in node["$state"].items()}
        if "$list" in node:
            return [join(item) for item in node["$list"]]
        if "$tuple" in node:
            return tuple(join(item) for item in node["$tuple"])
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
