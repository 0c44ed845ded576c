"""The other endpoints this one knows: its data folder's endpoints.yaml and secrets.yaml as they are now, and the command line's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from yggdrasill.errors import YggdrasillError
from yggdrasill.foundation.contract import Resolver
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.endpoint import is_below
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.registry_file import secrets_path
from yggdrasill.remote.resolvers import RegistryProject
from yggdrasill.remote.retry import RetryPolicy

__all__ = ["KnownEndpoints"]

_LOG = logging.getLogger("yggdrasill.server")
_Stamp: TypeAlias = "tuple[int, int] | None"


class KnownEndpoints:
    """``file`` need not exist; ``peers`` are urls of endpoints to fetch from, and no places to run at.

    ``learned`` is told every token that is read, so that it can be kept out of logs. A file that is broken at the start is an
    error; one that breaks later leaves what was known. Calls of other endpoints pack their values in ``artifact_client``, and try one that is lost
    with ``retry_policy``.

    Raises:
        InvalidConfig, UnknownEndpoint
    """

    def __init__(
        self,
        file: Path,
        peers: Sequence[str],
        learned: Callable[[list[str]], None],
        artifact_client: ArtifactClient | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        self._file = file
        self._peers = list(peers)
        self._learned = learned
        self._artifact_client = artifact_client
        self._retry_policy = retry_policy
        self._lock = threading.Lock()
        self._stamp: tuple[_Stamp, _Stamp] = None, None
        self._registry = EndpointRegistry()
        self._read(self._look())

    def knows(self, url: str) -> bool:
        """Whether ``url`` lies at or below an endpoint of the file."""
        return any(is_below(url, endpoint.url) for endpoint in self._current().endpoints.values())

    def is_peer(self, url: str) -> bool:
        """Whether artifacts may be fetched from ``url``: below an endpoint of the file or one of ``peers``."""
        return self.knows(url) or any(is_below(url, peer) for peer in self._peers)

    def registry(self) -> EndpointRegistry:
        """The endpoints of the file as it is now."""
        return self._current()

    def resolver(self) -> Resolver | None:
        """What places the parts of one config, None while no endpoint is known."""
        registry = self._current()
        return RegistryProject(registry) if registry.endpoints else None

    def _current(self) -> EndpointRegistry:
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self._read(stamp)
                except YggdrasillError as error:
                    self._stamp = stamp
                    _LOG.warning("%s is left as it was read before: %s", self._file, error)
            return self._registry

    def _look(self) -> tuple[_Stamp, _Stamp]:
        return _stamp_of(self._file), _stamp_of(secrets_path(self._file))

    def _read(self, stamp: tuple[_Stamp, _Stamp]) -> None:
        if stamp[0] is None:
            registry = EndpointRegistry(artifact_client=self._artifact_client, retry_policy=self._retry_policy)
        else:
            registry = EndpointRegistry.from_yaml(self._file, artifact_client=self._artifact_client, retry_policy=self._retry_policy)
        self._learned([endpoint.token for endpoint in registry.endpoints.values() if endpoint.token])
        self._registry, self._stamp = registry, stamp


def _stamp_of(file: Path) -> _Stamp:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size
