"""A prompt with parts at endpoints on its way through ComfyUI. Clients, queue and history see the prompt that was posted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.partition.parts import PLACED_NODE, PartCall
from yggdrasill.remote.partition.placement_keys import PlacedPart
from yggdrasill.remote.placement import Placement

__all__ = ["InnerFailure", "NodeIds", "PartitionedPrompt", "PostedPrompt"]


@dataclass(frozen=True)
class NodeIds:
    """The ids that ComfyUI reports for a node.

    ``node`` is its own id. A node that another node created while it ran, such as a copy in a loop, has other values in the rest:
    ``display`` is the node that the editor shows for it, ``parent`` its creator, and ``real`` the node of the prompt that started it all.
    """

    node: str
    display: str
    parent: str | None
    real: str

    @classmethod
    def of(cls, node: str, display: Any = None, parent: Any = None, real: Any = None) -> NodeIds:
        """Return the ids of a node; the defaults are those of a node of the prompt itself."""
        shown = node if display is None else str(display)
        return cls(node, shown, None if parent is None else str(parent), shown if real is None else str(real))


@dataclass(frozen=True)
class InnerFailure:
    """The failure of a node at an endpoint, as ComfyUI reports failures.

    ``is_local_error``: a local run would have failed with it too. ``raised`` is the message of the exception that the call raised.
    """

    node_id: str
    node_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...] = ()
    is_local_error: bool = False
    raised: str = ""


@dataclass
class PartitionedPrompt:
    """The prompt that runs locally in place of the posted one, and its calls with their placements. Several threads update it during the run."""

    prompt: dict[str, Any]
    posted: Mapping[str, Any]
    calls: Mapping[str, PartCall]
    placements: Mapping[str, Placement]
    #: The node ids of calls whose values may be split over several endpoints.
    splittable: frozenset[str] = frozenset()
    #: The ``extra_pnginfo`` of the request.
    extra_pnginfo: Any = None
    #: ComfyUI's dynamic prompt while the prompt runs: it also has the nodes that other nodes created, such as copies of calls in loops.
    dynprompt: Any = None
    #: By running id of a call, see `call_of`: its failure, and the inner node that was last reported running.
    failures: dict[str, InnerFailure] = field(default_factory=dict)
    running: dict[str, NodeIds] = field(default_factory=dict)
    #: The running ids of calls that ran. A call that did not run may be in ComfyUI's cache.
    started: set[str] = field(default_factory=set)
    #: Inner nodes that executed, and those whose outputs were shown, in this run.
    executed: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)
    #: The ids of the inner nodes of copies, by node. ComfyUI's dynamic prompt does not have them.
    copied: dict[str, NodeIds] = field(default_factory=dict)
    #: Inner classes whose outputs ComfyUI shows again when it takes them from its cache.
    repeated: frozenset[str] = frozenset()

    def call_of(self, running_id: str) -> str | None:
        """Return the id of the call that a node of the running prompt makes, or None.

        A placed node in a loop, or in any other node that copies the nodes before it, runs as copies with ids of their own. A copy has the
        plan of its call.
        """
        if running_id in self.calls:
            return running_id
        if self.dynprompt is None or not self.dynprompt.has_node(running_id):
            return None
        node = self.dynprompt.get_node(running_id)
        return self._calls_by_plan.get(node["inputs"].get("plan")) if node["class_type"] == PLACED_NODE else None

    @cached_property
    def _calls_by_plan(self) -> dict[Any, str]:
        return {call.plan: node_id for node_id, call in self.calls.items()}

    def ids_in(self, running_id: str, inner: NodeIds) -> NodeIds:
        """Return the ids of a node inside the call of ``running_id``, as a local run would report them.

        ``inner`` are its ids at the endpoint. For a copy of a call they are those that the copies of its inner nodes would have.
        """
        call_id = self.call_of(running_id)
        if call_id is None or call_id == running_id:
            return inner
        prefix = running_id.removesuffix(call_id) if running_id.endswith(call_id) else f"{running_id}."
        display = str(self.dynprompt.get_display_node_id(running_id))
        return NodeIds(
            node=prefix + inner.node,
            display=inner.display if display == call_id else display,
            parent=self.dynprompt.get_parent_node_id(running_id) if inner.parent is None else prefix + inner.parent,
            real=str(self.dynprompt.get_real_node_id(running_id)),
        )

    def inner_ids(self, call_id: str) -> list[str]:
        """Return the nodes that run inside a call, in the order of the posted prompt."""
        inside = self.calls[call_id].prompt
        return [name for name in self.posted if name in inside and name not in self.prompt]

    def inner_nodes(self, running_id: str) -> list[NodeIds]:
        """Return the ids of the nodes inside the call of ``running_id``, or nothing if it makes no call."""
        call_id = self.call_of(running_id)
        return [self.ids_in(running_id, NodeIds.of(inner)) for inner in self.inner_ids(call_id)] if call_id is not None else []

    def display_node(self, running_id: str) -> tuple[str, str]:
        """Return the node of the posted prompt, by id and class, that messages about a call name when no inner node is known."""
        call_id = self.call_of(running_id) or running_id
        running = self.running.get(running_id)
        inner = running.display if running is not None else next(iter(self.inner_ids(call_id)), None)
        if inner is None or inner not in self.posted:
            return call_id, self.prompt[call_id]["class_type"]
        return inner, self.posted[inner]["class_type"]


class PostedPrompt(dict[str, Any]):
    """The prompt as it was posted, with the parts that are placed at endpoints. ComfyUI copies it into its history as a plain dict."""

    def __init__(
        self,
        prompt: Mapping[str, Any],
        parts: tuple[PlacedPart, ...] = (),
        problem: YggdrasillError | None = None,
        extra_pnginfo: Any = None,
    ) -> None:
        super().__init__(prompt)
        self.parts = parts
        #: The ``extra_pnginfo`` of the request, which nodes may have as a hidden input.
        self.extra_pnginfo = extra_pnginfo
        #: The error if the parts cannot be determined.
        self.problem = problem
        #: Whether validation has seen the prompt. One that it has not seen must not run, because its parts would run locally.
        self.is_checked = False
        #: The prompt that runs instead, set by validation; None if it runs unchanged.
        self.partitioned: PartitionedPrompt | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)
