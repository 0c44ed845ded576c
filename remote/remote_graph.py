"""Remote parts: the base of all, and graphs, pipelines and ComfyUI workflows that run at endpoints."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import Cancelled, EndpointUnreachable, InvalidArgument, QueueFull
from yggdrasill.executor.context import RunContext, WaitCallback, enter_run, waiting
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import ORPHAN_AFTER, Call, Watch
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.remote.deployment import WorkflowSpec
from yggdrasill.remote.downloads import Downloads, RemoteHandle, load
from yggdrasill.remote.endpoint import Endpoint, client_of
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.observers import CallReport, report
from yggdrasill.remote.placement import check_urgency
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.remote.route import Route
from yggdrasill.values.handles import load_handles
from yggdrasill.values.wire import pack, references, unpack

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RemoteGraph", "RemotePart", "RemoteWorkflow", "refuse_training"]

_LONGEST_ORPHAN = 86400.0

Inbox = queue.SimpleQueue["Callable[[], None] | None"]


class RemotePart:
    """Base of the parts of a project that run at an endpoint. It has neither state nor parameters in this process.

    ``url`` and ``graph_id`` name what is served. ``endpoint`` (an `Endpoint` or a client) replaces ``url`` and ``token``; without a
    ``token``, the environment's token is used if it is bound to that URL. ``timeout`` bounds a call in seconds, ``retry_policy`` how long
    a lost endpoint is tried again, ``orphan_after`` for how many seconds the endpoint continues a call whose caller is lost.
    ``strict_build`` makes a different torch build an error. Jobs of a higher ``priority`` (-1000 to 1000) run first at the endpoint;
    ``deadline`` is the number of seconds within which it must finish a call's job. ``route`` replaces all arguments that locate the part.

    ``config`` is the result of `to_config`: the part's original config if a registry placed it, so that placing changes no saved
    file. ``fallback`` builds the part in this process; it is used when no endpoint accepts the call.

    Raises:
        InvalidArgument: ``orphan_after``, ``priority`` or ``deadline`` out of range, an incomplete location, or a ``fallback`` for a part that cannot have one.
    """

    #: Inputs may be handles; they are sent as references.
    accepts_handles = True
    #: Whether a ``fallback`` may replace it: content that is stored at its endpoint is not available in this process.
    allows_fallback: ClassVar[bool] = True

    def __init__(
        self,
        url: str | None = None,
        graph_id: str | None = None,
        *,
        token: str | None = None,
        endpoint: Endpoint | EndpointClient | None = None,
        timeout: float | None = None,
        orphan_after: float = ORPHAN_AFTER,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
        artifact_client: ArtifactClient | None = None,
        route: Route | None = None,
        config: Mapping[str, Any] | None = None,
        fallback: Callable[[], Any] | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        if route is None:
            where = endpoint if url is None else url
            if where is None or (url is not None and endpoint is not None) or not graph_id:
                raise InvalidArgument("a remote graph needs a graph_id and either the url of its endpoint or endpoint=")
            check_urgency(priority, deadline)
            clients = [client_of(where, token)]
            route = Route(clients, graph_id, retry_policy=retry_policy, strict_build=strict_build, priority=priority, deadline=deadline)
        if not 0 < orphan_after <= _LONGEST_ORPHAN:
            raise InvalidArgument(f"orphan_after must be greater than 0 and at most {_LONGEST_ORPHAN:g} seconds, got {orphan_after!r}")
        self.route = route
        self.timeout = timeout
        self.orphan_after = float(orphan_after)
        self._config = config
        self._fallback = fallback
        route.has_fallback = fallback is not None
        self._local: Any = None
        self._artifact_client = artifact_client or ArtifactClient.shared()
        if fallback is not None and not self.allows_fallback:
            raise InvalidArgument(
                f"{self!r} stores its content at its endpoint, so it cannot have a local fallback; place the parts inside it instead"
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.graph_id!r} at {', '.join(self.route.names)}>"

    @property
    def graph_id(self) -> str:
        """Return the id of the served graph."""
        return self.route.graph_id

    @property
    def contract(self) -> RemoteContract:
        """Return the contract, fetched once. Raise as `prepare`."""
        contract = self.route.known_contract()
        return contract if contract is not None else loop_thread().run(self.route.contract())

    @property
    def stateful(self) -> bool:
        """Return whether it keeps state between calls."""
        return self.contract.stateful

    @property
    def deterministic(self) -> bool:
        """Return whether equal inputs give equal outputs."""
        return self.contract.deterministic

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the weights are at the endpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Accept an empty state.

        Raises:
            InvalidArgument: ``strict`` and the state is not empty.
        """
        if strict and state:
            raise InvalidArgument(
                f"{self!r} has its weights at the endpoint and accepts no state, got {sorted(state)}; load the state where the part is served"
            )

    def to(self, device: Any) -> Self:
        """Do nothing: the endpoint chooses the devices."""
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the part's original config if a registry placed it, else ``{"endpoint_url", "graph_id"}``."""
        if self._config is not None:
            return dict(self._config)
        return {"endpoint_url": self.route.clients[0].url, "graph_id": self.graph_id}

    def prepare(self) -> None:
        """Fetch the contract, deploying the part if necessary. An endpoint that is unreachable or full is accepted if the part has a fallback.

        Raises:
            UnknownGraph, UnknownBlockType, EndpointUnreachable, QueueFull, AccessDenied, ProtocolMismatch, BuildMismatch
        """
        try:
            _ = self.contract
        except (EndpointUnreachable, QueueFull) as error:
            self._fallback_or_raise(error)

    # -- calling ------------------------------------------------------------------------------------------------

    def call(
        self,
        value: Any,
        context: RunContext,
        options: Mapping[str, Any] | None = None,
        *,
        watch: Watch | None = None,
        on_key: Callable[[str], None] | None = None,
    ) -> Any:
        """Make one call in a given run context, for hosts.

        ``on_key(key)`` is called with the call's key before it is sent, ``watch(kind, data)`` with every event of the job other than status
        and progress, both in other threads. The output's large tensors are loaded if ``context.outermost``, otherwise they are handles.

        Raises:
            As the local run; CannotTravel; TimedOut.
            EndpointUnreachable, QueueFull: no endpoint accepted the call.
        """
        return self._call(value, context, options or {}, watch, on_key)

    def _call(
        self,
        value: Any,
        context: RunContext,
        options: Mapping[str, Any],
        watch: Watch | None = None,
        on_key: Callable[[str], None] | None = None,
    ) -> Any:
        """Return the remote run's output; large tensors are handles, unless this is the outermost run."""
        context.check_cancelled()
        inbox: Inbox = queue.SimpleQueue()
        with pack(value, self._artifact_client.store) as packed, context.host.release_slot(), waiting() as on_wait:
            call = self._prepare(value, packed.wire, context, options, inbox, on_wait, watch)
            if on_key is not None:
                on_key(call.key)
            started = time.perf_counter()
            try:
                client, row, fetched = loop_thread().run(self._send(call, context.outermost), token=context.token, inbox=inbox)
            except CancelledError:
                raise self._cancelled(context) from None
        report(self._report(client, row, call, context, started))
        return self._unpack(client, row["output"], fetched, context.outermost)

    async def _call_async(self, value: Any, context: RunContext, options: Mapping[str, Any]) -> Any:
        """Do the same for a caller with an event loop; packing and unpacking run in threads."""
        context.check_cancelled()
        inbox: Inbox = queue.SimpleQueue()
        with await asyncio.to_thread(pack, value, self._artifact_client.store) as packed, context.host.release_slot(), waiting() as on_wait:
            call = self._prepare(value, packed.wire, context, options, inbox, on_wait)
            started = time.perf_counter()
            try:
                client, row, fetched = await loop_thread().run_async(self._send(call, context.outermost), token=context.token, inbox=inbox)
            except CancelledError:
                raise self._cancelled(context) from None
        report(self._report(client, row, call, context, started))
        return await asyncio.to_thread(self._unpack, client, row["output"], fetched, context.outermost)

    def _prepare(
        self,
        value: Any,
        wire: Mapping[str, Any],
        context: RunContext,
        options: Mapping[str, Any],
        inbox: Inbox,
        on_wait: WaitCallback | None,
        watch: Watch | None = None,
    ) -> Call:
        sink = context.progress_sink
        return Call(
            graph_id=self.graph_id,
            wire=wire,
            value=value,
            artifact_client=self._artifact_client,
            run=context.to_dict(),
            options={name: item for name, item in options.items() if item is not None},
            timeout=self.timeout,
            orphan_after=self.orphan_after,
            retry_policy=self.route.retry_policy,
            priority=self.route.priority,
            deadline=self.route.deadline,
            progress=None if sink is None else lambda *facts: inbox.put(lambda: sink(*facts)),
            on_wait=on_wait,
            watch=watch,
        )

    async def _send(self, call: Call, load_outputs: bool) -> tuple[EndpointClient, Mapping[str, Any], dict[str, memoryview]]:
        downloads = Downloads(self._artifact_client, self.route.retry_policy, call.meter)
        try:
            client, row = await self.route.call(dataclasses.replace(call, arrived=downloads.arrived) if load_outputs else call)
            with call.meter.receiving():
                return client, row, await downloads.all(client, references(row["output"]) if load_outputs else [])
        finally:
            await downloads.close()

    def _report(self, client: EndpointClient, row: Mapping[str, Any], call: Call, context: RunContext, started: float) -> CallReport:
        timing = row.get("timing") or {}
        return CallReport(
            endpoint=client.name,
            graph_id=self.graph_id,
            path=context.path,
            pass_index=context.pass_index,
            started=started,
            finished=time.perf_counter(),
            queued_s=float(timing.get("queued_s", 0.0)),
            run_s=float(timing.get("run_s", 0.0)),
            fetch_s=float(timing.get("fetch_s", 0.0)),
            bytes_direct=int(timing.get("bytes_in", 0)),
            meter=call.meter,
        )

    def _unpack(self, client: EndpointClient, wire: Any, fetched: Mapping[str, memoryview], load_outputs: bool) -> Any:
        def bytes_of(ref: Any) -> memoryview:
            data = fetched.get(ref.hash)
            return data if data is not None else load(client, ref, self._artifact_client)

        return unpack(wire, bytes_of, handles=None if load_outputs else lambda ref: RemoteHandle(ref, client, self._artifact_client))

    def _cancelled(self, context: RunContext) -> Cancelled:
        reason = context.token.reason if context.token.cancelled else "the connections of this process were closed"
        return Cancelled(f"{context.place or self.graph_id}: {reason}", node=context.place)

    def _fallback_or_raise(self, error: EndpointUnreachable | QueueFull) -> Any:
        """Return the part built in this process if the placement has a fallback; otherwise raise ``error``.

        Errors of the run itself never cause a fallback, and a stateful part has none, because its state is at the endpoint.
        """
        contract = self.route.known_contract()
        if self._fallback is None or "job" in error.details or (contract is not None and contract.stateful):
            raise error
        if self._local is None:
            self._local = self._fallback()
        return self._local


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
            except (EndpointUnreachable, QueueFull) as error:
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
        emit = None if callbacks is None else as_emit(callbacks)
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
    than ``max_queued`` queued jobs is skipped. Without ``compare_models`` an endpoint may have other model files under the names in the
    prompt than the ComfyUI of this process. Other arguments as `RemotePart`.

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
        priority: int = 0,
        deadline: float | None = None,
        compare_models: bool = True,
    ) -> None:
        check_urgency(priority, deadline)
        if (url is not None) + (endpoint is not None) + bool(endpoints) != 1:
            raise InvalidArgument("a remote workflow needs exactly one of url, endpoint and endpoints")
        clients = [client_of(where, token) for where in (url, endpoint, *endpoints) if where is not None]
        workflow = WorkflowSpec(prompt, graph_id)
        workflow.compare_models = compare_models
        route = Route(
            clients,
            graph_id,
            workflow=workflow,
            policy=policy,
            max_queued=max_queued,
            retry_policy=retry_policy,
            strict_build=strict_build,
            priority=priority,
            deadline=deadline,
        )
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": workflow.prompt}
        super().__init__(
            route=route, config=config, timeout=timeout, orphan_after=orphan_after, artifact_client=artifact_client, fallback=fallback
        )


def refuse_training(training: bool, what: object) -> None:
    """Raise `InvalidArgument` for a training run: gradients are not transferred."""
    if training:
        raise InvalidArgument(f"{what!r} runs at an endpoint and cannot train, because gradients are not transferred; train it locally")
