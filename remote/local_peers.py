"""Local peers: endpoints on this machine whose artifact folder a caller reads and writes directly, so no tensor crosses a socket."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from yggdrasill.errors import EndpointUnreachable, StorageFailed, YggdrasillError
from yggdrasill.values.stores.folder import FILE_CHARGE, read_store_id
from yggdrasill.values.stores.shared import SharedFolderStore

__all__ = ["MIN_FOLDER_BYTES", "LocalPeer", "is_this_machine"]

MIN_FOLDER_BYTES = 1 << 20
"""Artifacts larger than this go through the folder; smaller ones are sent faster than a file is written or mapped."""

#: The open folders of this process, each once.
_open_stores: WeakValueDictionary[Path, SharedFolderStore] = WeakValueDictionary()
_open_lock = threading.Lock()


class LocalPeer:
    """The artifact folder of the endpoint at ``host``, if that is this machine, the endpoint shares it, and it belongs to this user.

    ``request_folder`` is `EndpointClient.artifact_folder`. The reported path is trusted only if the folder has the reported store id:
    in a container or through a tunnel the same path may be another folder. Use on one event loop only.
    """

    def __init__(self, host: str, request_folder: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._host, self._request_folder = host, request_folder
        self._lock = asyncio.Lock()
        self._resolved = False
        self._store: SharedFolderStore | None = None

    @property
    def opened(self) -> SharedFolderStore | None:
        """Return the store that `store` opened, or None."""
        return self._store

    async def store(self) -> SharedFolderStore | None:
        """Return the store on that folder, or None if artifacts must be sent. The endpoint is asked once.

        Raises:
            EndpointUnreachable: it does not answer.
        """
        if not self._resolved:
            async with self._lock:
                if not self._resolved:
                    self._store = await self._find()
                    self._resolved = True
        return self._store

    def disable(self) -> None:
        """Send all further artifacts instead of using the folder."""
        self._resolved, self._store = True, None

    async def _find(self) -> SharedFolderStore | None:
        if not await asyncio.to_thread(is_this_machine, self._host):
            return None
        try:
            answer = await self._request_folder()
        except EndpointUnreachable:
            raise
        except YggdrasillError:
            return None
        return await asyncio.to_thread(_open_folder, answer)


def is_this_machine(host: str) -> bool:
    """Return whether a host name or address belongs to this machine: whether a socket can be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False


def _open_folder(answer: Mapping[str, Any]) -> SharedFolderStore | None:
    folder, store_id, quota = (answer.get(key) for key in ("folder", "store_id", "quota_bytes"))
    if not isinstance(folder, str) or not isinstance(store_id, str):
        return None
    path = Path(folder)
    try:
        if not path.is_absolute() or read_store_id(path) != store_id or not _is_own(path):
            return None
        with _open_lock:
            store = _open_stores.get(path)
            if store is None or store.store_id != store_id:
                bound = quota if isinstance(quota, int) else None
                store = _open_stores[path] = SharedFolderStore(path, quota_bytes=bound, min_charge=FILE_CHARGE)
    except (OSError, StorageFailed):
        return None
    return store


def _is_own(folder: Path) -> bool:
    """Return whether files created in the folder belong to the same user, who can read them."""
    return not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()
