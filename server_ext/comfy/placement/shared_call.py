"""A call whose values go to several endpoints at the same time, and that is shown as the one call it stands for."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from yggdrasill.errors import Cancelled
from yggdrasill.remote.call_splitting import BatchSplitter, ListSplitter, Piece, Splitter, Values, output_dependencies
from yggdrasill.remote.calls import Watch
from yggdrasill.remote.comfy_ports import port_values
from yggdrasill.remote.placement import Placement

__all__ = ["SharedCall", "share_out"]

Send = Callable[[Placement, Values, Watch], "dict[str, Any]"]
"""Makes one call: where, with what, and who is told."""

Ports = Sequence[Mapping[str, Any]]

_SEEDS = frozenset({"noise_seed", "seed"})


def share_out(
    prompt: Mapping[str, Any], inputs: Ports, outputs: Ports, placement: Placement, values: Values
) -> tuple[Splitter, list[Piece]]:
    """The shares of a call for the placement's endpoints, none if it goes to one of them, and what puts them together again."""
    reach = output_dependencies(prompt)
    kinds = [{str(port["name"]): str(port["type"]) for port in side} for side in (inputs, outputs)]
    count = len(placement.endpoints)
    lists: Splitter = ListSplitter(reach, *kinds)
    shares = lists.split(values, count)
    if shares or placement.split != "batch":
        return lists, shares
    seeded = any(not _SEEDS.isdisjoint(node.get("inputs", {})) for node in prompt.values())
    batches = BatchSplitter(reach, *kinds, seeded=seeded)
    return batches, batches.split(values, count)


class SharedCall:
    """Runs shares, each in a thread of its own. Of what happens inside, the first share's progress is shown, and the outputs of all."""

    def __init__(self, send: Send, placement: Placement, told: Watch) -> None:
        self._send = send
        self._placement = placement
        self._told = told
        self._shown: list[dict[str, Mapping[str, Any]]] = []

    def run(self, shares: Sequence[Piece]) -> list[dict[str, list[Any]]]:
        """The values of each share's outputs, by name. Each share has an endpoint of its own, and the others to go to if that is lost.

        Raises:
            YggdrasillError: what the first share that failed raised, when the others are over.
        """
        self._shown = [{} for _ in shares]
        with ThreadPoolExecutor(len(shares), thread_name_prefix="yggdrasill-share") as pool:
            calls = [pool.submit(contextvars.copy_context().run, self._one, number, share) for number, share in enumerate(shares)]
        errors = [error for call in calls if (error := call.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        return [call.result() for call in calls]

    def show(self) -> None:
        """Tell what nodes inside showed, put together as ComfyUI does for the values of a list."""
        for node, first in self._shown[0].items():
            together: dict[str, list[Any]] = {}
            files: list[Any] = []
            for number, shown in enumerate(self._shown):
                event = _renamed(dict(shown.get(node, ())), number)
                files += event.get("files") or ()
                for name, listed in (event.get("output") or {}).items():
                    together.setdefault(name, []).extend(listed)
            self._told("comfy", {**first, "output": together, "files": files})

    def _one(self, number: int, share: Piece) -> dict[str, list[Any]]:
        names = self._placement.endpoints
        turned = (*names[number:], *names[:number])
        placement = replace(self._placement, endpoints=turned, policy="first")
        outputs = self._send(placement, share.values, partial(self._hear, number))
        return {name: port_values(value) for name, value in outputs.items()}

    def _hear(self, number: int, kind: str, data: Mapping[str, Any]) -> None:
        what = data.get("what") if kind == "comfy" else None
        if what == "executed":
            self._shown[number][str(data.get("node"))] = data
        elif number == 0 and what != "port_blocked":
            self._told(kind, data)


def _renamed(value: Any, number: int) -> Any:
    """What a share told, with files in it under names that no other share's files have."""
    if isinstance(value, list):
        return [_renamed(item, number) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(item, number) for key, item in value.items()}
    return {**found, "filename": f"{number}-{found['filename']}"} if {"filename", "subfolder", "type"} <= found.keys() else found
