"""From declared settings to the inputs of a node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.foundation import Setting
from yggdrasill.server_ext.comfy.levels.widget_values import REST

__all__ = ["inputs_of", "number_limits", "widget"]

_MOST = 2**53


def inputs_of(settings: Sequence[Setting] | None) -> list[Any]:
    """An input for each setting, all optional; one for YAML where nothing is declared."""
    if settings is None:
        return [
            io.String.Input(
                REST, default="", multiline=True, optional=True, tooltip="The config as YAML or JSON; this one does not tell its settings."
            )
        ]
    return [widget(setting) for setting in settings]


def widget(setting: Setting) -> Any:
    """The input for one setting. A number without a default is a text that may stay blank."""
    name, default = setting.name, setting.default
    said: dict[str, Any] = {"optional": True, "tooltip": _sentence(setting.meaning)}
    if setting.kind == "choice":
        return io.Combo.Input(name, options=list(setting.options), default=default, **said)
    if setting.kind == "text":
        long = default is None or "\n" in default or len(default) > 40
        return io.String.Input(name, default=default or "", multiline=long, **said)
    if setting.kind == "value" or default is None:
        said["tooltip"] = _sentence(", ".join(filter(None, (setting.meaning, _range(setting), "blank is none"))))
        text = "" if default is None else json.dumps(default, ensure_ascii=False)
        return io.String.Input(name, default=text, multiline=setting.kind == "value" and isinstance(default, (dict, list)), **said)
    if setting.kind == "boolean":
        return io.Boolean.Input(name, default=default, **said)
    low, high = number_limits(setting)
    if setting.kind == "integer":
        return io.Int.Input(name, default=default, min=low, max=high, **said)
    return io.Float.Input(name, default=default, min=low, max=high, step=0.01, **said)


def number_limits(setting: Setting) -> tuple[Any, Any]:
    """The lowest and highest value, within what the editor can count."""
    kind = int if setting.kind == "integer" else float
    low = -_MOST if setting.low is None else max(setting.low, -_MOST)
    high = _MOST if setting.high is None else min(setting.high, _MOST)
    return kind(low), kind(high)


def _range(setting: Setting) -> str:
    return f"{setting.low:g} to {setting.high:g}" if setting.low is not None and setting.high is not None else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")
