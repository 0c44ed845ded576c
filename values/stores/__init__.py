"""Artifact stores: the protocol (`base`), a store in memory (`memory`) and one on disk (`disk`)."""

from yggdrasill.values.stores.base import ArtifactStore, ArtifactWriter
from yggdrasill.values.stores.disk import DiskStore
from yggdrasill.values.stores.memory import MemoryStore

__all__ = ["ArtifactStore", "ArtifactWriter", "DiskStore", "MemoryStore"]
