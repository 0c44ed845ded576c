"""The safetensors format: a layout to write tensors one after another, and readers for files and for streams.

Written here rather than by the safetensors package because that needs every tensor's bytes in memory at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from yggdrasill.errors import InvalidCheckpoint

if TYPE_CHECKING:
    import torch

__all__ = ["dtype_name", "is_tensor", "lay_out", "read_mapped", "read_stream", "tensor_bytes", "tensors_in", "view_key"]

_METADATA_KEY = "yggdrasill"
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


def lay_out(state: Mapping[str, Any]) -> tuple[bytes, list[torch.Tensor]]:
    """Return the header of a state's file, and its tensors in file order; a tensor under two keys is in the file once.

    Tensors that fill whole blocks of `ALIGNMENT` bytes come first, then the others by size of their elements: a map of
    the file then has every tensor at an address its dtype allows, and the large ones where torch would put them.

    Raises:
        InvalidCheckpoint: a tensor that the format cannot hold.
    """
    from yggdrasill.values import to_json
    from yggdrasill.values.payload import ALIGNMENT

    tensors: dict[str, torch.Tensor] = {}
    strides: dict[str, list[int]] = {}
    names: dict[Any, str] = {}

    def split(value: Any, path: tuple[str, ...]) -> Any:
        if is_tensor(value):
            name = ".".join(path)
            if dtype_name(value) is None:
                kind = str(value.layout).removeprefix("torch.")
                raise InvalidCheckpoint(f"safetensors cannot hold {name!r}, a {kind} tensor of {value.dtype}; use the json backend")
            tensor = value.detach()
            view = view_key(tensor)
            if view in names and tensor.numel():
                return {"$weight": names[view]}
            while name in tensors or name == "__metadata__":
                name += "'"
            names[view], tensors[name], strides[name] = name, tensor, list(tensor.stride())
            return {"$weight": name}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"$state": {key: split(item, (*path, key)) for key, item in value.items()}}
        if type(value) in (list, tuple) and any(True for _ in tensors_in(value)):
            return {"$list" if type(value) is list else "$tuple": [split(item, (*path, str(i))) for i, item in enumerate(value)]}
        return {"$value": to_json(value)}

    skeleton = split(dict(state), ())
    header: dict[str, Any] = {"__metadata__": {_METADATA_KEY: json.dumps({"state": skeleton, "strides": strides})}}
    ordered = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].element_size(), name))
    end = 0
    for name in ordered:
        tensor = tensors[name]
        header[name] = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, [tensors[name] for name in ordered]


def view_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what is equal for two tensors that are the same view of the same memory."""
    return tensor.data_ptr(), tensor.dtype, *tensor.shape, *tensor.stride(), tensor.is_conj(), tensor.is_neg(), tensor.device


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements in order, as a view of its memory where that is possible."""
    import torch

    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def is_tensor(value: Any) -> bool:
    """Return whether ``value`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value, those in mappings, lists and tuples included."""
    if is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif type(value) in (list, tuple):
        for item in value:
            yield from tensors_in(item)


def dtype_name(tensor: torch.Tensor) -> str | None:
    """Return the dtype's name in a safetensors file, None for what the format cannot hold."""
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.device.type == "meta":
        return None
    name = str(tensor.dtype).removeprefix("torch.")
    return next((code for code, known in _DTYPES.items() if known == name), None)


def read_mapped(path: Path, stream: BinaryIO) -> Any:
    """Return the state in a file; its tensors are views of a copy-on-write map. ``stream`` is the open file."""
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


def read_stream(stream: BinaryIO) -> Any:
    """Return the state in a file that cannot be mapped; each tensor is read straight into its memory.

    Raises:
        ValueError, TypeError, KeyError: the file is damaged.
    """
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

    described = header.get("__metadata__", {}).get(_METADATA_KEY)
    if described is None:
        return dict(tensors)
    from yggdrasill.values import from_json
    from yggdrasill.values.payload import ALIGNMENT

    skeleton = json.loads(described)
    strides = skeleton["strides"]

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

    return join(skeleton["state"])


def _with_strides(torch: Any, tensor: Any, strides: list[int]) -> Any:
    """Return ``tensor`` in the memory order it was saved from, if that was dense; else contiguous."""
    if len(strides) != tensor.dim() or list(tensor.stride()) == strides:
        return tensor
    order = sorted(range(tensor.dim()), key=lambda i: -strides[i])
    dense = 1
    for i in reversed(order):
        if tensor.shape[i] > 1 and strides[i] != dense:
            return tensor
        dense *= tensor.shape[i]
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
