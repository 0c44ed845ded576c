"""What travels: the lossless codec, and handles that stand for values. Names resolve on first use, so this imports neither torch nor numpy."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yggdrasill.values.codec import decode, dump, dumps, encode, from_json, iter_envelope, load, loads, to_json
    from yggdrasill.values.envelope import Envelope, read_envelope
    from yggdrasill.values.extensions import Opaque, register_type
    from yggdrasill.values.files import write_file
    from yggdrasill.values.handles import Handle, load_handles
    from yggdrasill.values.limits import DEFAULT_LIMITS, Limits
    from yggdrasill.values.payload import Description, Encoded, Payload

_HOME = {
    "DEFAULT_LIMITS": "limits",
    "Description": "payload",
    "Encoded": "payload",
    "Envelope": "envelope",
    "Handle": "handles",
    "Limits": "limits",
    "Opaque": "extensions",
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
    "read_envelope": "envelope",
    "register_type": "extensions",
    "to_json": "codec",
    "write_file": "files",
}

__all__ = [
    "DEFAULT_LIMITS",
    "Description",
    "Encoded",
    "Envelope",
    "Handle",
    "Limits",
    "Opaque",
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
    "read_envelope",
    "register_type",
    "to_json",
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
