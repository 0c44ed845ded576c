"""Reading request bodies: bounded before memory is taken, never decompressed, JSON checked by a model."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, PayloadTooLarge

__all__ = ["check_length", "read_json", "read_model_body"]

Model = TypeVar("Model", bound=BaseModel)

_OFF_THE_LOOP = 256 << 10
_MOST_ITEMS = 4_000_000
_SHOWN = 8


def check_length(request: web.Request, limit: int) -> int | None:
    """The announced length of a body, None if there is no announcement.

    Raises:
        PayloadTooLarge: above ``limit``; nothing was read. InvalidArgument: a compressed body.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InvalidArgument("compressed bodies are not taken: a small one may stand for a large one; send it as it is")
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(length, limit)
    return length


async def read_json(request: web.Request, limit: int) -> Any:
    """The JSON of a body of at most ``limit`` bytes.

    Raises:
        PayloadTooLarge, InvalidArgument, CorruptData, LimitExceeded
    """
    check_length(request, limit)
    parts: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise _too_large(size, limit)
        parts.append(chunk)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return await asyncio.to_thread(_parse, data) if size > _OFF_THE_LOOP else _parse(data)


async def read_model_body(request: web.Request, model: type[Model], limit: int) -> Model:
    """A body checked by ``model``; the message names every mistake's place. Raises as `read_json`."""
    document = await read_json(request, limit)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, item['loc'])) or 'the body'}: {item['msg']}" for item in error.errors(include_url=False)[:_SHOWN]]
        raise InvalidArgument("the request's body is wrong: " + "; ".join(mistakes)) from None


def _parse(data: bytes) -> Any:
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_ITEMS:
        raise LimitExceeded(f"the body has more than {_MOST_ITEMS} items; tensors travel as artifacts, not as lists", bound=_MOST_ITEMS)
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise LimitExceeded("the body nests too deeply to be a value", limit="max_depth") from None
    except ValueError as error:
        raise CorruptData(f"the body is no JSON ({error}): it was cut short or altered; send it again") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _too_large(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"a body of {size} bytes is above this endpoint's limit of {limit}; send tensors as artifacts", bound=limit, found=size
    )
