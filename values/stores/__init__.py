"""Artifact stores: the protocols (`base`), and stores in memory, in the folder of one process, and in a folder that processes share."""

from yggdrasill.values.stores.base import ArtifactStat, ArtifactStore, ArtifactWriter, LocalStore, Writer
from yggdrasill.values.stores.embedded import EmbeddedStore
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.stores.shared import SharedFolderStore
from yggdrasill.values.stores.threaded import BlockingStore, ThreadedStore

__all__ = [
    "ArtifactStat",
    "ArtifactStore",
    "ArtifactWriter",
    "BlockingStore",
    "EmbeddedStore",
    "LocalStore",
    "MemoryStore",
    "SharedFolderStore",
    "ThreadedStore",
    "Writer",
]
