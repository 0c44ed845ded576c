"""Pydantic models of configs that more than one level reads, of graphs and of template files. Imported when a config is read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChildModel", "EdgeModel", "ExposedModel", "GraphModel", "NodeModel", "ParameterModel", "StrictModel", "TemplateModel"]


class StrictModel(BaseModel):
    """A config model: unknown keys and wrong types are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EdgeModel(StrictModel):
    """An edge in a config."""

    source_node: str
    source_port: str
    target_node: str
    target_port: str


class ChildModel(StrictModel):
    """Entry of a child in a config: its config is inline, in the file ``ref``, or at ``endpoint_url`` under ``graph_id``."""

    ref: str | None = None
    endpoint_url: str | None = None
    graph_id: str | None = None
    trainable: bool = True


class NodeModel(StrictModel):
    """A node in a config. Nodes of one graph with the same ``block_id``, type and config have one block."""

    node_id: str
    block_type: str
    block_id: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    trainable: bool = True


class ExposedModel(StrictModel):
    """An exposed port in a config."""

    node_id: str
    port_name: str
    name: str | None = None


class GraphModel(StrictModel):
    """A graph's config, ``schema_version`` 1.0."""

    schema_version: str = "1.0"
    graph_id: str = "graph"
    graph_kind: Literal["diffusion", "llm", "vlm", "data", "generic"] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    nodes: list[NodeModel] = Field(default_factory=list)
    edges: list[EdgeModel] = Field(default_factory=list)
    exposed_inputs: list[ExposedModel] = Field(default_factory=list)
    exposed_outputs: list[ExposedModel] = Field(default_factory=list)


class ParameterModel(StrictModel):
    """A template's parameter: a default, and perhaps named choices of any value."""

    default: Any = None
    description: str = ""
    choices: dict[str, Any] | None = None


class TemplateModel(StrictModel):
    """A template file, ``schema_version`` 1.0."""

    schema_version: str = "1.0"
    description: str = ""
    parameters: dict[str, ParameterModel] = Field(default_factory=dict)
    config: dict[str, Any]
