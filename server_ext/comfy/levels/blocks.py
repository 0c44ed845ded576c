"""The blocks that can be added here, and what they declare of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.foundation import BlockRegistry, Setting
from yggdrasill.foundation.config import parse_document
from yggdrasill.server_ext.comfy.levels.widget_values import REST, given_values

__all__ = ["block_settings", "chosen_block"]


def block_settings() -> dict[str, tuple[Setting, ...] | None]:
    """Every block type with its settings; None for one that does not tell, or whose package nobody has asked for yet."""
    registry = BlockRegistry.global_registry()
    return {name: registry.settings(name) for name in registry.types()}


def chosen_block(block: Mapping[str, Any] | None, asked: str, defaults: str) -> tuple[str, dict[str, Any]]:
    """The type and config that the widgets of Add Block say; ``asked`` is the type in the prompt, which may not exist here.

    Raises:
        UnknownBlockType: it does not. InvalidArgument, InvalidConfig
    """
    name = asked if block is None else str(block.get("block", asked))
    registry = BlockRegistry.global_registry()
    registry.get(name)
    given = {key: value for key, value in (block or {}).items() if key != "block" and value is not None}
    config = given_values(None if REST in given else registry.settings(name), given, f"block {name!r}")
    if defaults.strip():
        config["defaults"] = parse_document(defaults, "the defaults", yaml=True)
    return name, config
