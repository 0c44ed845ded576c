"""Terrain without a model: from a configuration to elevation, climate, rivers, a picture and measures.

Fields are square [size, size] tensors, row 0 in the north. The configuration determines every bit: numpy on
one thread, with the seed in the configuration as the only random source.
"""

from __future__ import annotations

__all__: list[str] = []
