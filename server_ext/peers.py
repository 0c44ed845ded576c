"""The endpoints that this one knows: endpoints.yaml and secrets.yaml in its data folder, and peers from the command line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from yggdrasill.errors import YggdrasillError
from yggdrasill.foundation.contract import Resolver
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.endpoint import Endpoint, is_below
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placing import RegistryProject
from yggdrasill.remote.registry_file import secrets_path
from yggdrasill.remote.retry import RetryPolicy

__all__ = ["KnownEndpoints"]

_LOG = logging.getLogger("yggdrasill.server")
_Stamp: TypeAlias = "tuple[int, int, int] | None"


class KnownEndpoints:
    """The registry file, read again when it changes.

    ``file`` may be missing. ``peers`` are urls from which artifacts may be fetched; nothing runs there. ``on_tokens`` receives all tokens
    that are read, so that they can be redacted. Calls to the endpoints use ``artifact_client`` and ``retry_policy``.
    A file that becomes invalid later is logged, and the previous registry stays in use. Clients of an earlier registry send the tokens of
    the newest one, as long as the endpoint's url is the same.

    Raises:
        InvalidConfig, UnknownEndpoint: the file is invalid when this object is created.
    """

    def __init__(
        self,
        file: Path,
        peers: Sequence[str],
        on_tokens: Callable[[list[str]], None],
        artifact_client: ArtifactClient | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        self._file, self._secrets = file, secrets_path(file)
        self._peers = list(peers)
        self._on_tokens = on_tokens
        self._artifact_client = artifact_client
        self._retry_policy = retry_policy
        self._lock = threading.Lock()
        self._stamp: tuple[_Stamp, _Stamp] = None, None
        self._registry = EndpointRegistry()
        self._read(self._read_stamps())

    def knows(self, url: str) -> bool:
        """Return whether ``url`` is at or below an endpoint in the file."""
        return any(is_below(url, endpoint.url) for endpoint in self._current().endpoints.values())

    def is_peer(self, url: str) -> bool:
        """Return whether artifacts may be fetched from ``url``: it is below an endpoint in the file or below one of ``peers``."""
        return self.knows(url) or any(is_below(url, peer) for peer in self._peers)

    def registry(self) -> EndpointRegistry:
        """Return the current registry."""
        return self._current()

    def resolver(self) -> Resolver | None:
        """Return a resolver that applies the registry's placements to a config, or None without endpoints."""
        registry = self._current()
        return RegistryProject(registry) if registry.endpoints else None

    def _current(self) -> EndpointRegistry:
        with self._lock:
            stamp = self._read_stamps()
            if stamp != self._stamp:
                try:
                    self._read(stamp)
                except YggdrasillError as error:
                    self._stamp = stamp
                    _LOG.warning("%s is invalid; the version read before stays in use: %s", self._file, error)
            return self._registry

    def _read_stamps(self) -> tuple[_Stamp, _Stamp]:
        return _file_stamp(self._file), _file_stamp(self._secrets)

    def _read(self, stamp: tuple[_Stamp, _Stamp]) -> None:
        if stamp[0] is None:
            registry = EndpointRegistry(artifact_client=self._artifact_client, retry_policy=self._retry_policy)
        else:
            registry = EndpointRegistry.from_yaml(self._file, artifact_client=self._artifact_client, retry_policy=self._retry_policy)
        self._on_tokens([endpoint.token for endpoint in registry.endpoints.values() if endpoint.token])
        registry.token_of = self._token_of
        self._registry, self._stamp = registry, stamp

    def _token_of(self, endpoint: Endpoint) -> str | None:
        """Return the present token of an endpoint. A token never goes to a url that it was not stored for."""
        present = self._current().endpoints.get(endpoint.name)
        return present.token if present is not None and present.url == endpoint.url else endpoint.token


def _file_stamp(file: Path) -> _Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
