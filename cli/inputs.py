"""``NAME=VALUE`` arguments: JSON if the value parses as JSON, ``@file`` for a file's content, else text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, MissingFile

__all__ = ["parse_assignments", "parse_value"]

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Return ``["a=1", "b=@map.png"]`` as a dict.

    Raises:
        InvalidArgument: an argument without ``=``, or a repeated name. Otherwise as `parse_value`.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise InvalidArgument(f"Expected NAME=VALUE, got {text!r}")
        if name in values:
            raise InvalidArgument(f"{name!r} is given twice")
        values[name] = parse_value(value)
    return values


def parse_value(text: str) -> Any:
    """Return the value of a JSON text or ``@file``, or the text itself.

    An image file becomes a float32 tensor [1, height, width, 3] in 0..1, ``.ygg`` is decoded, ``.json`` is parsed, and
    any other file is UTF-8 text.

    Raises:
        MissingFile; InvalidArgument, CorruptData: the file cannot be read or decoded.
    """
    if text.startswith("@"):
        return _read_file(Path(text[1:]))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise MissingFile(f"Cannot read a value from {str(path)!r}: no such file", path=str(path))
    suffix = path.suffix.lower()
    if suffix == ".ygg":
        from yggdrasill.values import load

        return load(path)
    try:
        return _read_image(path) if suffix in _IMAGES else _read_text(path, json_only=suffix == ".json")
    except OSError as error:
        raise InvalidArgument(f"Cannot read {str(path)!r}: {error.strerror or error}", path=str(path)) from error


def _read_text(path: Path, *, json_only: bool) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if json_only else text
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{str(path)!r} is not UTF-8 text ({error}); save binary values as .ygg", path=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{str(path)!r} is not valid JSON: {error}", path=str(path)) from error


def _read_image(path: Path) -> Any:
    import numpy
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255.0
    except UnidentifiedImageError as error:
        raise InvalidArgument(f"{str(path)!r} is not an image in a known format", path=str(path)) from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidArgument(f"{str(path)!r} cannot be decoded as an image: {error}", path=str(path)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidArgument(f"{str(path)!r} cannot be decoded as an image: {error}", path=str(path)) from error
    return torch.from_numpy(pixels)[None]
