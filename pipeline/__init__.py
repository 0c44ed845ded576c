"""Pipelines: DAGs of graphs."""

from yggdrasill.pipeline.dag import PipelineEdge
from yggdrasill.pipeline.pipeline import Pipeline

__all__ = ["Pipeline", "PipelineEdge"]
