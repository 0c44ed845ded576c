"""What a stage's contract says about the state: which blocks and fields it reads and writes, and through which ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.draw.config import Child, Connection, ExposedPort
from yggdrasill.errors import InvalidConfig, unknown_message

__all__ = ["BLOCK_HUES", "BLOCK_NAMES", "Contract", "block_name", "contract_exposures", "read_contract"]

BLOCK_NAMES: dict[str, str] = {
    "1": "what should happen",
    "2": "configuration",
    "3": "artifacts",
    "4": "description",
    "5": "what really happened",
}
"""The five blocks of the canonical state, in a few words."""

BLOCK_HUES: dict[str, str] = {"1": "blue", "2": "violet", "3": "teal", "4": "amber", "5": "rose"}
"""One hue per canonical block."""


@dataclass(frozen=True)
class Contract:
    """Blocks and fields read and written, each as text (``"1"``, ``"glossary"``), and the ports they are mapped to."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: tuple[ExposedPort, ...]
    outputs: tuple[ExposedPort, ...]


def block_name(key: str) -> str:
    """``1 what should happen`` for a canonical block, the key itself for any other."""
    return f"{key} {BLOCK_NAMES[key]}" if key in BLOCK_NAMES else key


def read_contract(stage: Mapping[str, Any]) -> Contract:
    """The ``state_contract`` of a stage config; empty if it has none."""
    contract = stage.get("state_contract")
    if contract is None:
        return Contract((), (), (), ())
    if not isinstance(contract, Mapping):
        raise InvalidConfig(
            f"state_contract is a {type(contract).__name__}; a stage has a mapping with input_blocks and output_blocks there"
        )
    inputs, outputs = _mapping(contract, "mapping_input"), _mapping(contract, "mapping_output")
    reads = dict.fromkeys([*_keys(contract, "input_blocks"), *(entry.name for entry in inputs)])
    writes = dict.fromkeys([*_keys(contract, "output_blocks"), *(entry.name for entry in outputs)])
    return Contract(tuple(reads), tuple(writes), inputs, outputs)


def contract_exposures(
    contract: Contract, parts: Sequence[Child], links: Sequence[Connection]
) -> tuple[list[ExposedPort], list[ExposedPort]]:
    """The pills of a stage: mapped ports as they are; a block without a mapping goes to the port of its name (``2``, ``block_2``), else to the interface."""
    ids = {part.id for part in parts}
    for entry in (*contract.inputs, *contract.outputs):
        if entry.part not in ids:
            raise InvalidConfig(f"state_contract, {entry.name!r}: {unknown_message('pipeline', entry.part, ids)}")
    fed, leading = {link.target for link in links}, {link.source for link in links}
    first = [part for part in parts if part.id not in fed]
    last = [part for part in parts if part.id not in leading]
    inputs = _complete(contract.reads, contract.inputs, parts, first, "exposed_inputs")
    outputs = _complete(contract.writes, contract.outputs, parts, last, "exposed_outputs")
    return inputs, outputs


def _complete(
    keys: Sequence[str], mapped: Sequence[ExposedPort], parts: Sequence[Child], interface: Sequence[Child], exposed: str
) -> list[ExposedPort]:
    found = []
    for key in keys:
        own = [entry for entry in mapped if entry.name == key]
        named = own or [
            ExposedPort(key, part.id, port) for part in parts for port in (key, f"block_{key}") if port in _external(part, exposed)
        ]
        found += named or [ExposedPort(key, part.id, "") for part in interface]
    return [ExposedPort(block_name(entry.name), entry.part, entry.port) for entry in found]


def _external(part: Child, exposed: str) -> set[str]:
    """The external names in one list of exposures of a part's config."""
    listed = part.config.get(exposed) if part.config else None
    return {str(entry.get("name")) for entry in listed if isinstance(entry, Mapping)} if isinstance(listed, list | tuple) else set()


def _keys(contract: Mapping[str, Any], key: str) -> list[str]:
    value = contract.get(key) or []
    if not isinstance(value, list | tuple):
        raise InvalidConfig(f"state_contract.{key} is a {type(value).__name__}; it lists blocks and fields, such as [1, 2, 3]")
    return [str(block) for block in value]


def _mapping(contract: Mapping[str, Any], key: str) -> tuple[ExposedPort, ...]:
    """The entries of a mapping: each has block, stage_node_id and port, by name or as a list of the three."""
    value = contract.get(key) or []
    found = []
    for index, entry in enumerate(value if isinstance(value, list | tuple) else [value]):
        triple = [entry.get(name) for name in ("block", "stage_node_id", "port")] if isinstance(entry, Mapping) else entry
        if not isinstance(triple, list | tuple) or len(triple) != 3 or None in triple:
            raise InvalidConfig(
                f"state_contract.{key}[{index}] is no triple of block, stage_node_id and port; write [1, 'pipeline', 'port']"
            )
        found.append(ExposedPort(*(str(item) for item in triple)))
    return tuple(found)
