"""The contracts of a stage: what it reads and writes of the state and how that maps to ports, and what a world calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.stage.state import State, block_number, is_filled

__all__ = ["CONTEXT_SOURCES", "PortMapping", "StageLike", "StateContract", "StateKey", "infer_port_mapping", "resolve_source", "state_key"]

StateKey = int | str

#: The sources of a port besides blocks and extra fields.
CONTEXT_SOURCES = ("action", "content")


def state_key(key: Any) -> StateKey:
    """Return a block's number (from 1, "1" or "block_1"), or the name of a field.

    Raises:
        InvalidArgument, InvalidState
    """
    if isinstance(key, str) and key.startswith("block_"):
        key = key[len("block_") :]
    if isinstance(key, str) and not key.isdecimal():
        if not key.strip():
            raise InvalidArgument("a state block is 1 to 5, a field has a non-empty name")
        return key
    return block_number(key)


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A block or field (or ``action``, ``content``) and the pipeline port that it feeds or that writes it."""

    block: StateKey
    stage_node_id: str
    port: str

    @classmethod
    def of(cls, entry: Any) -> PortMapping:
        """Build from ``(block, stage_node_id, port)`` or a dict of the three.

        Raises:
            InvalidArgument
        """
        if isinstance(entry, PortMapping):
            return entry
        if isinstance(entry, Mapping):
            if set(entry) != {"block", "stage_node_id", "port"}:
                raise InvalidArgument(f"a mapping entry has block, stage_node_id and port; this one has {format_options(map(str, entry))}")
            entry = (entry["block"], entry["stage_node_id"], entry["port"])
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 3:
            raise InvalidArgument(f"a mapping entry is (block, stage_node_id, port), got {entry!r}")
        return cls(state_key(entry[0]), str(entry[1]), str(entry[2]))

    def to_config(self) -> dict[str, Any]:
        """Return ``{block, stage_node_id, port}``."""
        return {"block": self.block, "stage_node_id": self.stage_node_id, "port": self.port}


@dataclass(frozen=True, slots=True)
class StateContract:
    """The blocks that a stage reads and writes.

    Without mappings, ports are found by name (``2``, ``block_2``, a field's name), else by order. With ``carry=False``
    the new state has the written blocks only.
    """

    input_blocks: tuple[StateKey, ...] = ()
    output_blocks: tuple[StateKey, ...] = ()
    mapping_input: tuple[PortMapping, ...] | None = None
    mapping_output: tuple[PortMapping, ...] | None = None
    carry: bool = True

    @classmethod
    def of(
        cls,
        input_blocks: Iterable[Any] = (),
        output_blocks: Iterable[Any] = (),
        mapping_input: Iterable[Any] | None = None,
        mapping_output: Iterable[Any] | None = None,
        carry: bool = True,
    ) -> StateContract:
        """Build from the forms that configs and callers use.

        Raises:
            InvalidArgument, InvalidState
        """
        return cls(
            tuple(state_key(key) for key in input_blocks),
            tuple(state_key(key) for key in output_blocks),
            None if mapping_input is None else tuple(PortMapping.of(entry) for entry in mapping_input),
            None if mapping_output is None else tuple(PortMapping.of(entry) for entry in mapping_output),
            bool(carry),
        )

    def to_config(self) -> dict[str, Any]:
        """Return the JSON form."""
        config: dict[str, Any] = {"input_blocks": list(self.input_blocks), "output_blocks": list(self.output_blocks)}
        for name, mapping in (("mapping_input", self.mapping_input), ("mapping_output", self.mapping_output)):
            if mapping is not None:
                config[name] = [entry.to_config() for entry in mapping]
        return config if self.carry else {**config, "carry": False}


def resolve_source(state: State, action: Any, block: StateKey) -> Any:
    """Return the value that feeds a port, or None. Empty ``content`` is passed on; an empty block or action counts as absent."""
    if block == "content":
        return state.content
    value = action if block == "action" else state[block]
    return value if is_filled(value) else None


def infer_port_mapping(blocks: Sequence[StateKey], ports: Sequence[tuple[str, str]]) -> list[PortMapping]:
    """Pair blocks with interface ports ``(stage_node_id, port)``: by name where one matches, the rest in order."""
    left = list(ports)
    found: dict[StateKey, tuple[str, str]] = {}
    for block in blocks:
        names = (f"block_{block}", str(block)) if isinstance(block, int) else (block,)
        match = next((port for port in left if port[1] in names), None)
        if match is not None:
            found[block] = match
            left.remove(match)
    for block in blocks:
        if block not in found and left:
            found[block] = left.pop(0)
    return [PortMapping(block, *found[block]) for block in blocks if block in found]


@runtime_checkable
class StageLike(Protocol):
    """What a world calls: a `Stage`, or a proxy of one behind an endpoint."""

    @property
    def stage_id(self) -> str:
        """The stage's id."""
        ...

    @property
    def role(self) -> str | None:
        """Which of the five stages it is, or None."""
        ...

    def should_run(self, state: State) -> bool:
        """Return whether the execution condition holds."""
        ...

    def run(self, state: State, *, action: Any = None, **options: Any) -> State:
        """Return a new state; the given one is unchanged."""
        ...

    def preview(self, state: State) -> State:
        """Return the state with a text in each block that a run would write."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values."""
        ...
