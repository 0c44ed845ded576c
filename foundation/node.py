"""The node: form without data. It gives one block a place and a name in a graph."""

from __future__ import annotations

from dataclasses import dataclass

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.ports import Port

__all__ = ["Node"]


@dataclass(slots=True)
class Node:
    """Exactly one block under a ``node_id``; the edges live in the graph."""

    node_id: str
    block: AbstractBaseBlock
    trainable: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, str) or not self.node_id.strip():
            raise InvalidArgument(f"node_id must be a non-empty string, got {self.node_id!r}")
        if not isinstance(self.block, AbstractBaseBlock):
            raise InvalidArgument(f"node {self.node_id!r} needs a block, got {type(self.block).__name__}")

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
