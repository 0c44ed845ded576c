"""Pictures as SVG text: `draw_config` for any level, `draw_partition` for a workflow with parts elsewhere, `draw_timeline` for what ran when.

Works on config mappings alone: builds no block, loads no weights, needs nothing beyond the standard library.
"""

from __future__ import annotations

from yggdrasill.draw.partition import draw_partition
from yggdrasill.draw.picture import draw_config
from yggdrasill.draw.timeline import Span, draw_timeline

__all__ = ["Span", "draw_config", "draw_partition", "draw_timeline"]
