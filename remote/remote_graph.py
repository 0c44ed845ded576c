"""Graphs, pipelines and ComfyUI workflows that run at endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, QueueFull
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import ORPHAN_AFTER
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.deployment import WorkflowSpec
from yggdrasill.remote.endpoint import Endpoint, client_of
from yggdrasill.remote.remote_part import RemotePart, refuse_training
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.remote.route import Route
from yggdrasill.values.handles import load_handles

__all__ = ["RemoteGraph", "RemoteWorkflow"]


class RemoteGraph(RemotePart):
    """A graph or pipeline that an endpoint serves. Arguments as `RemotePart`. `run` returns the same bits as a local run."""

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the inputs by external key, from the contract."""
        return self._spec("inputs", include_dtype)

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the outputs by external key, from the contract."""
        return self._spec("outputs", include_dtype)

    @property
    def knows_ports(self) -> bool:
        """Return whether the specs are known without a request to the endpoint."""
        return self._local is not None or self.route.known_contract() is not None

    def _spec(self, side: str, include_dtype: bool) -> list[dict[str, Any]]:
        if self._local is None or self.route.known_contract() is not None:
            try:
                return self.contract.spec(side, include_dtype)
            except EndpointUnreachable as error:
                self._fallback_or_raise(error)
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

        ``device`` has no effect: the endpoint chooses. Hooks see the graph as one node (``before``: inputs, ``after``: outputs); progress
        of the nodes inside reaches this run. Large tensors are returned as handles, unless this is the outermost run.

        Raises:
            BlockFailed, MissingInput, UnknownName, Cancelled, ...: as a local run.
            CannotTravel, TimedOut, RemoteError
        """
        refuse_training(training, self)
        emit = as_emit(callbacks)
        values = dict(inputs or {})
        call_options = {"num_loop_steps": num_loop_steps, "max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=seed) as context:
            if emit:
                emit(self.graph_id, "before", inputs=values)
            try:
                outputs: dict[str, Any] = self._call(values, context, call_options)
            except (EndpointUnreachable, QueueFull) as error:
                outputs = self._run_fallback(error, values, {**call_options, "device": device})
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
        """Run as `run` for a caller with an event loop, without blocking it. Cancelling the task cancels the remote job."""
        refuse_training(training, self)
        call_options = {"num_loop_steps": num_loop_steps, "max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=seed) as context:
            try:
                outputs: dict[str, Any] = await self._call_async(dict(inputs or {}), context, call_options)
            except (EndpointUnreachable, QueueFull) as error:
                outputs = await asyncio.to_thread(self._run_fallback, error, dict(inputs or {}), call_options)
        return outputs

    def _run_fallback(
        self, error: EndpointUnreachable | QueueFull, inputs: Mapping[Any, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        local = self._fallback_or_raise(error)
        supported = {name: item for name, item in options.items() if item is not None}
        outputs: dict[str, Any] = local.run(load_handles(inputs), **supported)
        return outputs


class RemoteWorkflow(RemoteGraph):
    """The API prompt ``prompt``, whose Graph Input and Graph Output nodes are its ports, at a ComfyUI with this extension.

    The prompt is sent with every call; the endpoint stores only the job's row. ``endpoints`` are tried as ``policy`` says
    (``first``, ``round_robin`` or ``least_busy``); ``url`` and ``token``, or one ``endpoint``, name a single one. An endpoint with more
    than ``max_queued`` queued jobs is skipped. Other arguments as `RemotePart`.

    Raises:
        InvalidConfig, LimitExceeded: the prompt is invalid.
        InvalidArgument: no endpoint, or more than one of url, endpoint and endpoints.
    """

    def __init__(
        self,
        prompt: Mapping[str, Any],
        graph_id: str = "workflow",
        *,
        url: str | None = None,
        token: str | None = None,
        endpoint: Endpoint | EndpointClient | None = None,
        endpoints: Sequence[Endpoint | EndpointClient] = (),
        policy: str = "first",
        max_queued: int | None = None,
        timeout: float | None = None,
        orphan_after: float = ORPHAN_AFTER,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
        artifact_client: ArtifactClient | None = None,
        fallback: Callable[[], Any] | None = None,
    ) -> None:
        if (url is not None) + (endpoint is not None) + bool(endpoints) != 1:
            raise InvalidArgument("a remote workflow needs exactly one of url, endpoint and endpoints")
        clients = [client_of(where, token) for where in (url, endpoint, *endpoints) if where is not None]
        workflow = WorkflowSpec(prompt, graph_id)
        route = Route(
            clients, graph_id, workflow=workflow, policy=policy, max_queued=max_queued, retry_policy=retry_policy, strict_build=strict_build
        )
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": workflow.prompt}
        super().__init__(
            route=route, config=config, timeout=timeout, orphan_after=orphan_after, artifact_client=artifact_client, fallback=fallback
        )
