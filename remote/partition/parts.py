"""What the partition takes and gives: parts of a workflow, and the calls that stand in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MOST_PORTS", "PLACED_NODE", "Part", "PartCall", "Partition", "PlacedInput", "PlacedOutput", "Relink"]

#: The class of the node that stands for a partitioned part.
PLACED_NODE = "YggdrasillPlacedPart"
#: A placed node has at most this many inputs, and this many outputs.
MOST_PORTS = 100


@dataclass(frozen=True)
class Part:
    """Nodes of a prompt under a name.

    ``node_id`` is the id of the node that takes their place, where one is wanted and free. ``credentials``: where the part runs may
    have the user's account for paid services; else nodes that need it stay here.
    """

    name: str
    nodes: frozenset[str]
    node_id: str | None = None
    credentials: bool = False


@dataclass(frozen=True)
class PlacedInput:
    """A value that a call needs: output ``slot`` of ``node`` of the user's prompt.

    ``known`` is false where the type does not tell whether the value can travel; then it is looked at when it is there.
    """

    name: str
    type: str
    node: str
    slot: int
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The entry of a plan."""
        return {"name": self.name, "type": self.type}


@dataclass(frozen=True)
class PlacedOutput:
    """A value that a call gives: output ``slot`` of ``node`` of the user's prompt.

    ``hand_over``: only other calls use it, so the endpoints may pass it between them. A value that is used here and by a call is
    two outputs.
    """

    name: str
    type: str
    hand_over: bool
    node: str
    slot: int
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The entry of a plan."""
        return {"name": self.name, "type": self.type, "hand_over": self.hand_over}


@dataclass(frozen=True)
class PartCall:
    """A part, or one ``stage`` of it, as a prompt of its own with ports; the nodes in it keep the ids of the user's prompt.

    ``node_id`` is the placed node in `Partition.prompt`. ``nodes`` are those that only run in this call; ``copies`` run somewhere
    else too, or belong to no part: they make what cannot travel.
    """

    part: str
    node_id: str
    stage: int
    prompt: dict[str, Any]
    inputs: tuple[PlacedInput, ...]
    outputs: tuple[PlacedOutput, ...]
    nodes: tuple[str, ...]
    copies: tuple[str, ...]
    asks_again: bool

    @property
    def plan(self) -> str:
        """What the placed node is given as canonical JSON: no url, no endpoint, no secret."""
        facts = {
            "part": self.part,
            "stage": self.stage,
            "prompt": self.prompt,
            "inputs": [port.to_dict() for port in self.inputs],
            "outputs": [port.to_dict() for port in self.outputs],
            "asks_again": self.asks_again,
        }
        return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class Relink:
    """An input that takes its value from before an output node instead of through it."""

    node: str
    input: str
    through: tuple[str, int]
    source: tuple[str, int]


@dataclass(frozen=True)
class Partition:
    """A prompt whose parts are replaced by placed nodes.

    ``calls`` are in an order in which they can run. ``stays`` says of each node of a part that runs here after all, why.
    ``kept``: nodes of a part that also run here, because something here needs what they make and it cannot travel.
    ``eager``: nodes here whose value a call takes although, run here, nothing might have asked for it.
    ``dropped``: nodes that nothing asked for needs and that hang on a partitioned one.
    """

    prompt: dict[str, Any]
    calls: tuple[PartCall, ...] = ()
    stays: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    eager: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    relinks: tuple[Relink, ...] = ()
