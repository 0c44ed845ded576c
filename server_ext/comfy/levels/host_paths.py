"""The folders and rules of the ComfyUI around: what a config may name here, and which files a prompt may open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, MissingFile, format_options
from yggdrasill.foundation.config import parse_document, read_document
from yggdrasill.remote.client import is_below
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.configs import HostRules, check_config

__all__ = ["check", "data_folder", "open_file", "read_mapping", "read_text", "worlds_folder"]

_LONGEST_TEXT = 8 << 20


def data_folder() -> Path:
    """The data folder of this ComfyUI's endpoint."""
    return Path(host_api.user_directory()) / "yggdrasill"


def worlds_folder() -> Path:
    """The folder that has a folder for each world kept here."""
    return data_folder() / "worlds"


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` to build from, as of one that came over the network; a world's storage is left out.

    Raises:
        InvalidConfig: it names a path outside ComfyUI's folders of models, a secret, or an address that is no endpoint here.
    """
    registry = extension_context().registry
    rules = HostRules(
        roots=host_api.model_folders(),
        worlds=worlds_folder(),
        knows_url=lambda url: any(is_below(url, endpoint.url) for endpoint in registry.endpoints.values()),
    )
    return check_config({key: value for key, value in config.items() if key != "storage" or "stages" not in config}, rules)


def open_file(name: str) -> dict[str, Any]:
    """The config in a .json or .yaml file (or a folder that was saved) named below one of the folders a prompt may read.

    Those are ``configs`` and ``worlds`` in the data folder, and ComfyUI's input and output folders.

    Raises:
        InvalidArgument: the name leads elsewhere. MissingFile, InvalidConfig
    """
    roots = _roots()
    text = name.strip()
    if not text or "\x00" in text or "://" in text or text.startswith("~"):
        raise InvalidArgument(f"{name!r} is no name of a file; give one in {format_options(map(str, roots))}")
    inside = []
    for root in roots:
        path = (root / text).resolve()
        if path.is_relative_to(root.resolve()):
            inside.append(path)
    if not inside:
        raise InvalidArgument(
            f"{name!r} leads out of the folders that a workflow may read: {format_options(map(str, roots))}; put the file there"
        )
    for path in inside:
        for file in (path / "config.json", path / "config.yaml") if path.is_dir() else (path,):
            if file.is_file():
                return read_document(file)
    raise MissingFile(f"there is no file {name!r} in {format_options(map(str, roots))}; check the name", path=name)


def read_text(text: str, what: str) -> dict[str, Any]:
    """The config in pasted JSON or YAML.

    Raises:
        InvalidConfig: it is none, or nothing.
    """
    if not text.strip():
        raise InvalidConfig(f"the {what} is empty; paste a config in JSON or YAML")
    if len(text) > _LONGEST_TEXT:
        raise InvalidConfig(f"the {what} has {len(text)} characters; at most {_LONGEST_TEXT} are read")
    return parse_document(text, what, yaml=not text.lstrip().startswith("{"))


def read_mapping(text: str, what: str) -> dict[str, Any]:
    """The mapping in a text of YAML or JSON; an empty text is an empty one."""
    return read_text(text, what) if text.strip() else {}


def _roots() -> list[Path]:
    data = data_folder()
    return [data / "configs", data / "worlds", *host_api.media_folders()]
