"""Loading states into blocks: what goes where is settled and checked for the whole container before any block changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import CheckpointMismatch, YggdrasillError
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.checkpoint import check_block_state
from yggdrasill.foundation.pool import reuse_identity

__all__ = ["StateLoader"]


class StateLoader:
    """One load: `add` every block with the state meant for it, then `apply`. Each block is loaded once.

    A block that got no state takes the one given to another block of the same reuse identity, since a shared block is
    written once.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._blocks: dict[int, tuple[AbstractBaseBlock, str | None, str]] = {}
        self._states: dict[int, Mapping[str, Any]] = {}
        self._by_identity: dict[str, Mapping[str, Any]] = {}

    def add(self, block: AbstractBaseBlock, state: Any, where: str) -> None:
        """Note a block and the state meant for it (None if there is none); ``where`` names its place in errors.

        Raises:
            CheckpointMismatch: the state is not one of this block, or one block got two different states.
        """
        identity = reuse_identity(block.block_type, block.config)
        self._blocks.setdefault(id(block), (block, identity, where))
        if state is None:
            return
        check_block_state(block, state, where, strict=self._strict)
        known = self._states.setdefault(id(block), state)
        if known is not state and not _equal(known, state):
            raise CheckpointMismatch(
                f"{where}: its state differs from that of {self._blocks[id(block)][2]}, but both share one block; "
                "build with pool=ReusePool.off() to keep them apart"
            )
        if identity is not None:
            self._by_identity.setdefault(identity, state)

    def apply(self) -> None:
        """Load every block that has a state.

        Raises:
            CheckpointMismatch: a block refuses its state.
        """
        for key, (block, identity, where) in self._blocks.items():
            state = self._states.get(key, self._by_identity.get(identity) if identity is not None else None)
            if state is None:
                continue
            try:
                block.load_state_dict(state, self._strict)
            except YggdrasillError:
                raise
            except Exception as error:
                raise CheckpointMismatch(
                    f"{where} ({block.block_type}) refuses its state: {type(error).__name__}: {error}; it belongs to another block"
                ) from error


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    from yggdrasill.values import dumps

    return bytes(dumps(dict(first))) == bytes(dumps(dict(second)))
