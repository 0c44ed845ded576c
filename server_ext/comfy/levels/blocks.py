"""The block types that Add Block offers, and their declared settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.foundation import BlockRegistry, ConfigField
from yggdrasill.foundation.config import parse_document
from yggdrasill.server_ext.comfy.levels.widget_values import REST, config_from_widgets

__all__ = ["block_settings", "chosen_block"]


def block_settings() -> dict[str, tuple[ConfigField, ...] | None]:
    """Return every block type with its settings; None if it declares none, or belongs to a third-party package that is not imported yet."""
    registry = BlockRegistry.global_registry()
    return {name: registry.settings(name) for name in registry.types()}


def chosen_block(block: Mapping[str, Any] | None, block_type: str, defaults: str) -> tuple[str, dict[str, Any]]:
    """Return the block type and config that the widgets of Add Block define.

    ``block_type`` is the type in the prompt, which this server may not have.

    Raises:
        UnknownBlockType: this server does not have the type. InvalidArgument, InvalidConfig
    """
    name = block_type if block is None else str(block.get("block", block_type))
    registry = BlockRegistry.global_registry()
    registry.get(name)
    widgets = {key: value for key, value in (block or {}).items() if key != "block" and value is not None}
    config = config_from_widgets(None if REST in widgets else registry.settings(name), widgets, f"block {name!r}")
    if defaults.strip():
        config["defaults"] = parse_document(defaults, "the defaults", yaml=True)
    return name, config
