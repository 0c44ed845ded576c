"""Results as files: images as PNG, text and plain values as text and JSON, everything else in the lossless codec."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yggdrasill.values import dumps
from yggdrasill.values.files import FileSet
from yggdrasill.values.payload import is_unicode

__all__ = ["describe", "image_bytes", "is_image", "save_values"]


def is_image(value: Any) -> bool:
    """Return whether a value is a float tensor [batch, height, width, channels] with 1, 3 or 4 channels."""
    shape = getattr(value, "shape", None)
    return shape is not None and len(shape) == 4 and shape[-1] in (1, 3, 4) and "float" in str(getattr(value, "dtype", ""))


def image_bytes(image: Any) -> bytes:
    """Return one image [height, width, channels] with values in 0..1 as an 8-bit PNG."""
    from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def save_values(values: Mapping[str, Any], folder: str | Path) -> dict[str, list[Path]]:
    """Write every value to files of its own and return the files by name; all of them appear, or none.

    A file is named after its value. Where two names give one file name, also on systems that ignore case, the later one
    gets a number: ``a:b`` and ``a_b`` become ``a_b.txt`` and ``a_b-2.txt``.

    Raises:
        StorageFailed, CannotTravel
    """
    written: dict[str, list[Path]] = {}
    taken: set[str] = set()
    with FileSet() as files:
        for name, value in values.items():
            stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "output"
            forms = list(_forms(value))
            for number in itertools.count(1):
                names = [f"{stem}{f'-{number}' if number > 1 else ''}{suffix}" for suffix, _ in forms]
                if taken.isdisjoint(map(str.casefold, names)):
                    break
            taken.update(map(str.casefold, names))
            written[name] = [Path(folder) / file for file in names]
            for path, (_, data) in zip(written[name], forms, strict=True):
                files.write(path, data)
    return written


def _forms(value: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the end of the file name and the bytes of each file of a value."""
    if is_image(value):
        for number, image in enumerate(value):
            yield (f"-{number}.png" if len(value) > 1 else ".png"), image_bytes(image)
    elif isinstance(value, str) and is_unicode(value):
        yield ".txt", value.encode("utf-8")
    else:
        try:
            yield ".json", (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")
        except (TypeError, ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
            yield ".ygg", dumps(value)


def describe(value: Any) -> str:
    """Return a value in one short line."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{str(getattr(value, 'dtype', '')).replace('torch.', '')} {list(shape)}"
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 100 else f"{type(value).__name__}: {text[:90]}..."
