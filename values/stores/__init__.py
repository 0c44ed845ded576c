"""Artifact stores: the protocol (`base`), in memory (`memory`) and on disk (`disk`)."""

from yggdrasill.values.stores.base import ArtifactStore, ArtifactWriter
from yggdrasill.values.stores.disk import DiskStore
from yggdrasill.values.stores.memory import MemoryStore

__all__ = ["ArtifactStore", "ArtifactWriter", "DiskStore", "MemoryStore"]
