"""ComfyUI as host: its value types, its queue and its server behind the routes of an endpoint."""

from __future__ import annotations

__all__: list[str] = []
