"""The call of a placed part: its plan runs as one job at the endpoint that the placement names."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, InvalidConfig, QueueFull, UnknownArtifact, YggdrasillError
from yggdrasill.executor.context import RunContext
from yggdrasill.remote.call_splitting import Values
from yggdrasill.remote.calls import Watch
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.comfy_ports import Blocked, is_link, port_value, port_values
from yggdrasill.remote.observers import observe_calls
from yggdrasill.remote.placement import LOCAL, Placement
from yggdrasill.remote.remote_graph import RemoteWorkflow
from yggdrasill.server_ext.comfy.compat.probe import PLACEMENT
from yggdrasill.server_ext.comfy.execution_blockers import as_blockers
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.hidden_inputs import add_hidden, nodes_after_ports
from yggdrasill.server_ext.comfy.node_call import NodeCall
from yggdrasill.server_ext.comfy.placement.inner_messages import InnerMessages
from yggdrasill.server_ext.comfy.placement.message_translation import pack_outputs
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import InnerFailure, PartitionedPrompt
from yggdrasill.server_ext.comfy.placement.split_call import SplitCall, split_call
from yggdrasill.server_ext.comfy.port_checks import sendable_values
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.url_redaction import public_message
from yggdrasill.values.handles import load_handles

__all__ = ["PlacedCall", "Plan", "Producer", "TransferredValue", "placed_call", "plan_asks_again"]

_LOG = logging.getLogger("yggdrasill.comfy")


@dataclass(frozen=True)
class Plan:
    """The plan of a placed node, parsed from its constant ``text``; see `yggdrasill.remote.partition.parts.PartCall.plan`."""

    text: str
    part: str
    prompt: dict[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    asks_again: bool
    #: The nodes that have the user's prompt or workflow as a hidden input.
    hidden: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Plan:
        """Parse a plan from JSON.

        Raises:
            InvalidConfig
        """
        try:
            facts = json.loads(text)
            inputs, outputs = (tuple({**entry, "name": str(entry["name"])} for entry in facts[side]) for side in ("inputs", "outputs"))
            hidden = tuple(str(node) for node in facts.get("hidden") or ())
            return cls(text, str(facts["part"]), dict(facts["prompt"]), inputs, outputs, bool(facts["asks_again"]), hidden)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InvalidConfig("The plan of this node is not valid. Place the part again to write a new plan.") from None


class TransferredValue:
    """A value on a link between two placed nodes. Its tensors may be stored at an endpoint, so no other node accepts it.

    ComfyUI caches it. If the endpoint no longer has the tensors, ``producer`` computes ``value`` again.
    """

    __slots__ = ("__weakref__", "position", "producer", "value")

    def __init__(self, value: Any, producer: Producer, position: tuple[int, int]) -> None:
        self.value = value
        self.producer = producer
        #: The output socket of the producer, and the index in its list of values.
        self.position = position
        producer.add(self)

    def __repr__(self) -> str:
        return f"<a value of type {type(self.value).__name__} that is transferred between endpoints>"


class Producer:
    """The call that produced transferred values, with which they can be produced again. Thread-safe."""

    def __init__(self, plan: Plan, ports: Mapping[str, list[Any]], node_id: str) -> None:
        self.plan = plan
        self.ports = ports
        self.node_id = node_id
        self._lock = threading.Lock()
        self._made: WeakValueDictionary[tuple[int, int], TransferredValue] = WeakValueDictionary()

    def add(self, value: TransferredValue) -> None:
        """Register a value of the call."""
        self._made[value.position] = value

    def renew(self, lost: Mapping[tuple[int, int], Any], call: Callable[[Producer], Mapping[int, list[Any]]]) -> None:
        """Produce all values again with ``call``, unless another thread has done so since the values ``lost`` were read.

        Raises:
            As ``call``.
        """
        with self._lock:
            made = dict(self._made)
            if any(made[position].value is not value for position, value in lost.items() if position in made):
                return
            outputs = call(self)
            for (socket, index), value in made.items():
                fresh = (outputs.get(socket) or [])[index : index + 1]
                if fresh and type(fresh[0]) is TransferredValue:
                    value.value = fresh[0].value


@dataclass(eq=False, kw_only=True)
class PlacedCall(NodeCall):
    """One call of a plan. ``ports`` maps sockets ``p0``, ``p1`` ... to their values, in the order of the plan's inputs."""

    plan: Plan
    feature: ClassVar[str] = PLACEMENT
    _sent: bool = field(default=False, init=False)

    @property
    def shown(self) -> dict[str, Any] | None:
        """Return the outputs that inner nodes showed, as the output of the placed node."""
        return pack_outputs(self._inner.outputs)

    def _make_messages(self, prompt_id: str, run: PromptRun | None) -> Any:
        self._partitioned: PartitionedPrompt | None = extension_context().placement.runs.get(prompt_id)
        #: The id of the call in the posted prompt. ``node_id`` is that of a copy if a loop runs the node.
        self._call_id = self._partitioned.call_of(self.node_id) if self._partitioned is not None else None
        self._inner = InnerMessages(self.node_id, prompt_id, self._partitioned)
        return self._inner

    # -- in the thread of the call -------------------------------------------------------------------------------

    def _run(self) -> dict[int, list[Any]]:
        try:
            return self._call()
        except YggdrasillError as error:
            partitioned = self._partitioned
            if partitioned is not None and self._call_id is not None:
                partitioned.failures[self.node_id] = self._failure(error, partitioned)
            raise

    def _call(self) -> dict[int, list[Any]]:
        placement, values = self._placement(), self._input_values()
        self._context.outermost = not any(port["hand_over"] for port in self.plan.outputs)
        timeline = extension_context().placement.timeline
        with observe_calls(lambda report: timeline.note(self._prompt_id, self.plan.part, self._call_id or self.node_id, report)):
            outputs = self._outputs(placement, values)
            producer = Producer(self.plan, self.ports, self.node_id)
            values_by_socket = {index: self._output_values(index, port, outputs, producer) for index, port in enumerate(self.plan.outputs)}
        self._inner.end()
        return values_by_socket

    def _call_endpoint(self, placement: Placement, values: Values, watch: Watch) -> dict[str, Any]:
        """Return the outputs by name, from the first endpoint of the placement that accepts the call."""
        registry = extension_context().registry
        remote = RemoteWorkflow(
            self._prompt(),
            self.plan.part,
            endpoints=[registry.client(name) for name in placement.endpoints],
            policy=placement.policy,
            max_queued=placement.max_queued,
            retry_policy=registry.retry_policy,
            strict_build=registry.strict_build,
            artifact_client=registry.artifact_client,
            priority=placement.priority,
            deadline=placement.deadline,
            compare_models=placement.models == "same",
        )
        sent = {name: port_value(listed) for name, listed in values.items()}
        options = {"preview_method": self._preview_method}
        outputs: dict[str, Any] = remote.call(sent, self._context, options, watch=watch, on_key=self._on_sent)
        return outputs

    def _call_split(self, placement: Placement, values: Values) -> dict[str, Any] | None:
        """Split the call over all endpoints of the placement and return the joined outputs; None if it goes to one endpoint."""
        partitioned = self._partitioned
        is_single = len(placement.endpoints) < 2 or placement.policy == "first" or placement.split == "none"
        if is_single or partitioned is None or self._call_id not in partitioned.splittable:
            return None
        splitter, pieces = split_call(self.plan.prompt, self.plan.inputs, self.plan.outputs, placement, values)
        if not pieces:
            return None
        split = SplitCall(self._call_endpoint, placement, self._on_event)
        results = split.run(pieces)
        outputs = splitter.join(pieces, results)
        if outputs is None:
            return None
        split.show()
        return {name: port_value(listed) for name, listed in outputs.items()}

    def _outputs(self, placement: Placement, values: Values) -> dict[str, Any]:
        """Return the outputs from the endpoints or, if none accepted the call and the placement allows it, from this ComfyUI."""
        try:
            return self._outputs_of_endpoints(placement, values)
        except (EndpointUnreachable, QueueFull, UnknownArtifact) as error:
            if len(placement.endpoints) == 1:
                error.details.setdefault("endpoint", placement.endpoints[0])
            if placement.fallback != LOCAL or "job" in error.details or (self._sent and error.details.get("reached")):
                raise
            _LOG.warning("Yggdrasill: part %r runs locally: %s", self.plan.part, error.message)
            sent = {name: port_value(load_handles(listed)) for name, listed in self._input_values().items()}
            return self.run_nested(ComfyGraph(self._prompt(), self.plan.part), sent)

    def _outputs_of_endpoints(self, placement: Placement, values: Values) -> dict[str, Any]:
        """Return the outputs from the endpoints. Inputs that are no longer stored where they were produced are produced again, once."""
        try:
            outputs = self._call_split(placement, values)
            return self._call_endpoint(placement, values, self._on_event) if outputs is None else outputs
        except (EndpointUnreachable, UnknownArtifact) as error:
            transferred = self._transferred()
            if not transferred:
                raise
            _LOG.warning("Yggdrasill: part %r: its inputs from other parts are produced again: %s", self.plan.part, error.message)
        for producer, lost in transferred.items():
            producer.renew(lost, self._call_again)
        return self._call_endpoint(placement, self._input_values(), self._on_event)

    def _transferred(self) -> dict[Producer, dict[tuple[int, int], Any]]:
        """Return the transferred inputs by the call that produced them, and by their positions."""
        found: dict[Producer, dict[tuple[int, int], Any]] = {}
        for value in (value for values in self.ports.values() for value in values or () if type(value) is TransferredValue):
            found.setdefault(value.producer, {})[value.position] = value.value
        return found

    def _call_again(self, producer: Producer) -> dict[int, list[Any]]:
        """Run the call of a producer again inside this call, and return its values by output socket."""
        partitioned = self._partitioned
        nodes = {} if partitioned is None else {partitioned.prompt[node]["inputs"].get("plan"): node for node in partitioned.calls}
        node_id = nodes.get(producer.plan.text, producer.node_id)
        again = PlacedCall(ports=producer.ports, node_id=node_id, seed=self.seed, token=self.token, plan=producer.plan)
        again._prompt_id, again._preview_method = self._prompt_id, self._preview_method
        again._outer_run, again._reentrant_slot = self._outer_run, self._reentrant_slot
        again._messages = again._make_messages(self._prompt_id, self._outer_run)
        path = (*self._context.path[:-1], node_id) if self._context.path else ()
        again._context = RunContext(self.seed, path, token=self.token, progress=again._messages.progress)
        return again._run()

    def _prompt(self) -> dict[str, Any]:
        """Return the prompt of the plan as it is sent: with the hidden inputs of its nodes, and such that each round of a loop executes it."""
        partitioned = self._partitioned
        if partitioned is None:
            return self.plan.prompt
        is_copy = self._call_id is not None and self._call_id != self.node_id
        nodes = dict.fromkeys((*self.plan.hidden, *(nodes_after_ports(self.plan.prompt) if is_copy else ())))
        if not nodes:
            return self.plan.prompt
        posted, extra_pnginfo = (partitioned.posted, partitioned.extra_pnginfo) if self.plan.hidden else ({}, None)
        execution = f"{self._prompt_id}/{self.node_id}" if is_copy else None
        return add_hidden(self.plan.prompt, nodes, posted, extra_pnginfo, execution)

    def _on_sent(self, key: str) -> None:
        self._sent = True

    def _output_values(self, socket: int, port: Mapping[str, Any], outputs: Mapping[str, Any], producer: Producer) -> list[Any]:
        """Return the values of an output port; a port without a value is blocked."""
        name = port["name"]
        if name not in outputs:
            values: list[Any] = [Blocked(self._inner.blocked.get(name))]
        elif port["hand_over"]:
            values = [
                each if type(each) is Blocked else TransferredValue(each, producer, (socket, index))
                for index, each in enumerate(port_values(outputs[name]))
            ]
        else:
            values = [load_handles(each) for each in port_values(outputs[name])]
        return as_blockers(values)

    def _placement(self) -> Placement:
        """Return the placement of the call: as determined when the prompt was posted, else as the registry defines it now.

        Raises:
            UnknownEndpoint. InvalidArgument: the part is not placed.
        """
        registry = extension_context().registry
        placed = self._partitioned.placements.get(self._call_id) if self._partitioned is not None and self._call_id is not None else None
        placement = placed or registry.placements.get(self.plan.part)
        if placement is None or placement.is_local:
            raise InvalidArgument(
                f"Part {self.plan.part!r} is no longer placed. Queue the workflow again, "
                f"or add 'graphs: {{{self.plan.part}: ENDPOINT}}' to endpoints.yaml."
            )
        for name in placement.endpoints:
            registry.endpoint(name)
        return placement

    def _input_values(self) -> dict[str, list[Any]]:
        values = {}
        for index, port in enumerate(self.plan.inputs):
            listed = self.ports.get(f"p{index}") or ()
            # transferred values were checked when they were produced
            made_here = iter(
                sendable_values(
                    port["name"], str(port.get("type", "*")), [value for value in listed if type(value) is not TransferredValue]
                )
            )
            values[port["name"]] = [value.value if type(value) is TransferredValue else next(made_here) for value in listed]
        return values

    # -- failures -----------------------------------------------------------------------------------------------

    def _failure(self, error: YggdrasillError, partitioned: PartitionedPrompt) -> InnerFailure:
        """Return the failure on the inner node where it occurred, else on the node that represents the call."""
        details = error.details
        node_errors = details.get("node_errors")
        node = details.get("node_id") or (
            next(iter(node_errors), None) if isinstance(node_errors, Mapping) else self._node_of_class(details)
        )
        inner = self._posted_node(str(node), partitioned) if node is not None else None
        name, kind = partitioned.display_node(self.node_id) if inner is None else (inner, str(partitioned.posted[inner]["class_type"]))
        if inner is None or "exception_type" not in details:
            type_name = f"{type(error).__module__}.{type(error).__qualname__}"
            return InnerFailure(name, kind, type_name, f"{public_message(error)}\n", raised=error.message)
        message, lines = str(details.get("exception_message", error.message)), details.get("traceback")
        traceback = tuple(map(str, lines if isinstance(lines, list) else ()))
        return InnerFailure(name, kind, str(details["exception_type"]), f"{message}\n", traceback, True, error.message)

    def _node_of_class(self, details: Mapping[str, Any]) -> str | None:
        """Return the first node whose class the endpoint lacks or has in a different version."""
        named = details.get("missing") or details.get("classes")
        classes = set(map(str, named)) if isinstance(named, list) else set()
        return next((name for name, node in self.plan.prompt.items() if node["class_type"] in classes), None)

    def _posted_node(self, node: str, partitioned: PartitionedPrompt) -> str | None:
        """Return the node of the posted prompt; for a port, the node whose value it carries."""
        if node in partitioned.posted:
            return node
        value = self.plan.prompt.get(node, {}).get("inputs", {}).get("value")
        return value[0] if is_link(value) and value[0] in partitioned.posted else None


def placed_call(plan: str, ports: Mapping[str, list[Any]], node_id: str) -> PlacedCall:
    """Return the call of a placed node, not started.

    Raises:
        InvalidConfig: the plan is not valid.
    """
    read = Plan.read(plan)
    return PlacedCall(ports=ports, node_id=node_id, plan=read)


def plan_asks_again(plan: Any) -> bool:
    """Return whether a plan, or a list with one plan, must run again although nothing in it changed."""
    text = plan[0] if isinstance(plan, list) and plan else plan
    try:
        return Plan.read(text).asks_again
    except InvalidConfig:
        return True
