"""Config values from widgets. A widget at its default writes nothing, so a config has only what the user chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import ConfigField
from yggdrasill.foundation.config import parse_document

__all__ = ["REST", "config_from_widgets", "read_value"]

REST = "config"
"""The widget for YAML, where a block does not declare its settings."""


def config_from_widgets(settings: Sequence[ConfigField] | None, widgets: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return the config that the widgets of ``settings`` define; without settings, that in the YAML widget.

    Raises:
        InvalidArgument: a value is not valid; the message names ``owner``. InvalidConfig: the YAML is not valid.
    """
    if settings is None:
        text = str(widgets.get(REST) or "")
        return parse_document(text, f"{owner}, config", yaml=True) if text.strip() else {}
    config = {}
    for setting in settings:
        if setting.name not in widgets:
            continue
        value = read_value(setting, widgets[setting.name], owner)
        if value != setting.default:
            config[setting.name] = value
    return config


def read_value(setting: ConfigField, value: Any, owner: str) -> Any:
    """Return the config value of one widget. The text widget of a number without a default may be blank."""
    if isinstance(value, str) and setting.kind != "choice":
        if setting.kind == "value" or (setting.default is None and setting.kind in ("integer", "number", "boolean")):
            value = _parse_text(setting, value, owner)
        elif not value and setting.default is None:
            value = None
    checked = setting.read({setting.name: value}, owner)
    return int(checked) if setting.kind == "number" and isinstance(value, int) and not isinstance(value, bool) else checked


def _parse_text(setting: ConfigField, text: str, owner: str) -> Any:
    if not text.strip():
        return setting.default
    try:
        return parse_document(
            f"value: {text}" if "\n" not in text else "value:\n" + _indented(text), f"{owner}, {setting.name}", yaml=True
        )["value"]
    except ValueError as error:
        raise InvalidArgument(f"{owner}: {setting.name!r} is not valid YAML: {text[:80]!r}: {error}") from error


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
