"""Pictures as SVG text: `draw_config` for any level, `draw_partition` for a partitioned workflow, `draw_timeline` for a run.

Reads config mappings only: builds no blocks, loads no weights, and needs only the standard library.
"""

from __future__ import annotations

from yggdrasill.draw.pictures import draw_config, draw_partition
from yggdrasill.draw.timeline import Span, draw_timeline

__all__ = ["Span", "draw_config", "draw_partition", "draw_timeline"]
