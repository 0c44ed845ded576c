"""Values that leave a process: the lossless codec, artifacts and their stores, and handles.

Importing this package loads neither torch nor numpy.
"""

from yggdrasill.values.codec import decode, dump, dumps, encode, from_json, iter_envelope, load, loads, to_json
from yggdrasill.values.envelope import Envelope, read_envelope
from yggdrasill.values.extensions import Opaque, register_type
from yggdrasill.values.files import write_file
from yggdrasill.values.handles import ArtifactHandle, Handle, load_handles
from yggdrasill.values.payload import DEFAULT_LIMITS, ArraySpec, ArtifactRef, EncodedValue, Limits, Payload
from yggdrasill.values.stores.base import ArtifactStat, ArtifactStore, ArtifactWriter, LocalStore, Writer
from yggdrasill.values.stores.embedded import EmbeddedStore
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.stores.shared import SharedFolderStore
from yggdrasill.values.stores.shared import SharedFolderStore as DiskStore
from yggdrasill.values.wire import Packed, pack, references, unpack, with_urls

__all__ = [
    "DEFAULT_LIMITS",
    "ArraySpec",
    "ArtifactHandle",
    "ArtifactRef",
    "ArtifactStat",
    "ArtifactStore",
    "ArtifactWriter",
    "DiskStore",
    "EmbeddedStore",
    "EncodedValue",
    "Envelope",
    "Handle",
    "Limits",
    "LocalStore",
    "MemoryStore",
    "Opaque",
    "Packed",
    "Payload",
    "SharedFolderStore",
    "Writer",
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
