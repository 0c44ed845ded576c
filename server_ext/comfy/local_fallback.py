"""Local fallback of a call: the same workflow that the endpoint would have run, executed locally if the policy says ``local``.

After a call the workflow's config is fetched once and cached. The cached hash equals that of the contract, so the cached workflow is the one
that was served; it is dropped as soon as the endpoint reports another hash for the same graph id. Only workflows are cached: graphs of
blocks may have weights that are not part of their config.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from yggdrasill.errors import BuildMismatch, EndpointUnreachable, QueueFull, YggdrasillError, format_options
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.contract import RemoteContract, other_build
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.workflow_cache import CachedWorkflow, WorkflowCache
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.deployments import Deployments

__all__ = ["LocalFallback", "LocalFallbacks"]

_KIND = "comfy"
_NotTaken: TypeAlias = "EndpointUnreachable | QueueFull"


@dataclass(frozen=True)
class LocalFallback:
    """A workflow that this ComfyUI serves or has cached. ``reason`` explains to the user why it runs locally and which workflow it is."""

    deployment: Deployment
    reason: str

    @property
    def contract(self) -> RemoteContract:
        """Return the contract of the workflow."""
        return RemoteContract.of(self.deployment.contract, "this ComfyUI")

    @property
    def graph(self) -> ComfyGraph:
        """Return the workflow."""
        graph: ComfyGraph = self.deployment.runnable
        return graph


class LocalFallbacks:
    """Finds local fallbacks in the ``cache`` and among the ``deployments`` of this endpoint. Thread-safe."""

    def __init__(self, cache: WorkflowCache, deployments: Deployments) -> None:
        self._cache = cache
        self._deployments = deployments
        self._lock = threading.Lock()
        self._served_hashes: dict[tuple[str, str], str] = {}
        self._silent: set[str] = set()

    # -- after an endpoint answered ----------------------------------------------------------------------------------

    def is_recorded(self, endpoint: str, graph_id: str, graph_hash: str) -> bool:
        """Return whether `record_hash` would change nothing. Does not wait for another thread."""
        return endpoint not in self._silent and self._served_hashes.get((endpoint, graph_id)) == graph_hash

    def record_hash(self, endpoint: str, graph_id: str, graph_hash: str) -> None:
        """Record the hash that an endpoint serves under a graph id, and drop a cached workflow with another hash."""
        with self._lock:
            self._silent.discard(endpoint)
            if self._served_hashes.get((endpoint, graph_id)) == graph_hash:
                return
            self._served_hashes[endpoint, graph_id] = graph_hash
            copy = self._cache.read(endpoint, graph_id)
            if copy is not None and copy.hash != graph_hash:
                self._cache.drop(endpoint, graph_id)

    def cache_workflow(self, client: EndpointClient, contract: RemoteContract) -> None:
        """Cache the workflow that an endpoint serves, unless it is cached already. A failure is written to the log."""
        self.record_hash(client.name, contract.graph_id, contract.hash)
        if contract.kind != _KIND:
            return
        with compat.shielded(f"graph {contract.graph_id!r} could not be cached for the local fallback of endpoint {client.name!r}"):
            with self._lock:
                cached = self._cache.read(client.name, contract.graph_id)
            if cached is None:
                self._fetch(client, contract)

    def _fetch(self, client: EndpointClient, contract: RemoteContract) -> None:
        config = loop_thread().run(client.graph(contract.graph_id)).get("config")
        torch = (client.facts or {}).get("torch")
        copy = CachedWorkflow(client.name, contract.graph_id, contract.hash, config if isinstance(config, dict) else {}, torch)
        if copy.is_sound:  # else the graph was just replaced, and the next call caches the new one
            with self._lock:
                self._cache.write(copy)

    # -- after no endpoint answered ----------------------------------------------------------------------------------

    def are_silent(self, endpoints: Sequence[str]) -> bool:
        """Return whether a call found none of ``endpoints`` reachable, and none of them has answered since."""
        with self._lock:
            return self._silent.issuperset(endpoints)

    def find(
        self, endpoints: Sequence[str], graph_id: str, saved_hash: str | None, error: _NotTaken, *, strict_build: bool = False
    ) -> LocalFallback:
        """Return the workflow that one of ``endpoints`` would have run. None of them accepted the call, which failed with ``error``.

        ``saved_hash`` is the contract hash that the caller stored, if any.

        Raises:
            ``error`` with the reason why nothing runs locally. BuildMismatch: ``strict_build`` is set, and the endpoint has another torch build.
        """
        cause = f"{format_options(endpoints)} {'has a full queue' if isinstance(error, QueueFull) else 'cannot be reached'}"
        with self._lock:
            if isinstance(error, EndpointUnreachable):
                self._silent.update(endpoints)
            found = [copy for name in endpoints if (copy := self._cache.read(name, graph_id)) is not None]
            expected_hash = next(
                (self._served_hashes[name, graph_id] for name in endpoints if (name, graph_id) in self._served_hashes), saved_hash
            )
        if found:
            return self._from_copy(max(found, key=lambda copy: copy.kept), cause, error, strict_build)
        deployed = next((entry for entry in self._deployments.summaries() if entry["graph_id"] == graph_id), None)
        if deployed is not None and deployed["kind"] == _KIND and deployed["hash"] == expected_hash:
            deployment = self._build(lambda: self._deployments.get(graph_id), error)
            return LocalFallback(deployment, f"{cause}, so {_name(deployment)}, which this ComfyUI serves itself, ran locally")
        raise _extended(error, _no_fallback_reason(graph_id, expected_hash, deployed))

    def _from_copy(self, copy: CachedWorkflow, cause: str, error: _NotTaken, strict_build: bool) -> LocalFallback:
        other = other_build(copy.torch)
        if other and strict_build:
            raise BuildMismatch(f"{cause}, and this torch build differs from that of {copy.endpoint!r}: {other}", endpoint=copy.endpoint)
        deployment = self._build(lambda: self._deployments.build_once(copy.graph_id, _KIND, copy.config), error)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(copy.kept))
        reason = f"{cause}, so {_name(deployment)} ran locally from the copy cached on {when}"
        return LocalFallback(
            deployment, f"{reason}; the last bits may differ because the torch build differs: {other}" if other else reason
        )

    @staticmethod
    def _build(build: Callable[[], Deployment], error: _NotTaken) -> Deployment:
        try:
            return build()
        except YggdrasillError as problem:
            raise _extended(error, f"and the workflow cannot run locally: {problem.message}") from problem


def _name(deployment: Deployment) -> str:
    return f"graph {deployment.graph_id!r} (hash {deployment.hash[:12]})"


def _no_fallback_reason(graph_id: str, expected_hash: str | None, deployed: Mapping[str, Any] | None) -> str:
    if deployed is not None and deployed["kind"] == _KIND:
        other = "differs" if expected_hash else "may differ, because it is not known which graph that endpoint serves"
        return f"the graph {graph_id!r} that this ComfyUI serves itself {other}, so it does not run locally"
    return f"and workflow {graph_id!r} is not cached on this ComfyUI; it is cached after the first call with a local fallback"


def _extended(error: _NotTaken, more: str) -> YggdrasillError:
    return type(error)(f"{error.message.rstrip('.')}; {more}", **error.details)
