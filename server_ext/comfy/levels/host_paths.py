"""The folders of this ComfyUI that configs may name and prompts may read, and the checks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, MissingFile, format_options
from yggdrasill.foundation.config import parse_document, read_document
from yggdrasill.remote.client import is_below
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.configs import HostRules, check_config

__all__ = ["check", "data_folder", "open_file", "read_mapping", "read_text", "worlds_folder"]

_LONGEST_TEXT = 8 << 20


def data_folder() -> Path:
    """Return the data folder of this ComfyUI's endpoint."""
    return Path(compat.user_directory()) / "yggdrasill"


def worlds_folder() -> Path:
    """Return the folder that contains one folder per stored world."""
    return data_folder() / "worlds"


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``config`` to build from, checked like one that was received over the network. The storage of a world is removed.

    Raises:
        InvalidConfig: it names a path outside ComfyUI's model folders, a secret, or a URL that is not an endpoint in the registry.
    """
    registry = extension_context().registry
    rules = HostRules(
        roots=compat.model_folders(),
        worlds=worlds_folder(),
        knows_url=lambda url: any(is_below(url, endpoint.url) for endpoint in registry.endpoints.values()),
    )
    return check_config({key: value for key, value in config.items() if key != "storage" or "stages" not in config}, rules)


def open_file(name: str) -> dict[str, Any]:
    """Return the config in a .json or .yaml file, or in the folder of a save, below one of the folders that a prompt may read.

    Those are ``configs`` and ``worlds`` in the data folder, and ComfyUI's input and output folders.

    Raises:
        InvalidArgument: the name leads outside these folders. MissingFile, InvalidConfig
    """
    roots = _roots()
    text = name.strip()
    if not text or "\x00" in text or "://" in text or text.startswith("~"):
        raise InvalidArgument(f"{name!r} is not a file name. Enter the name of a file in {format_options(map(str, roots))}.")
    inside = []
    for root in roots:
        path = (root / text).resolve()
        if path.is_relative_to(root.resolve()):
            inside.append(path)
    if not inside:
        raise InvalidArgument(
            f"{name!r} is outside the folders that a workflow may read: {format_options(map(str, roots))}. Move the file into one of them."
        )
    for path in inside:
        for file in (path / "config.json", path / "config.yaml") if path.is_dir() else (path,):
            if file.is_file():
                return read_document(file)
    raise MissingFile(f"File {name!r} was not found in {format_options(map(str, roots))}. Check the name.", path=name)


def read_text(text: str, what: str) -> dict[str, Any]:
    """Return the config in pasted JSON or YAML. ``what`` names the text in messages.

    Raises:
        InvalidConfig: the text is empty or not a config.
    """
    if not text.strip():
        raise InvalidConfig(f"The {what} is empty. Paste a config in JSON or YAML.")
    if len(text) > _LONGEST_TEXT:
        raise InvalidConfig(f"The {what} has {len(text)} characters; the limit is {_LONGEST_TEXT}.")
    return parse_document(text, what, yaml=not text.lstrip().startswith("{"))


def read_mapping(text: str, what: str) -> dict[str, Any]:
    """Return the mapping in a text of YAML or JSON, empty for an empty text."""
    return read_text(text, what) if text.strip() else {}


def _roots() -> list[Path]:
    data = data_folder()
    return [data / "configs", data / "worlds", *compat.media_folders()]
