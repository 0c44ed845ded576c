"""A graph or pipeline behind an endpoint, run like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, QueueFull
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.pipeline.pipeline import Pipeline
from yggdrasill.remote.calls import ORPHAN_AFTER
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.depot import Depot
from yggdrasill.remote.endpoint import Endpoint, token_from_environment
from yggdrasill.remote.proxy import Proxy, refuse_training
from yggdrasill.remote.retry import Patience
from yggdrasill.remote.route import Route
from yggdrasill.values.handles import load_handles

__all__ = ["RemoteGraph", "single_route"]


class RemoteGraph(Proxy):
    """The graph, or pipeline, that ``url`` serves as ``graph_id``.

    ``endpoint`` (an `Endpoint` or a client) stands for url and token; without a ``token`` the environment's is used where it is
    bound to that url. ``timeout`` bounds a call in seconds, ``patience`` how long a lost endpoint is tried again, ``orphan_after`` how long
    the endpoint goes on with a call whose caller is lost.
    ``strict_build`` makes another torch build an error. `run` gives what a local run gives, bit for bit.
    """

    def __init__(
        self,
        url: str | None = None,
        graph_id: str | None = None,
        *,
        token: str | None = None,
        endpoint: Endpoint | EndpointClient | None = None,
        timeout: float | None = None,
        orphan_after: float = ORPHAN_AFTER,
        patience: Patience | None = None,
        strict_build: bool = False,
        depot: Depot | None = None,
        route: Route | None = None,
        config: Mapping[str, Any] | None = None,
        fallback: Callable[[], Any] | None = None,
    ) -> None:
        own = route or single_route(url, graph_id, token=token, endpoint=endpoint, patience=patience, strict_build=strict_build)
        super().__init__(own, config=config, fallback=fallback, timeout=timeout, orphan_after=orphan_after, depot=depot)

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """The inputs by external key, from the contract."""
        return self._spec("inputs", include_dtype)

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """The outputs by external key, from the contract."""
        return self._spec("outputs", include_dtype)

    def _spec(self, side: str, include_dtype: bool) -> list[dict[str, Any]]:
        if self._local is None or self.route.known_contract() is not None:
            try:
                return self.contract.spec(side, include_dtype)
            except EndpointUnreachable as error:
                self._here(error)
        local = self._local
        found: list[dict[str, Any]] = (local.get_input_spec if side == "inputs" else local.get_output_spec)(include_dtype)
        return found

    def run(
        self,
        inputs: Mapping[Any, Any] | None = None,
        *,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        dry_run: bool = False,
        seed: int | None = None,
        num_loop_steps: int | None = None,
        max_workers: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run at the endpoint and return the outputs by external key.

        ``device`` is the endpoint's affair. Hooks see the graph as one node (``before``: inputs, ``after``: outputs); progress
        of the nodes inside reaches this run. Large tensors stay there as handles, unless this is the outermost run.

        Raises:
            BlockFailed, MissingInput, UnknownName, Cancelled, ...: as a local run; CannotTravel; TimedOut; RemoteError.
        """
        refuse_training(training, self)
        emit = as_emit(callbacks)
        given = dict(inputs or {})
        asked = {"num_loop_steps": num_loop_steps, "max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=seed) as context:
            if emit:
                emit(self.graph_id, "before", inputs=given)
            try:
                outputs: dict[str, Any] = self._call(given, context, asked)
            except (EndpointUnreachable, QueueFull) as error:
                outputs = self._run_here(error, given, {**asked, "device": device})
            if emit:
                emit(self.graph_id, "after", outputs=outputs)
        return outputs

    async def run_async(
        self,
        inputs: Mapping[Any, Any] | None = None,
        *,
        training: bool = False,
        dry_run: bool = False,
        seed: int | None = None,
        num_loop_steps: int | None = None,
        max_workers: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """`run` for a caller with an event loop, which stays free meanwhile; cancelling the task cancels the remote job."""
        refuse_training(training, self)
        asked = {"num_loop_steps": num_loop_steps, "max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=seed) as context:
            try:
                outputs: dict[str, Any] = await self._call_async(dict(inputs or {}), context, asked)
            except (EndpointUnreachable, QueueFull) as error:
                outputs = await asyncio.to_thread(self._run_here, error, dict(inputs or {}), asked)
        return outputs

    def _run_here(self, error: EndpointUnreachable | QueueFull, inputs: Mapping[Any, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        local = self._here(error)
        unknown_here = () if isinstance(local, Pipeline) else ("max_workers",)
        given = {name: item for name, item in options.items() if item is not None and name not in unknown_here}
        outputs: dict[str, Any] = local.run(load_handles(inputs), **given)
        return outputs


def single_route(
    url: str | None,
    graph_id: str | None,
    *,
    token: str | None = None,
    endpoint: Endpoint | EndpointClient | None = None,
    patience: Patience | None = None,
    strict_build: bool = False,
) -> Route:
    """The route to what one endpoint serves already; arguments as `RemoteGraph`.

    Raises:
        InvalidArgument: neither url nor endpoint, both, or no graph id.
    """
    if (url is None) == (endpoint is None) or not graph_id:
        raise InvalidArgument("a remote graph needs a graph_id and either the url of its endpoint or endpoint=")
    if url is not None:
        client = EndpointClient(url, token=token or token_from_environment(url))
    else:
        client = endpoint if isinstance(endpoint, EndpointClient) else cast("Endpoint", endpoint).client()
    return Route([client], graph_id, patience=patience, strict_build=strict_build)
