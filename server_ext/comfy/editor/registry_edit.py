"""Edits of this server's endpoints.yaml, one at a time, each of the current file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["RegistryEdit"]


class RegistryEdit:
    """An editor of one file, which may also be edited by hand. A file that cannot be read is an error and stays unchanged."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = asyncio.Lock()

    async def apply(
        self, change: Callable[[EndpointRegistry], None], check: Callable[[EndpointRegistry], Awaitable[None]] | None = None
    ) -> EndpointRegistry:
        """Read the registry, apply ``change``, await ``check``, and write it. Nothing is written if one of them raises.

        Raises:
            InvalidConfig, UnknownEndpoint: the current file is not valid. StorageFailed, and the errors of ``change`` and ``check``.
        """
        async with self._lock:
            registry = await asyncio.to_thread(self._read)
            change(registry)
            if check is not None:
                await check(registry)
            await asyncio.to_thread(registry.to_yaml, self._file)
            return registry

    def _read(self) -> EndpointRegistry:
        return EndpointRegistry.from_yaml(self._file) if self._file.exists() else EndpointRegistry()
