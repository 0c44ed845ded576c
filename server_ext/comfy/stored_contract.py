"""The contract that a Remote Graph node stores, and the check that the graph still has the same ports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.remote.contract import RemoteContract

__all__ = ["StoredContract"]

_SOCKETS = {"image": "IMAGE", "text": "STRING"}


@dataclass(frozen=True)
class StoredContract:
    """Names and types of the ports that the node's sockets were created for, in order. A type is None where only the name was stored."""

    inputs: tuple[tuple[str, str | None], ...]
    outputs: tuple[tuple[str, str | None], ...]
    hash: str | None

    @classmethod
    def read(cls, text: str) -> StoredContract | None:
        """Parse the contract that a node stores as JSON; return None for an empty text.

        Raises:
            InvalidConfig
        """
        if not text.strip():
            return None
        try:
            document = json.loads(text)
            inputs, outputs = (tuple((str(entry["name"]), _type(entry)) for entry in document[side]) for side in ("inputs", "outputs"))
            graph_hash = document.get("hash")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InvalidConfig("The contract stored in the node is not valid. Choose the graph again, or clear the contract.") from None
        return cls(inputs, outputs, graph_hash if isinstance(graph_hash, str) else None)

    def check(self, contract: RemoteContract, where: str) -> None:
        """Raise `InvalidArgument` if the sockets were created for other ports than those of ``contract``. ``where`` names its server in messages."""
        for side, stored, entries in (("input", self.inputs, contract.inputs), ("output", self.outputs, contract.outputs)):
            current = tuple((str(entry["name"]), _type(entry) or "*") for entry in entries)
            if len(stored) != len(current) or any(
                name != old or kind not in (None, new) for (old, kind), (name, new) in zip(stored, current, strict=True)
            ):
                raise InvalidArgument(
                    f"The {side}s of graph {contract.graph_id!r} at {where} are {_format_ports(current)}, but this node has sockets for "
                    f"{_format_ports(stored)}. Choose the graph again to update the sockets."
                )


def _type(entry: Mapping[str, Any]) -> str | None:
    """Return the type of the socket for a port, as the editor chooses it."""
    kind, dtype = entry.get("comfy_type"), entry.get("dtype")
    if kind:
        return str(kind)
    if not isinstance(dtype, str):
        return None
    return dtype.removeprefix("comfy/") if dtype.startswith("comfy/") else _SOCKETS.get(dtype, "*")


def _format_ports(ports: Iterable[tuple[str, str | None]]) -> str:
    return "[" + ", ".join(repr(name) if kind is None else f"{name!r} ({kind})" for name, kind in ports) + "]"
