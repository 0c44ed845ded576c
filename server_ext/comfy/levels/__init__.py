"""The functions behind the nodes for graphs, pipelines, stages and worlds: they compose configs and run them."""

from __future__ import annotations

__all__: list[str] = []
