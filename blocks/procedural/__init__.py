"""Terrain without a model: from a configuration to ground, climate, rivers, a picture and its measures.

Fields are square [size, size] tensors, row 0 in the north. Everything follows from the configuration, bit for bit:
numpy on one thread, no random source but the seed in it.
"""

from __future__ import annotations

__all__: list[str] = []
