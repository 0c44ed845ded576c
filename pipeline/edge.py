"""The edge between two graphs of a pipeline, or two pipelines of a stage: external key to external key."""

from __future__ import annotations

from dataclasses import dataclass

from yggdrasill.foundation.edge import Edge

__all__ = ["PipelineEdge"]


@dataclass(frozen=True)
class PipelineEdge(Edge):
    """Like `Edge`, the ports being external keys of the children's specs."""
