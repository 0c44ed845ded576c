"""ComfyUI workflows as files: an API prompt, the body of a POST /prompt, or a picture that ComfyUI saved with both in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, MissingFile

__all__ = ["Workflow", "read_workflow"]

_LARGEST = 256 << 20
_FORMS = "a workflow file is what 'Export (API)' in the editor's menu writes, a body of POST /prompt, or a PNG that ComfyUI saved"


@dataclass(frozen=True)
class Workflow:
    """A prompt and what is posted along with it: the editor's workflow, if the file has it, gives the parts their names."""

    name: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]


def read_workflow(path: str | Path) -> Workflow:
    """Read a workflow.

    Raises:
        MissingFile; InvalidConfig: the file is none, or is in the editor's own format, which only the editor turns into a prompt.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _LARGEST:
            raise InvalidConfig(f"{str(path)!r} is larger than {_LARGEST} bytes; {_FORMS}", path=str(path))
        data = file.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"there is no file {str(path)!r}; name {_FORMS.removeprefix('a workflow file is ')}", path=str(path)) from None
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
        raise InvalidConfig(f"{str(file)!r} cannot be read as a picture: {error}", path=str(file)) from None
    if not isinstance(prompt, str):
        raise InvalidConfig(f"{str(file)!r} is a picture with no prompt in it; {_FORMS}", path=str(file))
    drawn = {"extra_pnginfo": {"workflow": _from_json(workflow, str(file))}} if isinstance(workflow, str) else {}
    return {"prompt": _from_json(prompt, str(file)), "extra_data": drawn}


def _from_json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where!r} holds no JSON ({error}); {_FORMS}", path=where) from None


def _workflow(posted: Any, file: Path) -> Workflow:
    if not isinstance(posted, Mapping):
        raise InvalidConfig(f"{str(file)!r} holds a {type(posted).__name__}; {_FORMS}", path=str(file))
    if isinstance(posted.get("nodes"), list):
        raise InvalidConfig(
            f"{str(file)!r} is a workflow in the editor's own format, and only the editor knows the prompt it stands for. Open it there and "
            "choose 'Export (API)' in the menu, or save a picture with it and name that",
            path=str(file),
        )
    prompt, extra = (posted["prompt"], posted.get("extra_data") or {}) if "prompt" in posted else (posted, {})
    nodes = prompt.values() if isinstance(prompt, Mapping) else ()
    if not nodes or not isinstance(extra, Mapping) or not all(isinstance(node, Mapping) and "class_type" in node for node in nodes):
        raise InvalidConfig(f"{str(file)!r} holds no prompt, which maps node ids to {{class_type, inputs}}; {_FORMS}", path=str(file))
    return Workflow(file.stem, {str(node_id): dict(node) for node_id, node in prompt.items()}, dict(extra))
