"""Text without a model: the architect, the describer, the narrator and the chronicle of a world, and text utilities."""

from __future__ import annotations

__all__: list[str] = []
