"""The ComfyUI nodes. This package can be imported only inside a ComfyUI process."""

from __future__ import annotations

from yggdrasill.nodes.extension import YggdrasillExtension

__all__ = ["YggdrasillExtension"]
