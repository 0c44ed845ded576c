"""The models of a template file."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from yggdrasill.foundation.graph_config import StrictModel

__all__ = ["ParameterModel", "TemplateModel"]


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
