"""A prompt with parts at endpoints on its way through ComfyUI. Clients, queue and history see the prompt that was posted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.partition.placement_keys import PlacedPart
from yggdrasill.remote.placement import Placement

__all__ = ["InnerFailure", "PartitionedPrompt", "PostedPrompt"]


@dataclass(frozen=True)
class InnerFailure:
    """The failure of a node at an endpoint, as ComfyUI reports failures."""

    node_id: str
    node_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...] = ()


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
    #: By node id of a call: its failure, and the inner node that was last reported running.
    failures: dict[str, InnerFailure] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    #: Inner nodes that executed, and those whose outputs were shown, in this run.
    executed: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)

    def inner_ids(self, node_id: str) -> list[str]:
        """Return the nodes that run inside the call ``node_id``, in the order of the posted prompt."""
        inside = self.calls[node_id].prompt
        return [name for name in self.posted if name in inside and name not in self.prompt]

    def display_node(self, node_id: str) -> tuple[str, str]:
        """Return the node of the posted prompt, by id and class, that messages about a call name when no inner node is known."""
        inner = self.running.get(node_id) or next(iter(self.inner_ids(node_id)), None)
        return (node_id, self.prompt[node_id]["class_type"]) if inner is None else (inner, self.posted[inner]["class_type"])


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
