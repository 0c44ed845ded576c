"""Editing this server's endpoints.yaml: one change after another, each of what the file says then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["RegistryEdit"]


class RegistryEdit:
    """The file may be edited by hand meanwhile; what cannot be read then is an error and stays as it is."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = asyncio.Lock()

    async def apply(
        self, change: Callable[[EndpointRegistry], None], check: Callable[[EndpointRegistry], Awaitable[None]] | None = None
    ) -> EndpointRegistry:
        """Read the registry, ``change`` it, wait for ``check``, write it; nothing is written if one of them raises.

        Raises:
            InvalidConfig, UnknownEndpoint: the file as it is now. StorageFailed, and what ``change`` and ``check`` raise.
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
