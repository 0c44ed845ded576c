"""The sources of configs: a template with its parameters, a file in a readable folder, or pasted text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.foundation import ConfigField, template_names
from yggdrasill.foundation.templates import TEMPLATE_FOLDER, FileTemplate, render_template
from yggdrasill.server_ext.comfy.levels.building import build, checked_level, config_key, retain
from yggdrasill.server_ext.comfy.levels.host_paths import open_file, read_text
from yggdrasill.server_ext.comfy.levels.widget_values import config_from_widgets

__all__ = ["PREFIX", "fingerprint", "from_file", "from_template", "from_text", "load_source", "template_settings"]

PREFIX = "template: "
"""The prefix of the choices that are templates."""


def template_settings(level: str) -> dict[str, tuple[ConfigField, ...] | None]:
    """Return the parameters of every template of a level by its name; None for a template that declares none."""
    return {name: _settings_of(level, name) for name in template_names(level)}


def from_template(level: str, name: str, widgets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a template. Raises `UnknownName` if it does not exist, else as `render_template`."""
    known = _settings_of(level, name) if name in template_names(level) else None
    return _whole(level, render_template(level, name, config_from_widgets(known, widgets, f"template {name!r}")))


def from_file(level: str, name: str) -> dict[str, Any]:
    """Return the config in a file; see `open_file`."""
    return _whole(level, open_file(name))


def from_text(level: str, text: str) -> dict[str, Any]:
    """Return the config in pasted JSON or YAML."""
    return _whole(level, read_text(text, f"{level} config"))


def _whole(level: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as the level itself writes it, so that equal configs are equal regardless of how they were written."""
    checked_level(config, level)
    built = build(config)
    whole = dict(built.to_config())
    storage = config.get("storage") if level == "world" else None
    if storage is not None:
        whole["storage"] = dict(storage)
    retain(whole, built)
    return whole


def _settings_of(level: str, name: str) -> tuple[ConfigField, ...] | None:
    file = TEMPLATE_FOLDER / level / f"{name}.yaml"
    try:
        return _read_settings(str(file), file.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _read_settings(file: str, changed: int) -> tuple[ConfigField, ...] | None:
    try:
        parameters = FileTemplate(file).parameters
    except YggdrasillError:
        return None
    return tuple(_setting(name, parameter) for name, parameter in parameters.items())


def _setting(name: str, parameter: Any) -> ConfigField:
    default, meaning = parameter.default, parameter.description
    if parameter.choices is not None:
        return ConfigField(name, "choice", default, options=tuple(parameter.choices), meaning=meaning)
    kinds = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return ConfigField(name, kinds.get(type(default), "value"), default, meaning=meaning)


def load_source(level: str, source: Mapping[str, Any] | None, chosen: str) -> dict[str, Any]:
    """Return the config that the widgets of a loading node define.

    ``chosen`` is the choice in the prompt, which this server may not have.

    Raises:
        UnknownName: the template does not exist. InvalidArgument, InvalidConfig, MissingFile, UnknownBlockType
    """
    choice = chosen if source is None else str(source.get("source", chosen))
    widgets = {name: value for name, value in (source or {}).items() if name != "source" and value is not None}
    if choice == "file":
        return from_file(level, str(widgets.get("name", "")))
    if choice == "text":
        return from_text(level, str(widgets.get("text", "")))
    return from_template(level, choice.removeprefix(PREFIX), widgets)


def fingerprint(source: Any) -> Any:
    """Return a value that changes when the named file or template changes."""
    if not isinstance(source, Mapping):
        return None
    choice = str(source.get("source"))
    if choice == "file":
        try:
            return config_key(open_file(str(source.get("name", ""))))
        except YggdrasillError as error:
            return error.message
    return None if choice == "text" else str(sorted(TEMPLATE_FOLDER.glob(f"*/{choice.removeprefix(PREFIX)}.yaml")))
