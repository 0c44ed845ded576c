"""The OpenAPI document, made from the table of routes and the models of their bodies."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import yggdrasill
from yggdrasill.server_ext.models import ErrorModel
from yggdrasill.server_ext.route_table import BASE_PATH, ROUTES, Route

__all__ = ["openapi_document"]

_REFERENCES = "#/components/schemas/{model}"


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 for everything under ``/yggdrasill/v1``."""
    used: dict[type[BaseModel], None] = dict.fromkeys(
        model for route in ROUTES for model in (route.body, route.answer) if model is not None
    )
    used[ErrorModel] = None
    _, schemas = models_json_schema([(model, "validation") for model in used], ref_template=_REFERENCES)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(BASE_PATH + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Yggdrasill endpoint", "version": yggdrasill.__version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.answer is not None:
        success["content"] = _json_content(route.answer)
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "parameters": [
            {"name": name, "in": place, "required": True, "schema": {"type": "string"}}
            for place, names in (("path", re.findall(r"{(\w+)}", route.path)), ("query", route.query))
            for name in names
        ],
        "responses": {
            **{str(status): success for status in route.statuses},
            "default": {"description": "What went wrong", "content": _json_content(ErrorModel)},
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json_content(route.body)}
    return operation


def _json_content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCES.format(model=model.__name__)}}}
