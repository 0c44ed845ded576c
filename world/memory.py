"""What stateful blocks remember between calls: taken before a pass and given back if the pass fails, and kept in storage.

Only blocks in this process; a stateful block behind an endpoint keeps its own memory there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.graph import Graph

if TYPE_CHECKING:
    from yggdrasill.world.world import World

__all__ = ["restore_blocks", "snapshot_blocks"]


def snapshot_blocks(world: World) -> dict[str, Any]:
    """The states of all stateful blocks by path (``stage/pipeline/graph/node``), as copies; a shared block stands once."""
    return {path: copy.deepcopy(block.state_dict()) for path, block in _stateful(world)}


def restore_blocks(world: World, memory: Mapping[str, Any]) -> None:
    """Give the stateful blocks back what `remember` took; a block it does not name keeps what it has."""
    for path, block in _stateful(world):
        if path in memory:
            block.load_state_dict(copy.deepcopy(memory[path]), strict=True)


def _stateful(world: World) -> Iterator[tuple[str, AbstractBaseBlock]]:
    seen: set[int] = set()
    for path, runnable in world.walk():
        if isinstance(runnable, Graph):
            for node_id, node in runnable.nodes.items():
                if node.block.stateful and id(node.block) not in seen:
                    seen.add(id(node.block))
                    yield "/".join((*path, node_id)), node.block
