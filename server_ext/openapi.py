"""The OpenAPI document of an endpoint, generated from the table of routes."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import yggdrasill
from yggdrasill.protocol.models import ErrorModel
from yggdrasill.protocol.version import BASE_PATH, OLDEST_PROTOCOL, PROTOCOL, PROTOCOL_HEADER
from yggdrasill.server_ext.route_table import COMMON_ERRORS, ROUTES, Parameter, Route

__all__ = ["openapi_document"]

_REFERENCES = "#/components/schemas/{model}"
_HASH = "^[0-9a-f]{64}$"
_PATH_PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "graph_id": ({"type": "string", "minLength": 1, "maxLength": 200}, "The id of a deployment"),
    "job_id": ({"type": "string", "minLength": 1}, "The id of a job"),
    "key": ({"type": "string", "minLength": 1, "maxLength": 200}, "The key of a call, as its caller chose it"),
    "hash": ({"type": "string", "pattern": _HASH}, "The BLAKE3 of the artifact in hex"),
    "upload_id": ({"type": "string", "pattern": "^[0-9a-f]{32}$"}, "The id of an upload session, as its caller chose it"),
}
_PROTOCOL = Parameter(
    PROTOCOL_HEADER,
    {"type": "integer", "minimum": OLDEST_PROTOCOL, "maximum": PROTOCOL, "default": PROTOCOL},
    "The version of the protocol that the caller speaks",
    "header",
)
_VERSION_SENT = {PROTOCOL_HEADER: {"description": "The version of the protocol of the answer", "schema": {"type": "integer"}}}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before the next try", "required": True, "schema": {"type": "integer"}}}
_CONTENT_RANGE = {
    "Content-Range": {"description": "The bytes sent, and the size of the artifact", "required": True, "schema": {"type": "string"}}
}
_HEADERS_OF: dict[int, dict[str, Any]] = {
    206: {**_CONTENT_RANGE, "Accept-Ranges": {"description": "bytes", "schema": {"type": "string"}}},
    401: {"WWW-Authenticate": {"description": "Bearer", "required": True, "schema": {"type": "string"}}},
    416: _CONTENT_RANGE,
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_ERRORS = {
    400: "A header, parameter or the body is invalid",
    401: "The token is missing, wrong, expired or revoked, or the signature is wrong",
    403: "The token lacks a role (`details.needed`), or Host, Origin or the deployer of the graph forbids it",
    404: "The named thing does not exist, or belongs to another caller",
    409: "Artifacts are missing (`details.missing`), the key was used for another call, the build of torch differs, or an upload continues at "
    "another byte (`details.offset`)",
    413: "The body is larger than the endpoint accepts",
    416: "The range begins after the last byte",
    422: "The graph cannot run",
    426: "The protocol version is not supported (`details.oldest`, `details.protocol`)",
    429: "Too many unfinished jobs, or too many wrong tokens from this address",
    500: "The endpoint failed",
    502: "Another endpoint failed",
    503: "The endpoint is shutting down",
    507: "The disk, the artifact quota or the quota of the token is full, or a file cannot be read or written",
}


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of all routes under ``/yggdrasill/v1``."""
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
        "components": {
            "schemas": schemas["$defs"],
            "responses": {str(status): _error(status) for status in _ERRORS},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The token of a principal; see `x-role` of each operation"},
                "signature": {"type": "apiKey", "in": "query", "name": "sig", "description": "A signed url of one artifact"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    responses = {str(status): _success(route, status) for status in route.statuses}
    if "If-None-Match" in {parameter.name for parameter in route.parameters}:
        responses["304"] = {"description": "The artifact has the ETag of If-None-Match"}
    for status in sorted({*COMMON_ERRORS, *route.errors}):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "x-role": route.role,
        "security": [{"token": []}, {"signature": []}] if route.signed else [{"token": []}],
        "parameters": [
            *(_path_parameter(name) for name in re.findall(r"{(\w+)}", route.path)),
            *map(_parameter, (_PROTOCOL, *route.parameters)),
        ],
        "responses": responses,
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json_content(route.body)}
    elif route.bytes_in is not None:
        operation["requestBody"] = {"required": True, "content": {route.bytes_in: {"schema": {"type": "string", "format": "binary"}}}}
    return operation


def _success(route: Route, status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"description": route.summary, "headers": {**_VERSION_SENT, **_HEADERS_OF.get(status, {})}}
    if route.answer is not None:
        response["content"] = _json_content(route.answer)
    elif route.bytes_out is not None:
        response["content"] = {route.bytes_out: {}}
    elif status != HTTPStatus.NO_CONTENT:
        response["content"] = {"application/json": {"schema": {"type": "object"}}}
    if route.events_out:
        response["content"]["text/event-stream"] = {}
    return response


def _error(status: int) -> dict[str, Any]:
    return {
        "description": _ERRORS[status],
        "headers": {**_VERSION_SENT, **_HEADERS_OF.get(status, {})},
        "content": _json_content(ErrorModel),
    }


def _path_parameter(name: str) -> dict[str, Any]:
    schema, description = _PATH_PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.location,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _json_content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCES.format(model=model.__name__)}}}
