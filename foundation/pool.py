"""The reuse pool: one live block per model, whoever asks for it, at every level.

A block has an identity when its config names a model: ``checkpoint_ref`` (or ``checkpoint_path``), or ``model_id`` of an
API. Equal identities share one instance; entries are weak, so a block lives exactly as long as somebody uses it.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from yggdrasill.foundation.block import AbstractBaseBlock

__all__ = ["ReusePool", "reuse_identity"]


def reuse_identity(block_type: str, config: Mapping[str, Any]) -> str | None:
    """The identity of a block: its type and config without ``defaults``, or None if the config names no model."""
    if not any(config.get(key) for key in ("checkpoint_ref", "checkpoint_path", "model_id")):
        return None
    load = {key: value for key, value in config.items() if key != "defaults"}
    return json.dumps([block_type, load], sort_keys=True, default=repr)


class ReusePool:
    """Live blocks by identity; thread-safe.

    ``ReusePool.shared()`` is the process-wide pool used where none is given, a pool of your own limits the sharing to
    those you pass it to, and ``ReusePool.off()`` gives everybody a copy.
    """

    _shared: ClassVar[ReusePool | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *, share: bool = True) -> None:
        self._share = share
        self._live: weakref.WeakValueDictionary[str, AbstractBaseBlock] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    @classmethod
    def shared(cls) -> ReusePool:
        """The pool of this process."""
        with cls._shared_lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    @classmethod
    def off(cls) -> ReusePool:
        """A pool that never shares, for deliberate copies."""
        return cls(share=False)

    @property
    def shares(self) -> bool:
        """False for ``ReusePool.off()``."""
        return self._share

    def __len__(self) -> int:
        return len(self._live)

    def __bool__(self) -> bool:
        """True: ``pool or ReusePool.shared()`` must not take an empty pool for none."""
        return True

    def acquire(self, block_type: str, config: Mapping[str, Any], build: Callable[[], AbstractBaseBlock]) -> AbstractBaseBlock:
        """The live block of this identity, or a new one from ``build`` (called once, however many ask at a time)."""
        identity = reuse_identity(block_type, config) if self._share else None
        if identity is None:
            return build()
        with self._lock:
            block = self._live.get(identity)
            if block is None:
                block = self._live[identity] = build()
            return block
