"""Route of one part's calls: its endpoints, the policy among them, what is deployed there, and failover."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, QueueFull, UnknownGraph, YggdrasillError
from yggdrasill.remote.calls import Call, execute_remote_call
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract, fetch_contract
from yggdrasill.remote.deployment import DeploymentSpec, WorkflowSpec
from yggdrasill.remote.endpoint import Endpoint, client_of
from yggdrasill.remote.retry import Retry, RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.remote.endpoints import EndpointRegistry
    from yggdrasill.remote.placement import Placement

__all__ = ["Route"]

_HEALTH_SECONDS = 2.0


class Route:
    """The clients of a part, in the order in which they were named.

    ``deployment`` is deployed on an endpoint before its first call there, ``workflow`` is sent with every call and stored nowhere; without
    either, ``graph_id`` must be deployed. An endpoint with more than ``max_queued`` queued jobs is skipped like one with a full queue.
    A stateful part stays with the first endpoint, because another one would have different state.
    """

    def __init__(
        self,
        clients: Sequence[EndpointClient],
        graph_id: str,
        *,
        deployment: DeploymentSpec | None = None,
        workflow: WorkflowSpec | None = None,
        policy: str = "first",
        max_queued: int | None = None,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
    ) -> None:
        self.clients = tuple(clients)
        self.graph_id = graph_id
        self.deployment = deployment
        self.workflow = workflow
        self.policy = policy
        self.max_queued = max_queued
        self.retry_policy = retry_policy or RetryPolicy()
        self.strict_build = strict_build
        self._contracts: dict[EndpointClient, RemoteContract] = {}
        self._turn = itertools.count()

    @classmethod
    def single(
        cls,
        url: str | None,
        graph_id: str | None,
        *,
        token: str | None = None,
        endpoint: Endpoint | EndpointClient | None = None,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
    ) -> Self:
        """Build the route to what one endpoint serves. Arguments as `RemotePart`.

        Raises:
            InvalidArgument: neither url nor endpoint, both, or no graph id.
        """
        where = endpoint if url is None else url
        if where is None or (url is not None and endpoint is not None) or not graph_id:
            raise InvalidArgument("a remote graph needs a graph_id and either the url of its endpoint or endpoint=")
        return cls([client_of(where, token)], graph_id, retry_policy=retry_policy, strict_build=strict_build)

    @classmethod
    def placed(cls, registry: EndpointRegistry, placement: Placement, graph_id: str, *, deployment: DeploymentSpec | None = None) -> Self:
        """Build the route for ``placement``, with the clients and the retry policy of ``registry``.

        Raises:
            UnknownEndpoint
        """
        return cls(
            [registry.client(name) for name in placement.endpoints],
            graph_id,
            deployment=deployment,
            policy=placement.policy,
            max_queued=placement.max_queued,
            retry_policy=registry.retry_policy,
            strict_build=registry.strict_build,
        )

    @property
    def names(self) -> list[str]:
        """Return the endpoints' names."""
        return [client.name for client in self.clients]

    @property
    def contracts(self) -> dict[EndpointClient, RemoteContract]:
        """Return the fetched contracts, by client."""
        return dict(self._contracts)

    def known_contract(self) -> RemoteContract | None:
        """Return a contract that was fetched before, or the workflow's, or None."""
        if self.workflow is not None:
            return self.workflow.contract
        return next(iter(self._contracts.values()), None)

    async def contract(self) -> RemoteContract:
        """Return the part's contract, from the first endpoint that answers.

        Raises:
            EndpointUnreachable: none answers.
            Otherwise as `DeploymentSpec.ensure`.
        """
        contract = self.known_contract()
        if contract is not None:
            return contract
        for number, client in enumerate(self.clients):
            try:
                return await self._contract_at(client)
            except EndpointUnreachable:
                if number == len(self.clients) - 1:
                    raise
        raise EndpointUnreachable(f"graph {self.graph_id!r} has no endpoint")

    async def call(self, call: Call) -> tuple[EndpointClient, dict[str, Any]]:
        """Return the client that ran the call, and the row of the finished job.

        If an endpoint is lost or full, the call goes to the next one. Errors of the run itself are raised.

        Raises:
            EndpointUnreachable, QueueFull: of the last endpoint, if none accepts the call; ``details["reached"]`` is True if any endpoint
            had
                answered before it was lost.
            Otherwise as `execute_remote_call`.
        """
        order = await self._order()
        reached = False
        for number, client in enumerate(order):
            try:
                return client, await self._call_at(client, call)
            except (EndpointUnreachable, QueueFull) as error:
                reached = reached or bool(error.details.get("reached"))
                if number == len(order) - 1 or "job" in error.details:
                    error.details["reached"] = reached
                    raise
        raise EndpointUnreachable(f"graph {self.graph_id!r} has no endpoint")

    async def _call_at(self, client: EndpointClient, call: Call) -> dict[str, Any]:
        await self._check_queue(client)
        contract = await self._contract_at(client)
        if self.workflow is not None:
            return await execute_remote_call(client, replace(call, prompt=self.workflow.prompt))
        try:
            return await execute_remote_call(client, replace(call, graph_id=contract.graph_id))
        except UnknownGraph as error:
            # A stateful part would be deployed again without its state.
            if self.deployment is None or contract.stateful or "job" in error.details:
                raise
        self._contracts.pop(client, None)
        contract = await self._contract_at(client)
        return await execute_remote_call(client, replace(call, graph_id=contract.graph_id))

    async def _check_queue(self, client: EndpointClient) -> None:
        if self.max_queued is None:
            return
        waiting = int((await Retry(self.retry_policy).persist(client.health))["queue"]["queued"])
        if waiting > self.max_queued:
            raise QueueFull(
                f"endpoint {client.name!r} has {waiting} jobs waiting, and the limit for {self.graph_id!r} is {self.max_queued}; call again later, "
                "or name more replicas",
                endpoint=client.name,
                queued=waiting,
            )

    async def _contract_at(self, client: EndpointClient) -> RemoteContract:
        contract = self._contracts.get(client)
        if contract is None:
            retry = Retry(self.retry_policy)
            if self.workflow is not None:
                contract = await self.workflow.check(client, retry, strict_build=self.strict_build)
            elif self.deployment is None:
                contract = await fetch_contract(client, self.graph_id, retry, strict_build=self.strict_build)
            else:
                contract = await self.deployment.ensure(client, retry, strict_build=self.strict_build)
            self._contracts[client] = contract
        return contract

    async def _order(self) -> list[EndpointClient]:
        clients = list(self.clients)
        contract = self.known_contract()
        if contract is not None and contract.stateful:
            return [client for client in clients if client in self._contracts][:1]
        if len(clients) == 1 or self.policy == "first":
            return clients
        if self.policy == "round_robin":
            start = next(self._turn) % len(clients)
            return clients[start:] + clients[:start]
        load = dict(zip(clients, await asyncio.gather(*map(_load, clients)), strict=True))
        return sorted(clients, key=lambda client: load[client])


async def _load(client: EndpointClient) -> float:
    """Return the jobs per slot of an endpoint; infinite if unknown."""
    try:
        queue = (await asyncio.wait_for(client.health(), _HEALTH_SECONDS))["queue"]
        return (float(queue["queued"]) + float(queue["running"])) / max(float(queue["slots"]), 1.0)
    except (YggdrasillError, asyncio.TimeoutError, KeyError, TypeError, ValueError):
        return float("inf")
