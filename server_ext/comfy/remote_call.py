"""The call of a Remote Graph node: it starts at once in a thread of its own, and the node waits without holding ComfyUI up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import Cancelled, InvalidArgument, InvalidConfig, choices
from yggdrasill.executor.context import CancelToken, RunContext
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import Placement
from yggdrasill.remote.port_list import port_value, port_values
from yggdrasill.remote.remote_graph import RemoteGraph
from yggdrasill.remote.route import Route
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.current import around
from yggdrasill.server_ext.comfy.loan import Loan
from yggdrasill.server_ext.comfy.node_messages import NodeMessages
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.types_ports import check_port

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AUTO", "RemoteCall", "check_settings"]

AUTO = "auto"
_POLL = 0.1


def check_settings(graph: Any, endpoint: Any, contract: Any) -> str | None:
    """What is wrong with a Remote Graph node's constants, in words for the node; None if nothing is. Links are not looked at."""
    graph, endpoint, contract = (value[0] if isinstance(value, list) and value else value for value in (graph, endpoint, contract))
    if isinstance(graph, str) and not graph.strip():
        return "name the graph that this node runs: the id that an endpoint serves it under"
    try:
        if isinstance(endpoint, str) and isinstance(graph, str):
            _placement(around().registry, graph, endpoint)
        if isinstance(contract, str):
            _ports_of_contract(contract)
    except (InvalidArgument, InvalidConfig, KeyError) as error:
        return str(error)
    return None


@dataclass(eq=False)
class RemoteCall:
    """One call. ``ports`` holds the values of sockets ``p0``, ``p1`` ..., in the order of the contract's inputs."""

    graph: str
    endpoint: str
    contract: str
    seed: int
    ports: Mapping[str, list[Any]]
    node_id: str
    token: CancelToken = field(default_factory=CancelToken)

    def start(self) -> Self:
        """Begin. To be called in the node's own task: what is reported belongs to the node that calls this."""
        place = host_api.executing_place()
        self._preview_method = host_api.preview_method()
        self._run_around = run = around().runner.run_of(place.prompt_id) if place else None
        self._messages = self._make_messages(place.prompt_id if place else "", run)
        path = (*run.context.path, self.node_id) if run is not None else ()
        nested = run if run is not None and run.state == "lent" else None
        self._loan = Loan(around().runner, nested)
        self._context = RunContext(self.seed, path, token=self.token, progress=self._messages.progress)
        self._future: Future[dict[int, list[Any]]] = Future()
        threading.Thread(target=self._work, name=f"yggdrasill-call-{self.node_id}", daemon=True).start()
        return self

    def _make_messages(self, prompt_id: str, run: PromptRun | None) -> Any:
        return NodeMessages(self.node_id, prompt_id, run)

    async def result(self) -> dict[int, list[Any]]:
        """The values of each output socket; one without any is left out. An interrupt cancels the call and does not wait for that.

        Raises:
            YggdrasillError: as the graph's run. ComfyUI's InterruptProcessingException.
        """
        future = asyncio.wrap_future(self._future)
        try:
            while not future.done():
                await self._loan.wait_with(future, _POLL)
                if host_api.interrupted():
                    self.token.cancel("interrupted")
                    await self._loan.stop()
                    host_api.raise_interrupt()
                if self._run_around is not None and self._run_around.context.token.cancelled:
                    raise Cancelled(self._run_around.context.token.reason)
            await self._loan.finish()
            return future.result()
        except BaseException:
            self.token.cancel("the node that called was stopped")
            raise
        finally:
            self._loan.end()

    # -- in the call's own thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._future.set_result(self._run())
        except BaseException as error:  # noqa: BLE001 - the node raises it
            self._future.set_exception(error)

    def _run(self) -> dict[int, list[Any]]:
        registry = around().registry
        placement = _placement(registry, self.graph, self.endpoint)
        clients = [registry.client(name) for name in placement.endpoints]
        route = Route(
            clients,
            self.graph,
            policy=placement.policy,
            max_queued=placement.max_queued,
            patience=registry.patience,
            strict_build=registry.strict_build,
        )
        served = RemoteGraph(route=route)
        contract = served.contract
        _check_contract(self.contract, contract, clients[0].name)
        options = {"preview_method": self._preview_method} if contract.kind == "comfy" else {}
        outputs = served.call(self._inputs(contract), self._context, options, watch=self._told, began=self._loan.begin)
        names = [entry["name"] for entry in contract.outputs]
        return {index: port_values(outputs[name]) for index, name in enumerate(names) if name in outputs}

    def _told(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "comfy" and data.get("what") == "blocked":
            self._loan.learn([str(key) for key in data.get("by") or ()])
        else:
            self._messages.watch(kind, data)

    def _inputs(self, contract: RemoteContract) -> dict[str, Any]:
        inputs = {}
        for socket, values in self.ports.items():
            index = int(socket.removeprefix("p"))
            if values is None:
                continue
            if index >= len(contract.inputs):
                names = choices(entry["name"] for entry in contract.inputs)
                raise InvalidArgument(
                    f"socket {socket!r} is linked, and graph {self.graph!r} has {len(contract.inputs)} inputs ({names}); unlink it"
                )
            entry = contract.inputs[index]
            check_port(entry["name"], str(entry.get("comfy_type", "*")), values)
            inputs[entry["name"]] = port_value(values)
        missing = [entry["name"] for entry in contract.inputs if not entry.get("optional") and entry["name"] not in inputs]
        if missing:
            raise InvalidArgument(
                f"graph {self.graph!r} needs {choices(missing)}; link the node's sockets, in the order of the contract's inputs"
            )
        return inputs


def _placement(registry: EndpointRegistry, graph: str, endpoint: str) -> Placement:
    """Where the call goes.

    Raises:
        UnknownEndpoint. InvalidArgument: nobody said where the graph runs.
    """
    if endpoint.strip() not in ("", AUTO):
        registry.endpoint(endpoint)
        return Placement.of(endpoint, registry.endpoints, "the node's endpoint")
    placement = registry.placements.get(graph, registry.default)
    if placement.is_local:
        raise InvalidArgument(
            f"the registry says of no endpoint that it runs {graph!r} (there is {choices(registry.endpoints)}); pin one on the node, or put "
            f"'graphs: {{{graph}: ENDPOINT}}' into endpoints.yaml"
        )
    return placement


def _ports_of_contract(text: str) -> tuple[list[str], list[str]] | None:
    """The names of inputs and outputs in a stored contract; None if none is stored."""
    if not text.strip():
        return None
    try:
        document = json.loads(text)
        inputs, outputs = ([str(entry["name"]) for entry in document[side]] for side in ("inputs", "outputs"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidConfig("the contract stored in the node is none; choose the graph again, or clear it") from None
    return inputs, outputs


def _check_contract(stored: str, contract: RemoteContract, endpoint: str) -> None:
    """Raise `InvalidArgument` if the sockets were made for other ports than the graph has now."""
    ports = _ports_of_contract(stored)
    if ports is None:
        return
    for side, was, now in (("input", ports[0], contract.inputs), ("output", ports[1], contract.outputs)):
        names = [entry["name"] for entry in now]
        if was != names:
            raise InvalidArgument(
                f"the {side}s of graph {contract.graph_id!r} at endpoint {endpoint!r} are {names}, and this node was made for {was}; "
                "choose the graph again so that its sockets follow"
            )
