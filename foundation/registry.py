"""Registry of block types. Built-in types come from a table, those of installed packages from an entry point group, on first use.

A config never names code: it names a type, and the type must be registered.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from yggdrasill.errors import InvalidArgument, InvalidConfig, UnknownBlockType, UnknownName, YggdrasillError, unknown_name
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.ports import ConfigField

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["ENTRY_POINT_GROUP", "BlockFactory", "BlockRegistry", "register_block"]

ENTRY_POINT_GROUP = "yggdrasill.blocks"
_BUILT_IN_TABLE = "yggdrasill.blocks"

BlockFactory = Callable[..., AbstractBaseBlock]
BlockClass = TypeVar("BlockClass", bound=BlockFactory)


class BlockRegistry:
    """Map from type names to block classes or factories, called as ``factory(block_id=..., config=...)``.

    A name that is not registered is searched among the built-in blocks and the entry points of the group
    ``yggdrasill.blocks``; ``BlockRegistry(built_ins=False)`` has only the types that were registered.
    """

    _global: ClassVar[BlockRegistry | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *, built_ins: bool = True) -> None:
        self._factories: dict[str, BlockFactory] = {}
        self._built_ins = built_ins

    @classmethod
    def global_registry(cls) -> BlockRegistry:
        """Return the registry that is used where no other is passed."""
        with cls._lock:
            if cls._global is None:
                cls._global = cls()
            return cls._global

    def register(self, block_type: str, factory: BlockFactory) -> None:
        """Register a class or factory; the same name again replaces it.

        Raises:
            InvalidArgument: a blank name, or a factory that is not callable.
        """
        if not isinstance(block_type, str) or not block_type.strip():
            raise InvalidArgument(f"block type must be a non-empty string, got {block_type!r}")
        if not callable(factory):
            raise InvalidArgument(f"block type {block_type!r} needs a class or factory, got {factory!r}")
        self._factories[block_type] = factory

    def get(self, block_type: str) -> BlockFactory:
        """Return the factory of a type.

        Raises:
            UnknownBlockType: (a KeyError) the type is not registered; the message names the nearest types.
        """
        known = self._factories.get(block_type)
        if known is not None:
            return known
        found = self._find_installed(block_type) if self._built_ins else None
        if found is None:
            raise unknown_name("block type", block_type, self.types(), "Register it with register_block(type).", UnknownBlockType)
        self._factories[block_type] = found
        return found

    def settings(self, block_type: str) -> tuple[ConfigField, ...] | None:
        """Return the config fields that a type declares; None if it declares none, or if its package would have to be imported.

        Raises:
            UnknownBlockType
        """
        if self._built_ins and block_type in _installed() and block_type not in _built_in_table():
            return None
        declared: tuple[ConfigField, ...] | None = getattr(self.get(block_type), "settings", None)
        return declared

    def __contains__(self, block_type: object) -> bool:
        return block_type in self._factories or (self._built_ins and (block_type in _built_in_table() or block_type in _installed()))

    def types(self) -> list[str]:
        """Return the names of all types, sorted."""
        names = set(self._factories)
        if self._built_ins:
            names |= {*_built_in_table(), *_installed()}
        return sorted(names)

    def build(self, config: Mapping[str, Any], factory: BlockFactory | None = None) -> AbstractBaseBlock:
        """Build a block from ``{"block_type" or "type", "block_id"?, ...its config}``, with ``factory`` if one is given.

        Raises:
            UnknownName: neither ``block_type`` nor ``type`` is present.
            UnknownBlockType: the type is not registered.
            InvalidConfig: the class of the block raised an error for this config.
        """
        rest = dict(config)
        block_type = rest.pop("block_type" if rest.get("block_type") is not None else "type", None)
        if block_type is None:
            raise UnknownName(f"a block config needs 'block_type' (or 'type'); this one has {sorted(config)}", name="block_type")
        block_id = rest.pop("block_id", None)
        factory = self.get(block_type) if factory is None else factory
        try:
            block = factory(block_id=block_id, config=rest)
        except YggdrasillError:
            raise
        except Exception as error:
            raise InvalidConfig(
                f"block type {block_type!r} cannot be built from config {sorted(rest)}: {type(error).__name__}: {error}",
                block_type=block_type,
            ) from error
        if not isinstance(block, AbstractBaseBlock):
            raise InvalidArgument(f"the factory of block type {block_type!r} returned {type(block).__name__}, not a block")
        if block.block_type != block_type:
            block.block_type = block_type
        return block

    @staticmethod
    def _find_installed(block_type: str) -> BlockFactory | None:
        target = _built_in_table().get(block_type)
        if target is not None:
            module, _, name = target.partition(":")
            return cast("BlockFactory", getattr(importlib.import_module(module), name))
        point = _installed().get(block_type)
        if point is None:
            return None
        try:
            return cast("BlockFactory", point.load())
        except (ImportError, AttributeError) as error:
            raise UnknownBlockType(
                f"block type {block_type!r} comes from the entry point {point.value!r}, which cannot be loaded: {error}. "
                "Repair or remove the package that declares it.",
                name=block_type,
            ) from error


@lru_cache(maxsize=1)
def _built_in_table() -> Mapping[str, str]:
    return cast("Mapping[str, str]", importlib.import_module(_BUILT_IN_TABLE).BUILT_IN)


@lru_cache(maxsize=1)
def _installed() -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def register_block(block_type: str, registry: BlockRegistry | None = None) -> Callable[[BlockClass], BlockClass]:
    """Return a class decorator that registers a block under ``block_type``, by default in the global registry."""

    def decorate(factory: BlockClass) -> BlockClass:
        (registry or BlockRegistry.global_registry()).register(block_type, factory)
        return factory

    return decorate
