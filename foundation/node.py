"""The node: a block's place in a graph. It is immutable; `Graph.replace_block` and `Graph.set_trainable` put a new one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.ports import Port

__all__ = ["Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """Exactly one block under a ``node_id``; the edges are in the graph.

    ``defaults`` (values for unfed ports) and ``trainable`` belong to the node, since nodes may share one block. Without
    ``defaults`` the node has those of the block's config.
    """

    node_id: str
    block: AbstractBaseBlock
    trainable: bool = True
    defaults: Mapping[str, Any] = None  # type: ignore[assignment]  # None is replaced at once

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, str) or not self.node_id.strip():
            raise InvalidArgument(f"node_id must be a non-empty string, got {self.node_id!r}")
        if not isinstance(self.block, AbstractBaseBlock):
            raise InvalidArgument(f"node {self.node_id!r} needs a block, got {type(self.block).__name__}")
        given: Mapping[str, Any] | None = self.defaults
        defaults = (self.block.config.get("defaults") if given is None else given) or {}
        if not isinstance(defaults, Mapping):
            raise InvalidArgument(f"node {self.node_id!r}: 'defaults' must map port names to values, got {defaults!r}")
        object.__setattr__(self, "defaults", dict(defaults))

    @property
    def config(self) -> dict[str, Any]:
        """The block's config with this node's defaults."""
        config = {key: value for key, value in self.block.config.items() if key != "defaults"}
        return {**config, "defaults": dict(self.defaults)} if self.defaults else config

    @property
    def block_type(self) -> str:
        """The type of the node's block."""
        return self.block.block_type

    def get_input_ports(self) -> list[Port]:
        """The block's IN ports."""
        return self.block.get_input_ports()

    def get_output_ports(self) -> list[Port]:
        """The block's OUT ports."""
        return self.block.get_output_ports()

    def get_port(self, name: str) -> Port | None:
        """The block's port of that name, or None."""
        return self.block.get_port(name)
