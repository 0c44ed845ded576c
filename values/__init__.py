"""What travels: the lossless codec, and handles that stand for values. Names resolve on first use, so this imports neither torch nor numpy."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yggdrasill.values.artifact_refs import ArtifactHandle, ArtifactRef
    from yggdrasill.values.artifacts import ArtifactStore, ArtifactWriter
    from yggdrasill.values.codec import decode, dump, dumps, encode, from_json, iter_envelope, load, loads, to_json
    from yggdrasill.values.disk_store import DiskStore
    from yggdrasill.values.envelope import Envelope, read_envelope
    from yggdrasill.values.extensions import Opaque, register_type
    from yggdrasill.values.files import write_file
    from yggdrasill.values.handles import Handle, load_handles
    from yggdrasill.values.limits import DEFAULT_LIMITS, Limits
    from yggdrasill.values.memory_store import MemoryStore
    from yggdrasill.values.payload import ArraySpec, EncodedValue, Payload
    from yggdrasill.values.wire import Packed, pack, references, unpack, with_urls

_HOME = {
    "ArtifactHandle": "artifact_refs",
    "ArtifactRef": "artifact_refs",
    "ArtifactStore": "artifacts",
    "ArtifactWriter": "artifacts",
    "DEFAULT_LIMITS": "limits",
    "ArraySpec": "payload",
    "DiskStore": "disk_store",
    "EncodedValue": "payload",
    "Envelope": "envelope",
    "Handle": "handles",
    "Limits": "limits",
    "MemoryStore": "memory_store",
    "Opaque": "extensions",
    "Packed": "wire",
    "Payload": "payload",
    "decode": "codec",
    "dump": "codec",
    "dumps": "codec",
    "encode": "codec",
    "from_json": "codec",
    "iter_envelope": "codec",
    "load": "codec",
    "load_handles": "handles",
    "loads": "codec",
    "pack": "wire",
    "read_envelope": "envelope",
    "references": "wire",
    "register_type": "extensions",
    "to_json": "codec",
    "unpack": "wire",
    "with_urls": "wire",
    "write_file": "files",
}

__all__ = [
    "DEFAULT_LIMITS",
    "ArraySpec",
    "ArtifactHandle",
    "ArtifactRef",
    "ArtifactStore",
    "ArtifactWriter",
    "DiskStore",
    "EncodedValue",
    "Envelope",
    "Handle",
    "Limits",
    "MemoryStore",
    "Opaque",
    "Packed",
    "Payload",
    "decode",
    "dump",
    "dumps",
    "encode",
    "from_json",
    "iter_envelope",
    "load",
    "load_handles",
    "loads",
    "pack",
    "read_envelope",
    "references",
    "register_type",
    "to_json",
    "unpack",
    "with_urls",
    "write_file",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'yggdrasill.values' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"yggdrasill.values.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
