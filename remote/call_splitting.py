"""Splitting"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, Blocked, is_link
from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.partition.schemas import NodeSchema
from yggdrasill.values.handles import load_handles

__all__ = ["Batches", "Lists", "Share", "Sharing", "Values", "can_be_shared", "reach_of"]

Values = Mapping[str, Sequence[Any]]
"""The values of each port, by its name."""

_BATCHED = frozenset({"IMAGE", "LATENT", "MASK"})
_NOISE_BLOCK = 16
"""torch draws normal numbers in blocks of so many; only items of whole blocks get the noise they have in a batch."""


@dataclass(frozen=True)
class Share:
    """The inputs for the places from ``start`` to ``stop``."""

    start: int
    stop: int
    values: dict[str, list[Any]]


class Sharing(ABC):
    """A way to share out. ``reach`` says by output which inputs it depends on, ``inputs`` and ``outputs`` the types by name."""

    def __init__(self, reach: Mapping[str, frozenset[str]], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self.reach = reach
        self.inputs = inputs
        self.outputs = outputs

    @abstractmethod
    def split(self, values: Values, count: int) -> list[Share]:
        """At most ``count`` shares in order, of nearly equal size; none if these values have to stay together."""

    @abstractmethod
    def join(self, shares: Sequence[Share], given: Sequence[Values]) -> dict[str, list[Any]] | None:
        """What the whole would have given; None if the shares gave something from which that cannot be told."""


class Lists(Sharing):
    """Several values on a port."""

    def split(self, values: Values, count: int) -> list[Share]:
        """As `Sharing.split`."""
        self._lengths = lengths = {name: len(listed) for name, listed in values.items()}
        most = max(lengths.values(), default=0)
        if most < 2 or 0 in lengths.values() or any(type(each) is Blocked for listed in values.values() for each in listed):
            return []
        return [
            Share(start, stop, {name: list(listed[min(start, len(listed) - 1) : stop]) for name, listed in values.items()})
            for start, stop in _bounds(most, count)
        ]

    def join(self, shares: Sequence[Share], given: Sequence[Values]) -> dict[str, list[Any]] | None:
        """As `Sharing.join`."""
        joined: dict[str, list[Any]] = {}
        for name in self.outputs:
            length = max((self._lengths[port] for port in self.reach[name]), default=1)
            found = joined[name] = []
            for share, outputs in zip(shares, given, strict=True):
                own = max(1, min(share.stop, length) - share.start)
                if len(outputs.get(name, ())) != own:
                    return None
                if share.start < length:
                    found += outputs[name]
        return joined


class Batches(Sharing):
    """One value on each port, of which some hold several pictures.

    ``seeded``: something inside draws random numbers; then only latents are taken apart, for only they say where they stood.
    """

    def __init__(
        self, reach: Mapping[str, frozenset[str]], inputs: Mapping[str, str], outputs: Mapping[str, str], *, seeded: bool = False
    ) -> None:
        super().__init__(reach, inputs, outputs)
        self.seeded = seeded

    def split(self, values: Values, count: int) -> list[Share]:
        """As `Sharing.split`."""
        single = {name: load_handles(listed[0]) for name, listed in values.items() if len(listed) == 1}
        sizes = {name: _size(value, self.inputs[name]) for name, value in single.items()}
        most = max((size for size in sizes.values() if size is not None), default=0)
        if len(single) < len(values) or most < 2 or any(size not in (1, most) for size in sizes.values()):
            return []
        self._batched = {name for name, size in sizes.items() if size == most}
        latents = [single[name] for name in self._batched if self.inputs[name] == "LATENT"]
        self._numbered, self._masked = any("batch_index" in each for each in latents), any(map(_is_masked, latents))
        if self.seeded and len(latents) < len(self._batched):
            return []
        if any(kind not in _BATCHED for name, kind in self.outputs.items() if not self._batched.isdisjoint(self.reach[name])):
            return []
        shares = []
        for start, stop in _bounds(most, count):
            pieces = {name: [_piece(value, start, stop) if name in self._batched else value] for name, value in single.items()}
            shares.append(Share(start, stop, pieces))
        return shares

    def join(self, shares: Sequence[Share], given: Sequence[Values]) -> dict[str, list[Any]] | None:
        """As `Sharing.join`."""
        joined: dict[str, list[Any]] = {}
        for name, kind in self.outputs.items():
            if self._batched.isdisjoint(self.reach[name]):
                joined[name] = list(given[0].get(name, ()))
                continue
            pieces = [load_handles(outputs[name][0]) for outputs in given if len(outputs.get(name, ())) == 1]
            sizes = [share.stop - share.start for share in shares]
            if len(pieces) < len(shares) or [_size(piece, kind) for piece in pieces] != sizes:
                return None
            if any(map(_is_masked, pieces)) and not (self._masked and all(map(_is_masked, pieces))):
                return None
            joined[name] = [_together(pieces, index=self._numbered)]
        return joined


def _bounds(length: int, count: int) -> list[tuple[int, int]]:
    count = min(count, length)
    edges = [length * index // count for index in range(count + 1)]
    return list(itertools.pairwise(edges)) if count > 1 else []


def _size(value: Any, kind: str) -> int | None:
    """How many pictures a value holds, 1 for one that is the same for all of them; None if it cannot be taken apart."""
    if kind == "LATENT":
        return _latent_size(value)
    if kind in _BATCHED:
        return len(value) if _is_tensor(value) and value.dim() else None
    if kind == "CONDITIONING":
        pairs = value if isinstance(value, list) else [()]
        return 1 if all(pair and _is_tensor(pair[0]) and len(pair[0]) == 1 for pair in pairs) else None
    return None if kind == "*" and not isinstance(value, (str, int, float, type(None))) else 1


def _latent_size(latent: Any) -> int | None:
    if not isinstance(latent, dict) or not _is_tensor(latent.get("samples")) or latent["samples"].dim() < 2:
        return None
    samples = latent["samples"]
    size = len(samples)
    index, mask = latent.get("batch_index"), latent.get("noise_mask")
    whole = index is not None or size == 1 or samples[0].numel() % _NOISE_BLOCK == 0
    fits = (index is None or len(index) == size) and (mask is None or (_is_tensor(mask) and mask.dim() > 2 and len(mask) == size))
    others = (item for key, item in latent.items() if key not in ("samples", "noise_mask"))
    return size if whole and fits and not any(_is_tensor(item) for item in others) else None


def _piece(value: Any, start: int, stop: int) -> Any:
    if not isinstance(value, dict):
        return value[start:stop]
    size = len(value["samples"])
    piece = {**value, "samples": value["samples"][start:stop]}
    piece["batch_index"] = list(value.get("batch_index") or range(size))[start:stop]
    if _is_masked(value):
        piece["noise_mask"] = value["noise_mask"][start:stop]
    return piece


def _together(pieces: Sequence[Any], *, index: bool) -> Any:
    """The whole of pieces; ``index``: the latents that went out had a ``batch_index`` of their own, so it stays."""
    import torch

    if not isinstance(pieces[0], dict):
        return torch.cat(list(pieces))
    joined = {**pieces[0], "samples": torch.cat([piece["samples"] for piece in pieces])}
    if "batch_index" in joined:
        joined["batch_index"] = [place for piece in pieces for place in piece["batch_index"]]
        if not index:
            del joined["batch_index"]
    if joined.get("noise_mask") is not None:
        joined["noise_mask"] = torch.cat([piece["noise_mask"] for piece in pieces])
    return joined


def _is_masked(value: Any) -> bool:
    return isinstance(value, dict) and value.get("noise_mask") is not None


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not getattr(value, "is_nested", False)


def can_be_shared(call: PartCall, schemas: Mapping[str, NodeSchema]) -> bool:
    """Whether ComfyUI calls every node inside once for each value, and nothing there may change by itself.

    A node that takes a list whole, or gives one, has to see it whole.
    """
    if call.asks_again:
        return False
    inside = [schemas.get(call.prompt[node]["class_type"]) for node in (*call.nodes, *call.copies)]
    return all(schema is not None and not schema.input_is_list and not any(schema.output_is_list) for schema in inside)


def reach_of(prompt: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """For each output of a prompt with ports, by name, the inputs that it depends on."""
    known: dict[str, frozenset[str]] = {}

    def inputs_behind(start: str) -> frozenset[str]:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            links = [value[0] for value in prompt[node].get("inputs", {}).values() if is_link(value)]
            unknown = [link for link in links if link not in known]
            if unknown:
                waiting += unknown
                continue
            own = {str(prompt[node]["inputs"]["name"])} if prompt[node]["class_type"] == INPUT_NODE else set()
            known[node] = frozenset(own.union(*(known[link] for link in links)))
            waiting.pop()
        return known[start]

    sinks = [node for node in prompt if prompt[node]["class_type"] == OUTPUT_NODE]
    return {str(prompt[node]["inputs"]["name"]): inputs_behind(node) for node in sinks}
