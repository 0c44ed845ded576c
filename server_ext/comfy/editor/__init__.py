"""What the editor's own extension asks of this server, one idea per file; `yggdrasill.server_ext.comfy.ui_routes` is the table."""

from __future__ import annotations

__all__: list[str] = []
