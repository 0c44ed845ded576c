"""Reading ComfyUI workflows from files: an API prompt, the body of a POST /prompt, or a PNG that ComfyUI saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, MissingFile

__all__ = ["Workflow", "read_workflow"]

_LARGEST = 256 << 20
_FORMS = "A workflow file is the result of 'Export (API)' in the editor's menu, a body of POST /prompt, or a PNG that ComfyUI saved."


@dataclass(frozen=True)
class Workflow:
    """A prompt and its ``extra_data``: the editor's workflow, if the file contains it, names the parts."""

    name: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]


def read_workflow(path: str | Path) -> Workflow:
    """Read a workflow.

    Raises:
        MissingFile; InvalidConfig: the file is not a workflow, or is in the editor's format, which only the editor converts.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _LARGEST:
            raise InvalidConfig(f"{str(path)!r} is larger than {_LARGEST} bytes. {_FORMS}", path=str(path))
        data = file.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"No such file: {str(path)!r}. {_FORMS}", path=str(path)) from None
    except OSError as error:
        raise InvalidConfig(f"cannot read {str(path)!r}: {error.strerror or error}", path=str(path)) from error
    posted = _from_png(file) if data.startswith(b"\x89PNG") else _from_json(data, str(path))
    return _workflow(posted, file)


def _from_png(file: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            prompt, workflow = (picture.info.get(name) for name in ("prompt", "workflow"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise InvalidConfig(f"{str(file)!r} cannot be read as an image: {error}", path=str(file)) from None
    if not isinstance(prompt, str):
        raise InvalidConfig(f"{str(file)!r} is an image without a prompt. {_FORMS}", path=str(file))
    drawn = {"extra_pnginfo": {"workflow": _from_json(workflow, str(file))}} if isinstance(workflow, str) else {}
    return {"prompt": _from_json(prompt, str(file)), "extra_data": drawn}


def _from_json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where!r} is not JSON ({error}). {_FORMS}", path=where) from None


def _workflow(posted: Any, file: Path) -> Workflow:
    if not isinstance(posted, Mapping):
        raise InvalidConfig(f"{str(file)!r} contains a {type(posted).__name__}, not a prompt. {_FORMS}", path=str(file))
    if isinstance(posted.get("nodes"), list):
        raise InvalidConfig(
            f"{str(file)!r} is a workflow in the editor's format, which only the editor can convert to a prompt. Open it there and "
            "choose 'Export (API)' in the menu, or save an image with it and use that.",
            path=str(file),
        )
    prompt, extra = (posted["prompt"], posted.get("extra_data") or {}) if "prompt" in posted else (posted, {})
    nodes = prompt.values() if isinstance(prompt, Mapping) else ()
    if not nodes or not isinstance(extra, Mapping) or not all(isinstance(node, Mapping) and "class_type" in node for node in nodes):
        raise InvalidConfig(f"{str(file)!r} is not a prompt, which maps node ids to {{class_type, inputs}}. {_FORMS}", path=str(file))
    return Workflow(file.stem, {str(node_id): dict(node) for node_id, node in prompt.items()}, dict(extra))
