"""Handlers of the routes that the editor calls; `yggdrasill.server_ext.comfy.ui_routes` is the table of routes."""

from __future__ import annotations

__all__: list[str] = []
