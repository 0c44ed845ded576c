"""What the nodes for graphs, pipelines, stages and worlds do, apart from their sockets: configs in, configs out, and runs."""

from __future__ import annotations

__all__: list[str] = []
