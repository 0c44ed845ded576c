"""The reuse pool: one live block per model, across graphs, pipelines, stages and worlds.

A block has an `Identity` when its config names a model: ``checkpoint_ref`` (or ``checkpoint_path``), or ``model_id`` of an
API. Equal identities share one instance. Entries are weak: a block lives as long as a graph or the caller holds it.
Blocks that keep state between calls are never shared, since their memory belongs to the graph that runs them.
"""

from __future__ import annotations

import json
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation.block import AbstractBaseBlock

__all__ = ["Identity", "PoolEntry", "ReusePool", "absolute_references", "canonical_reference", "identify", "names_model"]

_REFERENCES = ("checkpoint_ref", "checkpoint_path")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Identity:
    """The properties that make two blocks the same model.

    ``factory`` is the registered class or callable, so two registries, or a type registered again, never share.
    ``reference`` is the canonical checkpoint or model id, ``configuration`` the rest of the config as JSON with sorted
    keys. ``state`` is the digest of the weights loaded over those of the reference, empty if none were.
    """

    factory: Callable[..., Any] = field(hash=False)
    block_type: str
    reference: str
    configuration: str
    state: str = ""


def names_model(config: Mapping[str, Any]) -> bool:
    """Whether a block config names a model, whose weights come from a reference and not from the graph."""
    return any(config.get(key) for key in (*_REFERENCES, "model_id"))


def identify(factory: Callable[..., Any], block_type: str, config: Mapping[str, Any]) -> Identity | None:
    """Return the identity of a block of this type and config, None if the config names no model or the class is stateful.

    Node defaults are left out. Two spellings of one path, and ``checkpoint_ref`` or ``checkpoint_path``, are one reference.

    Raises:
        InvalidConfig: the config has a value without a JSON form, or a reference that is neither text nor a path.
    """
    if not names_model(config) or getattr(factory, "stateful", False):
        return None
    rest = {key: value for key, value in config.items() if key != "defaults"}
    reference = ""
    for key in _REFERENCES:
        given = rest.get(key)
        if not given:
            rest.pop(key, None)
            continue
        found = _reference(factory, given, api=config.get("backend") == "api")
        if "://" not in found and Path(found).is_absolute():
            found = os.path.realpath(found)
        if not reference or reference == found:
            reference = found
            del rest[key]
    where = f"block type {block_type!r}"
    _check_json(rest, where, ())
    try:
        configuration = json.dumps(rest, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where}: a config that names a model holds JSON values only: {error}") from None
    return Identity(factory, block_type, reference, configuration)


def absolute_references(factory: Callable[..., Any], config: Mapping[str, Any], base: str | Path | None = None) -> dict[str, Any]:
    """Return ``config`` with its checkpoint references made independent of the working directory.

    A relative path is resolved against ``base`` (default: the working directory).

    Raises:
        InvalidConfig: a reference that is neither text nor a path.
    """
    api = config.get("backend") == "api"
    changed = {key: _reference(factory, config[key], base, api=api) for key in _REFERENCES if config.get(key)}
    return {**config, **changed}


def canonical_reference(reference: str, kinds: Iterable[str], base: str | Path | None = None) -> str:
    """Return a reference as an absolute path, or unchanged if it is a URL or a hub id.

    ``kinds`` are those the block class loads (`AbstractBaseBlock.references`). A text without a file at its place is a hub
    id only for a class that loads hub ids.
    """
    if "://" in reference:
        return reference
    path = (Path() if base is None else Path(base)).absolute() / reference
    if "hub" in kinds and not Path(reference).is_absolute() and not path.exists() and _HUB_ID.fullmatch(reference):
        return reference
    return str(path)


def _reference(factory: Callable[..., Any], given: Any, base: str | Path | None = None, *, api: bool) -> str:
    if not isinstance(given, (str, os.PathLike)):
        raise InvalidConfig(f"a checkpoint reference must be a path, a URL or a model id, got {given!r}")
    text = os.fspath(given)
    if not isinstance(text, str):
        raise InvalidConfig(f"a checkpoint reference must be text, got {given!r}")
    # the reference of an API is a name that its block reads
    return text if api else canonical_reference(text, getattr(factory, "references", AbstractBaseBlock.references), base)


def _check_json(value: Any, where: str, path: tuple[str, ...]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidConfig(f"{where}: a config that names a model has text keys only, got {key!r} in {'.'.join(path) or 'config'}")
            _check_json(item, where, (*path, key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, where, path)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise InvalidConfig(
            f"{where}: a config that names a model holds JSON values only, got {type(value).__name__} in {'.'.join(path)!r}; "
            "keep tensors and objects in the checkpoint, or pass the block itself to add_node"
        )


class PoolEntry:
    """The pool's record of a shared block: its identity, how to build another one, and the graphs that use it."""

    def __init__(self, pool: ReusePool, identity: Identity, build: Callable[[], AbstractBaseBlock]) -> None:
        self.pool = pool
        self.identity = identity
        self.build = build
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Digest of the block's state right after a load: a block may cast or reorder what it is given.
        self.content = ""


class _Building:
    """A block that one thread builds while others wait for it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.done = threading.Event()
        self.block: AbstractBaseBlock | None = None


class ReusePool:
    """Live blocks by identity; thread-safe. Different identities are built at the same time.

    ``ReusePool.shared()`` is the process-wide pool and the default; a new pool limits sharing to the graphs it is passed to;
    ``ReusePool.off()`` never shares.
    """

    _shared: ClassVar[ReusePool | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *, share: bool = True) -> None:
        self._share = share
        self._live: weakref.WeakValueDictionary[Identity, AbstractBaseBlock] = weakref.WeakValueDictionary()
        self._building: dict[Identity, _Building] = {}
        # held for look-ups only, never while a block is built
        self._lock = threading.RLock()

    @classmethod
    def shared(cls) -> ReusePool:
        """Return the pool of this process."""
        with cls._shared_lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    @classmethod
    def off(cls) -> ReusePool:
        """Return a pool that never shares, for deliberate copies."""
        return cls(share=False)

    @property
    def shares(self) -> bool:
        """False for ``ReusePool.off()``."""
        return self._share

    def __len__(self) -> int:
        return len(self._live)

    def __bool__(self) -> bool:
        """Always true, so that ``pool or ReusePool.shared()`` keeps an empty pool."""
        return True

    def acquire(self, identity: Identity | None, build: Callable[[], AbstractBaseBlock], user: Any = None) -> AbstractBaseBlock:
        """Return the live block of ``identity``, or build one; concurrent calls build it once.

        ``user`` is the graph that will hold the block. Without an identity, with a pool that is off, and for a stateful
        block, every call builds a block of its own. If a build fails, its error is raised and the next call builds again.

        Raises:
            InvalidConfig: a block whose constructor acquires its own identity. Otherwise what ``build`` raises.
        """
        if identity is None or not self._share:
            return build()
        return self._acquire(identity, build, build, user)

    def find_variant(self, entry: PoolEntry, digest: str) -> AbstractBaseBlock | None:
        """Return the live block of an entry's model with the weights of ``digest``, None if no graph has it."""
        with self._lock:
            return self._live.get(replace(entry.identity, state=digest))

    def acquire_variant(
        self,
        entry: PoolEntry,
        digest: str,
        load: Callable[[AbstractBaseBlock], str],
        fits: Callable[[AbstractBaseBlock], bool],
        users: Iterable[Any],
    ) -> AbstractBaseBlock:
        """Return the block of an entry's model with other weights than the entry's: a live one, or a new one.

        ``digest`` identifies the weights, ``load`` puts them into a new block and returns the digest of its state, and
        ``fits`` checks that a live block still has them.

        Raises:
            What building or loading raises.
        """
        identity = replace(entry.identity, state=digest)
        contents: list[str] = []

        def build() -> AbstractBaseBlock:
            block = entry.build()
            contents.append(load(block))
            return block

        users = list(users)
        block = self._acquire(identity, build, entry.build, *users)
        if not contents and not fits(block):
            with self._lock:
                if self._live.get(identity) is block:
                    del self._live[identity]
            block = self._acquire(identity, build, entry.build, *users)
        if contents:
            block._pool_entry.content = contents[0]
        return block

    def claim(self, block: AbstractBaseBlock, users: Iterable[Any]) -> bool:
        """Take a block out of the pool if all its users are among ``users``, so that its weights may be changed in place."""
        entry: PoolEntry = block._pool_entry
        with self._lock:
            if not set(entry.users) <= set(users):
                return False
            if self._live.get(entry.identity) is block:
                del self._live[entry.identity]
            return True

    def restore(self, block: AbstractBaseBlock, digest: str, content: str) -> None:
        """Put a claimed block back under the digest of its new weights; ``content`` is the digest of its state since."""
        entry: PoolEntry = block._pool_entry
        with self._lock:
            entry.identity, entry.content = replace(entry.identity, state=digest), content
            self._live[entry.identity] = block

    def _acquire(
        self, identity: Identity, build: Callable[[], AbstractBaseBlock], original: Callable[[], AbstractBaseBlock], *users: Any
    ) -> AbstractBaseBlock:
        while True:
            with self._lock:
                block = self._live.get(identity)
                if block is not None:
                    return self._used(block, users)
                pending = self._building.get(identity)
                if pending is None:
                    mine = self._building[identity] = _Building()
                    break
            if pending.thread == threading.get_ident():
                raise InvalidConfig(f"block type {identity.block_type!r} acquires itself while it is built: {identity.reference!r}")
            # ``pending`` keeps the block alive until it is looked up again; by then its only user may have changed it
            pending.done.wait()
        try:
            block = build()
            with self._lock:
                if not block.stateful:
                    block._pool_entry = PoolEntry(self, identity, original)
                    self._live[identity] = block
                    mine.block = self._used(block, users)
            return block
        finally:
            with self._lock:
                del self._building[identity]
            mine.done.set()

    @staticmethod
    def use(block: AbstractBaseBlock, user: Any) -> None:
        """Note that ``user`` holds a block; without effect on blocks that are not shared."""
        entry: PoolEntry | None = block._pool_entry
        if entry is not None:
            with entry.pool._lock:
                entry.users.add(user)

    @staticmethod
    def release(block: AbstractBaseBlock, user: Any) -> None:
        """Note that ``user`` holds a block no longer."""
        entry: PoolEntry | None = block._pool_entry
        if entry is not None:
            with entry.pool._lock:
                entry.users.discard(user)

    @staticmethod
    def _used(block: AbstractBaseBlock, users: Iterable[Any]) -> AbstractBaseBlock:
        entry: PoolEntry = block._pool_entry
        entry.users.update(user for user in users if user is not None)
        return block
