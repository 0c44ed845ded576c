"""``name=value`` on the command line: JSON if it reads as JSON, ``@file`` for a file's content, else text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, MissingFile

__all__ = ["parse_assignments", "parse_value"]

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """``["a=1", "b=@map.png"]`` as a dict.

    Raises:
        InvalidArgument: no ``=``, or a name that stands twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise InvalidArgument(f"{text!r} is no NAME=VALUE")
        if name in values:
            raise InvalidArgument(f"{name!r} is given twice")
        values[name] = parse_value(value)
    return values


def parse_value(text: str) -> Any:
    """JSON, ``@file``, or the text itself. An image file becomes a float32 tensor [1, height, width, 3] in 0..1."""
    if text.startswith("@"):
        return _read_file(Path(text[1:]))
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise MissingFile(f"there is no file {str(path)!r} to take a value from", path=str(path))
    suffix = path.suffix.lower()
    if suffix in _IMAGES:
        return _read_image(path)
    if suffix == ".ygg":
        from yggdrasill.values import load

        return load(path)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if suffix == ".json" else text


def _read_image(path: Path) -> Any:
    import numpy
    import torch
    from PIL import Image

    with Image.open(path) as image:
        pixels = numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255.0
    return torch.from_numpy(pixels)[None]
