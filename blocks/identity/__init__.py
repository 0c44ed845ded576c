"""Role stubs: blocks that pass values through, so that the graph of a task runs before its models exist."""

from __future__ import annotations

__all__: list[str] = []
