"""What runs here if no endpoint takes a call and the policy says ``local``: the very workflow that would have run there, or nothing.

After a call the workflow's config is fetched, once, and kept. Its hash is that of the contract, so what is kept is what was served; as
soon as this ComfyUI hears that the endpoint serves something else under that name, the copy is dropped. Only workflows are kept: graphs
of blocks may have weights that are no part of their config.
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
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.workflow_cache import CachedWorkflow, WorkflowCache
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.deployments import Deployments

__all__ = ["LocalFallback", "LocalFallbacks"]

_KIND = "comfy"
_NotTaken: TypeAlias = "EndpointUnreachable | QueueFull"


@dataclass(frozen=True)
class LocalFallback:
    """A workflow that is served, or was kept, here; ``told`` says to a person why it runs here and which one it is."""

    deployment: Deployment
    reason: str

    @property
    def contract(self) -> RemoteContract:
        """Its ports."""
        return RemoteContract.of(self.deployment.contract, "here")

    @property
    def graph(self) -> ComfyGraph:
        """The workflow itself."""
        graph: ComfyGraph = self.deployment.runnable
        return graph


class LocalFallbacks:
    """``copies`` of what other endpoints serve, and the ``deployments`` of this one. Safe to use from several threads."""

    def __init__(self, cache: WorkflowCache, deployments: Deployments) -> None:
        self._cache = cache
        self._deployments = deployments
        self._lock = threading.Lock()
        self._served_hashes: dict[tuple[str, str], str] = {}
        self._silent: set[str] = set()

    # -- while endpoints answer ---------------------------------------------------------------------------------

    def record_hash(self, endpoint: str, graph_id: str, graph_hash: str) -> None:
        """An endpoint said what it serves under a name; a copy of anything else is dropped."""
        with self._lock:
            self._silent.discard(endpoint)
            if self._served_hashes.get((endpoint, graph_id)) == graph_hash:
                return
            self._served_hashes[endpoint, graph_id] = graph_hash
            copy = self._cache.read(endpoint, graph_id)
            if copy is not None and copy.hash != graph_hash:
                self._cache.drop(endpoint, graph_id)

    def cache_workflow(self, client: EndpointClient, contract: RemoteContract) -> None:
        """Keep the workflow that an endpoint serves, unless it is kept; what goes wrong is one line in the log."""
        self.record_hash(client.name, contract.graph_id, contract.hash)
        if contract.kind != _KIND:
            return
        with host_api.shielded(f"graph {contract.graph_id!r} could not be kept for when endpoint {client.name!r} is away"):
            with self._lock:
                kept = self._cache.read(client.name, contract.graph_id)
            if kept is None:
                self._fetch(client, contract)

    def _fetch(self, client: EndpointClient, contract: RemoteContract) -> None:
        config = loop_thread().run(client.graph(contract.graph_id)).get("config")
        torch = (client.facts or {}).get("torch")
        copy = CachedWorkflow(client.name, contract.graph_id, contract.hash, config if isinstance(config, dict) else {}, torch)
        if copy.is_sound:  # else it was replaced just now, and the next call keeps what is there then
            with self._lock:
                self._cache.write(copy)

    # -- when none does -----------------------------------------------------------------------------------------

    def are_silent(self, endpoints: Sequence[str]) -> bool:
        """Whether a call waited for ``endpoints`` in vain, and none of them was heard of since."""
        with self._lock:
            return self._silent.issuperset(endpoints)

    def find(
        self, endpoints: Sequence[str], graph_id: str, saved_hash: str | None, error: _NotTaken, *, strict_build: bool = False
    ) -> LocalFallback:
        """The workflow that would have run at one of ``endpoints``, none of which took the call: ``error``. ``saved_hash`` is that of the
        contract which the caller knows, if any.

        Raises:
            ``error``, with the reason why nothing runs here added to it. BuildMismatch: ``strict_build``, and another torch build was there.
        """
        why = f"{format_options(endpoints)} {'takes no more jobs' if isinstance(error, QueueFull) else 'cannot be reached'}"
        with self._lock:
            if isinstance(error, EndpointUnreachable):
                self._silent.update(endpoints)
            found = [copy for name in endpoints if (copy := self._cache.read(name, graph_id)) is not None]
            seen = next((self._served_hashes[name, graph_id] for name in endpoints if (name, graph_id) in self._served_hashes), saved_hash)
        if found:
            return self._from_copy(max(found, key=lambda copy: copy.kept), why, error, strict_build)
        own = next((entry for entry in self._deployments.summaries() if entry["graph_id"] == graph_id), None)
        if own is not None and own["kind"] == _KIND and own["hash"] == seen:
            deployment = self._built(lambda: self._deployments.get(graph_id), error)
            return LocalFallback(deployment, f"{why}, so {_name(deployment)}, which this ComfyUI serves itself, ran here")
        raise _with(error, _nothing(graph_id, seen, own))

    def _from_copy(self, copy: CachedWorkflow, why: str, error: _NotTaken, strict_build: bool) -> LocalFallback:
        other = other_build(copy.torch)
        if other and strict_build:
            raise BuildMismatch(f"{why}, and this is another torch build than {copy.endpoint!r} has: {other}", endpoint=copy.endpoint)
        deployment = self._built(lambda: self._deployments.passing(copy.graph_id, _KIND, copy.config), error)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(copy.kept))
        reason = f"{why}, so {_name(deployment)} ran here, from the copy that was kept on {when}"
        return LocalFallback(deployment, f"{reason}; the last bits may differ, for the torch build does: {other}" if other else reason)

    @staticmethod
    def _built(build: Callable[[], Deployment], error: _NotTaken) -> Deployment:
        try:
            return build()
        except YggdrasillError as problem:
            raise _with(error, f"and the workflow cannot run here: {problem.message}") from problem


def _name(deployment: Deployment) -> str:
    return f"graph {deployment.graph_id!r} (hash {deployment.hash[:12]})"


def _nothing(graph_id: str, seen: str | None, own: Mapping[str, Any] | None) -> str:
    if own is not None and own["kind"] == _KIND:
        other = "is another one" if seen else "may be another one, for it is not known which that endpoint serves"
        return f"graph {graph_id!r} that this ComfyUI serves itself {other}, so nothing runs here"
    return f"and no copy of workflow {graph_id!r} is kept here; there is one after the first call with a local fallback"


def _with(error: _NotTaken, more: str) -> YggdrasillError:
    return type(error)(f"{error.message}; {more}", **error.details)
