"""A call whose values are split over several endpoints at the same time, and that is shown as one call."""

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

__all__ = ["SplitCall", "split_call"]

Send = Callable[[Placement, Values, Watch], "dict[str, Any]"]
"""Makes one call with values at a placement; its events go to the watch function."""

Ports = Sequence[Mapping[str, Any]]

_SEEDS = frozenset({"noise_seed", "seed"})


def split_call(
    prompt: Mapping[str, Any], inputs: Ports, outputs: Ports, placement: Placement, values: Values
) -> tuple[Splitter, list[Piece]]:
    """Return how the values of a call are split and joined, and the pieces for the placement's endpoints; no pieces if one endpoint gets it."""
    reach = output_dependencies(prompt)
    kinds = [{str(port["name"]): str(port["type"]) for port in side} for side in (inputs, outputs)]
    count = len(placement.endpoints)
    lists: Splitter = ListSplitter(reach, *kinds)
    pieces = lists.split(values, count)
    if pieces or placement.split != "batch":
        return lists, pieces
    seeded = any(not _SEEDS.isdisjoint(node.get("inputs", {})) for node in prompt.values())
    batches = BatchSplitter(reach, *kinds, seeded=seeded)
    return batches, batches.split(values, count)


class SplitCall:
    """Runs pieces, each in a thread of its own. The progress of the first piece is shown, and the outputs of all."""

    def __init__(self, send: Send, placement: Placement, on_event: Watch) -> None:
        self._send = send
        self._placement = placement
        self._on_event = on_event
        self._shown: list[dict[str, Mapping[str, Any]]] = []

    def run(self, pieces: Sequence[Piece]) -> list[dict[str, list[Any]]]:
        """Return the output values of each piece, by name. Each piece has its own endpoint, and uses the others if that one is lost.

        Raises:
            YggdrasillError: the error of the first failed piece, after all have ended.
        """
        self._shown = [{} for _ in pieces]
        with ThreadPoolExecutor(len(pieces), thread_name_prefix="yggdrasill-piece") as pool:
            calls = [pool.submit(contextvars.copy_context().run, self._call_piece, number, piece) for number, piece in enumerate(pieces)]
        errors = [error for call in calls if (error := call.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        return [call.result() for call in calls]

    def show(self) -> None:
        """Report the outputs of inner nodes, merged as ComfyUI merges those of a list's values."""
        for node, first in self._shown[0].items():
            merged: dict[str, list[Any]] = {}
            files: list[Any] = []
            for number, shown in enumerate(self._shown):
                event = _renamed(dict(shown.get(node, ())), number)
                files += event.get("files") or ()
                for name, listed in (event.get("output") or {}).items():
                    merged.setdefault(name, []).extend(listed)
            self._on_event("comfy", {**first, "output": merged, "files": files})

    def _call_piece(self, number: int, piece: Piece) -> dict[str, list[Any]]:
        names = self._placement.endpoints
        rotated = (*names[number:], *names[:number])
        placement = replace(self._placement, endpoints=rotated, policy="first")
        outputs = self._send(placement, piece.values, partial(self._on_piece_event, number))
        return {name: port_values(value) for name, value in outputs.items()}

    def _on_piece_event(self, number: int, kind: str, data: Mapping[str, Any]) -> None:
        what = data.get("what") if kind == "comfy" else None
        if what == "executed":
            self._shown[number][str(data.get("node"))] = data
        elif number == 0 and what != "port_blocked":
            self._on_event(kind, data)


def _renamed(value: Any, number: int) -> Any:
    """Return the event of a piece with its files renamed, so that no two pieces have files of the same name."""
    if isinstance(value, list):
        return [_renamed(item, number) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(item, number) for key, item in value.items()}
    return {**found, "filename": f"{number}-{found['filename']}"} if {"filename", "subfolder", "type"} <= found.keys() else found
