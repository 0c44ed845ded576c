"""The call of a Remote Graph node: checks its settings, maps sockets to the graph's ports, and falls back to a local run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, InvalidConfig, JobConflict, QueueFull, format_options
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_ports import Blocked, port_value, port_values
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import LOCAL, Placement
from yggdrasill.remote.placing import placed_route
from yggdrasill.remote.remote_graph import RemoteGraph
from yggdrasill.server_ext.comfy.contract_fingerprint import AUTO, contracts_of, placement_of
from yggdrasill.server_ext.comfy.execution_blockers import as_blockers
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.local_fallback import LocalFallbacks
from yggdrasill.server_ext.comfy.node_call import NodeCall
from yggdrasill.server_ext.comfy.port_checks import check_port_count, sendable_values
from yggdrasill.server_ext.comfy.stored_contract import StoredContract

__all__ = ["AUTO", "RemoteCall", "check_settings", "placement_of"]

_LOG = logging.getLogger("yggdrasill.comfy")


def check_settings(graph: Any, endpoint: Any, contract: Any) -> str | None:
    """Return what is wrong with a Remote Graph node's settings, as a message for the user, or None. Links are not checked."""
    graph, endpoint, contract = (value[0] if isinstance(value, list) and value else value for value in (graph, endpoint, contract))
    if isinstance(graph, str) and not graph.strip():
        return "No graph is set. Enter the id under which an endpoint serves the graph."
    try:
        if isinstance(endpoint, str) and isinstance(graph, str):
            placement_of(extension_context().registry, graph, endpoint)
        if isinstance(contract, str):
            StoredContract.read(contract)
    except (InvalidArgument, InvalidConfig, KeyError) as error:
        return str(error)
    return None


@dataclass(eq=False, kw_only=True)
class RemoteCall(NodeCall):
    """One call. ``ports`` maps sockets ``p0``, ``p1`` ... to their values, in the order of the contract's inputs.

    ``fallback`` is ``fail``, ``local``, or ``auto`` for the policy in the registry.
    """

    graph: str
    endpoint: str
    contract: str
    fallback: str = AUTO
    #: The reason why the graph ran locally instead of at its endpoint; None if it ran there.
    ran_here: str | None = field(default=None, init=False)
    _sent: bool = field(default=False, init=False)
    _blocked: dict[str, str | None] = field(default_factory=dict, init=False)

    def _run(self) -> dict[int, list[Any]]:
        registry = extension_context().registry
        placement = placement_of(registry, self.graph, self.endpoint)
        local = (placement.fallback if self.fallback == AUTO else self.fallback) == LOCAL
        local_fallbacks = extension_context().local_fallbacks if local else None
        try:
            contract, outputs = self._run_remote(registry, placement, local_fallbacks)
        except (EndpointUnreachable, QueueFull) as error:
            if local_fallbacks is None or "job" in error.details:
                raise
            if self._sent and error.details.get("reached"):
                raise type(error)(
                    f"{error.message.rstrip('.')}; it had already received the call, so the graph is not run again locally", **error.details
                ) from error
            contract, outputs = self._run_local(local_fallbacks, registry, placement, error)
        names = [entry["name"] for entry in contract.outputs]
        return {index: as_blockers(port_values(outputs.get(name, Blocked(self._blocked.get(name))))) for index, name in enumerate(names)}

    def _on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "comfy" and data.get("what") == "port_blocked":
            self._blocked[str(data.get("port"))] = data.get("message")
        super()._on_event(kind, data)

    def _run_remote(
        self, registry: EndpointRegistry, placement: Placement, local_fallbacks: LocalFallbacks | None
    ) -> tuple[RemoteContract, dict[str, Any]]:
        # a different torch build is an error of the call that reads the contract
        known = {} if registry.strict_build else contracts_of(self._prompt_id, self.graph, placement.endpoints)
        try:
            return self._call_graph(registry, placement, local_fallbacks, known)
        except JobConflict as error:
            if not known or error.details.get("reason") != "contract":
                raise
        return self._call_graph(registry, placement, local_fallbacks, {})

    def _call_graph(
        self,
        registry: EndpointRegistry,
        placement: Placement,
        local_fallbacks: LocalFallbacks | None,
        known: Mapping[EndpointClient, RemoteContract],
    ) -> tuple[RemoteContract, dict[str, Any]]:
        """Call the graph with the contracts ``known``, or with those that its endpoints have now."""
        route = placed_route(registry, placement, self.graph)
        route.use(known)
        if local_fallbacks is not None and local_fallbacks.are_silent(placement.endpoints):
            route.retry_policy = replace(route.retry_policy, first=0.0)
        served = RemoteGraph(route=route)
        contract = served.contract
        self._check(contract, f"endpoint {route.names[0]!r}")
        inputs = self._inputs(contract)
        options = {"preview_method": self._preview_method} if contract.kind == "comfy" else {}
        outputs = served.call(inputs, self._context, options, watch=self._on_event, on_key=self._on_sent)
        if local_fallbacks is not None:
            for client, used in route.contracts.items():
                local_fallbacks.cache_workflow(client, used)
        return contract, outputs

    def _on_sent(self, key: str) -> None:
        self._sent = True

    def _run_local(
        self, local_fallbacks: LocalFallbacks, registry: EndpointRegistry, placement: Placement, error: EndpointUnreachable | QueueFull
    ) -> tuple[RemoteContract, dict[str, Any]]:
        stored = StoredContract.read(self.contract)
        known = None if stored is None else stored.hash
        local_fallback = local_fallbacks.find(placement.endpoints, self.graph, known, error, strict_build=registry.strict_build)
        self._check(local_fallback.contract, "this ComfyUI")
        inputs = self._inputs(local_fallback.contract)
        self.ran_here = local_fallback.reason
        _LOG.warning("Yggdrasill: node %s: %s", self.node_id, local_fallback.reason)
        return local_fallback.contract, self.run_nested(local_fallback.graph, inputs)

    def _check(self, contract: RemoteContract, where: str) -> None:
        check_port_count(self.graph, len(contract.inputs), len(contract.outputs), "Remote Graph")
        stored = StoredContract.read(self.contract)
        if stored is not None:
            stored.check(contract, where)

    def _inputs(self, contract: RemoteContract) -> dict[str, Any]:
        inputs = {}
        for socket, values in self.ports.items():
            index = int(socket.removeprefix("p"))
            if values is None:
                continue
            if index >= len(contract.inputs):
                names = format_options(entry["name"] for entry in contract.inputs)
                raise InvalidArgument(
                    f"Socket {socket!r} is linked, but graph {self.graph!r} has {len(contract.inputs)} inputs: {names}. Unlink the socket."
                )
            entry = contract.inputs[index]
            inputs[entry["name"]] = port_value(sendable_values(entry["name"], str(entry.get("comfy_type", "*")), values))
        missing = [entry["name"] for entry in contract.inputs if not entry.get("optional") and entry["name"] not in inputs]
        if missing:
            raise InvalidArgument(
                f"Graph {self.graph!r} is missing the inputs {format_options(missing)}. Link the node's sockets, in the order of the contract's inputs."
            )
        return inputs
