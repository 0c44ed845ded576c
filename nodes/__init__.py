"""The ComfyUI nodes. This package imports inside a ComfyUI process only."""

from __future__ import annotations

from yggdrasill.nodes.extension import YggdrasillExtension

__all__ = ["YggdrasillExtension"]
