"""The endpoints of a part: their contracts, the choice of one for each call, and failover."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from yggdrasill import errors
from yggdrasill.errors import EndpointUnreachable, QueueFull, YggdrasillError
from yggdrasill.remote.calls import Call, cancel_call, execute_remote_call
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import fetch_contract
from yggdrasill.remote.retry import Retry, RetryPolicy

if TYPE_CHECKING:
    from yggdrasill.remote.contract import RemoteContract
    from yggdrasill.remote.deployment import DeploymentSpec, WorkflowSpec

__all__ = ["Route"]

_LOST_CANCEL_SECONDS = 600.0
"""How long the cancel request of a call that went to another endpoint is tried again."""
_LOAD_TIMEOUT = 2.0


class Route:
    """The clients of a part, in the order in which they were named.

    ``deployment`` is deployed on an endpoint before its first call there, ``workflow`` is sent with every call and stored nowhere; without
    either, ``graph_id`` must be deployed. An endpoint with more than ``max_queued`` queued jobs is skipped like one with a full queue.
    A stateful part stays with the first endpoint, because another one would have different state. ``has_fallback``: the caller runs the
    part itself if no endpoint accepts the call.
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
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        self.clients = tuple(clients)
        self.graph_id = graph_id
        self.deployment = deployment
        self.workflow = workflow
        self.policy = policy
        self.max_queued = max_queued
        self.retry_policy = retry_policy or RetryPolicy()
        self.strict_build = strict_build
        self.priority = priority
        self.deadline = deadline
        self.has_fallback = False
        self._contracts: dict[EndpointClient, RemoteContract] = {}
        #: Contracts that were read before: their endpoints check that they are still valid.
        self._earlier: set[EndpointClient] = set()
        self._turn = itertools.count()

    @property
    def names(self) -> list[str]:
        """Return the endpoints' names."""
        return [client.name for client in self.clients]

    @property
    def contracts(self) -> dict[EndpointClient, RemoteContract]:
        """Return the fetched contracts, by client."""
        return dict(self._contracts)

    def use(self, contracts: Mapping[EndpointClient, RemoteContract]) -> None:
        """Use contracts that were read before. A call is refused with `JobConflict` if the graph was replaced since."""
        self._contracts.update(contracts)
        self._earlier.update(contracts)

    def known_contract(self) -> RemoteContract | None:
        """Return a contract that was fetched before, or the workflow's, or None."""
        if self.workflow is not None:
            return self.workflow.contract
        return next(iter(self._contracts.values()), None)

    async def contract(self) -> RemoteContract:
        """Return the part's contract, from the first endpoint that answers. Raise as `DeploymentSpec.ensure`."""
        contract = self.known_contract()
        if contract is not None:
            return contract
        for number, client in enumerate(self.clients):
            try:
                return await self._contract_at(client, spare=self._spare(number, self.clients))
            except (EndpointUnreachable, QueueFull):
                if number == len(self.clients) - 1:
                    raise
        raise EndpointUnreachable(f"graph {self.graph_id!r} has no endpoint")

    async def call(self, call: Call) -> tuple[EndpointClient, dict[str, Any]]:
        """Return the client that ran the call, and the row of the finished job.

        If an endpoint is lost or full, the call goes to the next one, and the call at a lost endpoint is cancelled once that answers
        again. Errors of the run itself are raised.

        Raises:
            EndpointUnreachable, QueueFull: of the last endpoint, if none accepts the call; ``details["reached"]`` is True if any endpoint
                had answered before it was lost.
            Otherwise as `execute_remote_call`.
        """
        order = await self._order()
        reached = False
        for number, client in enumerate(order):
            client.channel.calls += 1
            try:
                return client, await self._call_at(client, call, self._spare(number, order))
            except (EndpointUnreachable, QueueFull) as error:
                if "job" in error.details:
                    raise
                if error.details.get("reached") and isinstance(error, EndpointUnreachable):
                    reached = True
                    client.channel.start(cancel_call(client, call.key, seconds=_LOST_CANCEL_SECONDS))
                if number == len(order) - 1:
                    error.details["reached"] = reached
                    raise
            finally:
                client.channel.calls -= 1
        raise EndpointUnreachable(f"graph {self.graph_id!r} has no endpoint")

    def _spare(self, number: int, order: Sequence[EndpointClient]) -> bool:
        return self.has_fallback or number < len(order) - 1

    async def _call_at(self, client: EndpointClient, call: Call, spare: bool) -> dict[str, Any]:
        await self._check_queue(client, spare)
        contract = await self._contract_at(client, call, spare=spare)
        if self.workflow is not None:
            return await execute_remote_call(client, replace(call, prompt=self.workflow.prompt), spare=spare)
        expected = contract.hash if client in self._earlier else None
        try:
            return await execute_remote_call(client, replace(call, graph_id=contract.graph_id, graph_hash=expected), spare=spare)
        except errors.UnknownGraph as error:
            # A stateful part would be deployed again without its state.
            if self.deployment is None or contract.stateful or "job" in error.details:
                raise
        self._contracts.pop(client, None)
        contract = await self._contract_at(client, call, spare=spare)
        return await execute_remote_call(client, replace(call, graph_id=contract.graph_id), spare=spare)

    async def _check_queue(self, client: EndpointClient, spare: bool) -> None:
        if self.max_queued is None:
            return
        waiting = int((await self._retry(client, spare).persist(client.load))[0])
        if waiting > self.max_queued:
            raise QueueFull(
                f"endpoint {client.name!r} has {waiting} jobs waiting, and the limit for {self.graph_id!r} is {self.max_queued}; call again later, "
                "or name more replicas",
                endpoint=client.name,
                queued=waiting,
            )

    def _retry(self, client: EndpointClient, spare: bool, deadline: float | None = None) -> Retry:
        return Retry(self.retry_policy, deadline, spare=spare, budget=client.channel.budget)

    async def _contract_at(self, client: EndpointClient, call: Call | None = None, *, spare: bool = False) -> RemoteContract:
        """Return the contract at one endpoint, after deploying the part there. ``call`` receives the events of the deploying job."""
        contract = self._contracts.get(client)
        if contract is None:
            deadline = None if call is None or call.timeout is None else time.monotonic() + call.timeout
            retry = self._retry(client, spare, deadline)
            if self.workflow is not None:
                contract = await self.workflow.check(client, retry, strict_build=self.strict_build)
            elif self.deployment is None:
                contract = await fetch_contract(client, self.graph_id, retry, strict_build=self.strict_build)
            else:
                on_event = None if call is None else lambda event: call.on_event(client, event)
                contract = await self.deployment.ensure(client, retry, strict_build=self.strict_build, on_event=on_event)
            self._contracts[client] = contract
        return contract

    async def _order(self) -> list[EndpointClient]:
        """Return the clients as the policy orders them; endpoints that count as down come last."""
        clients = list(self.clients)
        contract = self.known_contract()
        if contract is not None and contract.stateful:
            return [client for client in clients if client in self._contracts][:1]
        if len(clients) == 1:
            return clients
        if self.policy == "round_robin":
            start = next(self._turn) % len(clients)
            clients = clients[start:] + clients[:start]
        elif self.policy != "first":
            known = dict(zip(clients, await asyncio.gather(*map(_has_load, clients)), strict=True))
            # Calls that chose an endpoint while this one waited are part of its load.
            clients.sort(key=lambda client: _jobs_per_slot(client) if known[client] else float("inf"))
        return sorted(clients, key=lambda client: client.channel.breaker.is_open)


async def _has_load(client: EndpointClient) -> bool:
    """Return whether the endpoint reports its load."""
    try:
        await asyncio.wait_for(client.load(), _LOAD_TIMEOUT)
    except (YggdrasillError, asyncio.TimeoutError):
        return False
    return True


def _jobs_per_slot(client: EndpointClient) -> float:
    queued, running, slots = client.known_load()
    return (queued + running) / max(slots, 1.0)
