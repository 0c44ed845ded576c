"""The contract that a Remote Graph node stores, and what of it the graph no longer keeps to."""

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
    """Names and types of the ports for which the node's sockets were made, in order; a type is None where only the name was stored."""

    inputs: tuple[tuple[str, str | None], ...]
    outputs: tuple[tuple[str, str | None], ...]
    hash: str | None

    @classmethod
    def read(cls, text: str) -> StoredContract | None:
        """From the node's constant; None if nothing is stored.

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
            raise InvalidConfig("the contract stored in the node is none; choose the graph again, or clear it") from None
        return cls(inputs, outputs, graph_hash if isinstance(graph_hash, str) else None)

    def check(self, contract: RemoteContract, where: str) -> None:
        """Raise `InvalidArgument` if the sockets were made for other ports than the graph has now."""
        for side, was, now in (("input", self.inputs, contract.inputs), ("output", self.outputs, contract.outputs)):
            found = tuple((str(entry["name"]), _type(entry) or "*") for entry in now)
            if len(was) != len(found) or any(
                name != old or kind not in (None, new) for (old, kind), (name, new) in zip(was, found, strict=True)
            ):
                raise InvalidArgument(
                    f"the {side}s of graph {contract.graph_id!r} at {where} are {_words(found)}, and this node was made for {_words(was)}; "
                    "choose the graph again so that its sockets follow"
                )


def _type(entry: Mapping[str, Any]) -> str | None:
    """The type of the socket for a port, as the editor makes it."""
    kind, dtype = entry.get("comfy_type"), entry.get("dtype")
    if kind:
        return str(kind)
    if not isinstance(dtype, str):
        return None
    return dtype.removeprefix("comfy/") if dtype.startswith("comfy/") else _SOCKETS.get(dtype, "*")


def _words(ports: Iterable[tuple[str, str | None]]) -> str:
    return "[" + ", ".join(repr(name) if kind is None else f"{name!r} ({kind})" for name, kind in ports) + "]"
