"""A prompt with parts that run elsewhere, on its way through ComfyUI: to everybody it is the prompt that its sender wrote."""

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
    """What went wrong in a node that ran elsewhere, as ComfyUI tells of it."""

    node_id: str
    node_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...] = ()


@dataclass
class PartitionedPrompt:
    """What runs here in the place of a posted prompt, what runs elsewhere, and where. Filled in while it runs by several threads."""

    prompt: dict[str, Any]
    posted: Mapping[str, Any]
    calls: Mapping[str, PartCall]
    placements: Mapping[str, Placement]
    #: The ids of nodes that stand for calls whose values may go to several endpoints.
    shareable: frozenset[str] = frozenset()
    #: By id of the node that stands for a call: what failed inside, and the inner node that was last seen running.
    failures: dict[str, InnerFailure] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    #: Inner nodes that ran, and those whose outputs were shown, in this run.
    executed: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)

    def inner_ids(self, node_id: str) -> list[str]:
        """The nodes that run elsewhere in the place of which ``node_id`` stands here, in the order of the posted prompt."""
        inside = self.calls[node_id].prompt
        return [name for name in self.posted if name in inside and name not in self.prompt]

    def display_node(self, node_id: str) -> tuple[str, str]:
        """Which node of the posted prompt, by id and class, speaks for a call when no inner one is known to."""
        inner = self.running.get(node_id) or next(iter(self.inner_ids(node_id)), None)
        return (node_id, self.prompt[node_id]["class_type"]) if inner is None else (inner, self.posted[inner]["class_type"])


class PostedPrompt(dict[str, Any]):
    """The prompt as it was posted, with the parts that are to run elsewhere. ComfyUI copies it into its history as a plain dict."""

    def __init__(self, prompt: Mapping[str, Any], parts: tuple[PlacedPart, ...] = (), problem: YggdrasillError | None = None) -> None:
        super().__init__(prompt)
        self.parts = parts
        #: Why it cannot be partitioned, if that is known before it is checked.
        self.problem = problem
        #: What runs instead, once it was checked; None: it runs as it is.
        self.partitioned: PartitionedPrompt | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)
