"""Socket types, inputs and outputs that several nodes share, and image previews."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from comfy_api.v0_0_2 import io, ui

from yggdrasill.foundation import ConfigField
from yggdrasill.server_ext.comfy.compat import execution_blocker
from yggdrasill.server_ext.comfy.levels.widget_values import REST

__all__ = [
    "GRAPH",
    "MAX_SEED",
    "PIPELINE",
    "STAGE",
    "STATE",
    "WORLD",
    "category",
    "inputs_of",
    "linked_parts",
    "names_input",
    "number_limits",
    "optional_seed_input",
    "part_inputs",
    "port_inputs",
    "port_outputs",
    "preview_of",
    "seed_input",
    "values_in_order",
    "widget",
]

GRAPH = io.Custom("YGGDRASILL_GRAPH")
PIPELINE = io.Custom("YGGDRASILL_PIPELINE")
STAGE = io.Custom("YGGDRASILL_STAGE")
WORLD = io.Custom("YGGDRASILL_WORLD")
STATE = io.Custom("YGGDRASILL_STATE")
MAX_SEED = 2**63 - 1
_MAX_PARTS = 24
_MAX_NUMBER = 2**53
_MAX_SHOWN = 16


def category(family: str) -> str:
    """Return the menu category of a family of nodes."""
    return f"Yggdrasill/{family}"


def seed_input(default: int = 0) -> io.Int.Input:
    """Return the seed input of a run, with the editor's control after each run."""
    return io.Int.Input(
        "seed",
        default=default,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The random seed. Equal seeds give equal results, independent of the placement.",
    )


def optional_seed_input() -> io.Int.Input:
    """Return the seed input of a run whose state or world may define a seed."""
    return io.Int.Input(
        "seed",
        default=-1,
        min=-1,
        max=MAX_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="The random seed. -1: the seed of the state, else of the world.",
    )


def port_inputs(most: int, tooltip: str | None = None) -> Any:
    """Return the input ``ports``: the inputs of a graph in order, as sockets ``p0``, ``p1`` ..."""
    return io.Autogrow.Input("ports", template=_port_template(most), optional=True, tooltip=tooltip)


# ComfyUI builds the schema of a node several times per prompt; it changes neither templates nor outputs
@cache
def _port_template(most: int) -> Any:
    return io.Autogrow.TemplatePrefix(io.AnyType.Input("port", optional=True), prefix="p", min=0, max=most)


def port_outputs(most: int) -> list[Any]:
    """Return the outputs of a graph in order, as sockets ``o0``, ``o1`` ..., each a list of values."""
    return list(_port_outputs(most))


@cache
def _port_outputs(most: int) -> tuple[Any, ...]:
    return tuple(io.AnyType.Output(f"o{index}", display_name=f"o{index}", is_output_list=True) for index in range(most))


def values_in_order(outputs: Mapping[int, Any], count: int) -> list[Any]:
    """Return the values of the first ``count`` sockets of `port_outputs`. A missing value blocks the nodes that need it."""

    blocked = [execution_blocker()]
    return [outputs.get(index, blocked) for index in range(count)]


def part_inputs(name: str, part: Any, prefix: str, tooltip: str) -> Any:
    """Return the input ``name``: at least one socket like ``part``; another one appears for each that is linked."""
    return io.Autogrow.Input(name, template=io.Autogrow.TemplatePrefix(part, prefix=prefix, min=1, max=_MAX_PARTS), tooltip=tooltip)


def names_input(parts: str) -> Any:
    """Return the input for the ids of ``parts`` inside their container."""
    return io.String.Input("names", default="", tooltip=f"Names of the {parts}, separated by commas. Blank: their ids.", advanced=True)


def linked_parts(parts: Mapping[str, Any]) -> list[Any]:
    """Return the linked values of `part_inputs`, in order."""
    return [part for part in parts.values() if part is not None]


def inputs_of(settings: Sequence[ConfigField] | None) -> list[Any]:
    """Return an optional input for each setting, or one text input for YAML if ``settings`` is None."""
    if settings is None:
        return [
            io.String.Input(
                REST, default="", multiline=True, optional=True, tooltip="The config as YAML or JSON; this block declares no settings."
            )
        ]
    return [widget(setting) for setting in settings]


def widget(setting: ConfigField) -> Any:
    """Return the input for one setting. A number without a default becomes a text that may be blank."""
    name, default = setting.name, setting.default
    options: dict[str, Any] = {"optional": True, "tooltip": _as_sentence(setting.meaning)}
    if setting.kind == "choice":
        return io.Combo.Input(name, options=list(setting.options), default=default, **options)
    if setting.kind in ("path", "url", "secret"):
        return io.String.Input(name, default=default or "", **options)
    if setting.kind == "text":
        long = default is None or "\n" in default or len(default) > 40
        return io.String.Input(name, default=default or "", multiline=long, **options)
    if setting.kind == "value" or default is None:
        options["tooltip"] = _as_sentence(", ".join(filter(None, (setting.meaning, _range(setting), "blank: none"))))
        text = "" if default is None else json.dumps(default, ensure_ascii=False)
        return io.String.Input(name, default=text, multiline=setting.kind == "value" and isinstance(default, (dict, list)), **options)
    if setting.kind == "boolean":
        return io.Boolean.Input(name, default=default, **options)
    low, high = number_limits(setting)
    if setting.kind == "integer":
        return io.Int.Input(name, default=default, min=low, max=high, **options)
    return io.Float.Input(name, default=default, min=low, max=high, step=0.01, **options)


def number_limits(setting: ConfigField) -> tuple[Any, Any]:
    """Return the lowest and highest value, within the integers that the editor represents exactly."""
    kind = int if setting.kind == "integer" else float
    low = -_MAX_NUMBER if setting.low is None else max(setting.low, -_MAX_NUMBER)
    high = _MAX_NUMBER if setting.high is None else min(setting.high, _MAX_NUMBER)
    return kind(low), kind(high)


def _range(setting: ConfigField) -> str:
    return f"{setting.low:g} to {setting.high:g}" if setting.low is not None and setting.high is not None else ""


def _as_sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")


def preview_of(images: Sequence[Any], cls: Any) -> dict[str, Any] | None:
    """Return the ``ui`` value that shows the newest images [batch, height, width, channels], or None without images."""
    shown: list[Any] = []
    for image in images[-_MAX_SHOWN:]:
        rgb = image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image
        shown += ui.PreviewImage(rgb, cls=cls).as_dict()["images"]
    return {"images": shown[-_MAX_SHOWN:]} if shown else None
