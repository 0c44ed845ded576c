"""Role stubs: blocks that pass values on, so that a skeleton of any task runs before its models exist."""

from __future__ import annotations

__all__: list[str] = []
