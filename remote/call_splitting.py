"""Splitting of one call between several endpoints: the values are divided into pieces and the results joined in order.

List: ComfyUI calls a node once for each value of a list, and repeats the last value of a shorter one, so any slice of the values
yields that slice of the outputs. Batch: images, masks and latents are split along their first dimension, for parts that the registry
declares to treat each image independently; a latent carries ``batch_index``, so its noise is that of its position in the whole batch
(``comfy.sample.prepare_noise``). If pieces might give a different result than the whole, nothing is split.
"""

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

__all__ = ["BatchSplitter", "ListSplitter", "Piece", "Splitter", "Values", "can_be_split", "output_dependencies"]

Values = Mapping[str, Sequence[Any]]
"""The values of each port, by port name."""

_BATCHED = frozenset({"IMAGE", "LATENT", "MASK"})
_NOISE_BLOCK = 16
"""torch draws normal numbers in blocks of this size; only items of whole blocks get the same noise as in a batch."""


@dataclass(frozen=True)
class Piece:
    """The inputs for the positions ``start`` (inclusive) to ``stop`` (exclusive)."""

    start: int
    stop: int
    values: dict[str, list[Any]]


class Splitter(ABC):
    """A way to split. ``dependencies`` maps each output to the inputs it depends on, ``inputs`` and ``outputs`` map names to types."""

    def __init__(self, dependencies: Mapping[str, frozenset[str]], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self.dependencies = dependencies
        self.inputs = inputs
        self.outputs = outputs

    @abstractmethod
    def split(self, values: Values, count: int) -> list[Piece]:
        """Return at most ``count`` pieces in order, of nearly equal size, or none if these values must stay together."""

    @abstractmethod
    def join(self, pieces: Sequence[Piece], results: Sequence[Values]) -> dict[str, list[Any]] | None:
        """Return the result of the whole call, or None if it cannot be determined from the results of the pieces."""


class ListSplitter(Splitter):
    """Splits ports with several values."""

    def split(self, values: Values, count: int) -> list[Piece]:
        """See `Splitter.split`."""
        self._lengths = lengths = {name: len(listed) for name, listed in values.items()}
        most = max(lengths.values(), default=0)
        if most < 2 or 0 in lengths.values() or any(type(each) is Blocked for listed in values.values() for each in listed):
            return []
        return [
            Piece(start, stop, {name: list(listed[min(start, len(listed) - 1) : stop]) for name, listed in values.items()})
            for start, stop in _bounds(most, count)
        ]

    def join(self, pieces: Sequence[Piece], results: Sequence[Values]) -> dict[str, list[Any]] | None:
        """See `Splitter.join`."""
        joined: dict[str, list[Any]] = {}
        for name in self.outputs:
            length = max((self._lengths[port] for port in self.dependencies[name]), default=1)
            found = joined[name] = []
            for piece, outputs in zip(pieces, results, strict=True):
                expected = max(1, min(piece.stop, length) - piece.start)
                if len(outputs.get(name, ())) != expected:
                    return None
                if piece.start < length:
                    found += outputs[name]
        return joined


class BatchSplitter(Splitter):
    """Splits ports with one value each, of which some contain several images.

    ``seeded``: a node inside draws random numbers; then only latents are split, because only they record their position.
    """

    def __init__(
        self, dependencies: Mapping[str, frozenset[str]], inputs: Mapping[str, str], outputs: Mapping[str, str], *, seeded: bool = False
    ) -> None:
        super().__init__(dependencies, inputs, outputs)
        self.seeded = seeded

    def split(self, values: Values, count: int) -> list[Piece]:
        """See `Splitter.split`."""
        single = {name: load_handles(listed[0]) for name, listed in values.items() if len(listed) == 1}
        sizes = {name: _size(value, self.inputs[name]) for name, value in single.items()}
        most = max((size for size in sizes.values() if size is not None), default=0)
        if len(single) < len(values) or most < 2 or any(size not in (1, most) for size in sizes.values()):
            return []
        self._batched = {name for name, size in sizes.items() if size == most}
        latents = [single[name] for name in self._batched if self.inputs[name] == "LATENT"]
        self._has_batch_index, self._has_noise_mask = any("batch_index" in each for each in latents), any(map(_is_masked, latents))
        if self.seeded and len(latents) < len(self._batched):
            return []
        if any(kind not in _BATCHED for name, kind in self.outputs.items() if not self._batched.isdisjoint(self.dependencies[name])):
            return []
        pieces = []
        for start, stop in _bounds(most, count):
            sliced = {name: [_slice(value, start, stop) if name in self._batched else value] for name, value in single.items()}
            pieces.append(Piece(start, stop, sliced))
        return pieces

    def join(self, pieces: Sequence[Piece], results: Sequence[Values]) -> dict[str, list[Any]] | None:
        """See `Splitter.join`."""
        joined: dict[str, list[Any]] = {}
        for name, kind in self.outputs.items():
            if self._batched.isdisjoint(self.dependencies[name]):
                joined[name] = list(results[0].get(name, ()))
                continue
            parts = [load_handles(outputs[name][0]) for outputs in results if len(outputs.get(name, ())) == 1]
            sizes = [piece.stop - piece.start for piece in pieces]
            if len(parts) < len(pieces) or [_size(part, kind) for part in parts] != sizes:
                return None
            if any(map(_is_masked, parts)) and not (self._has_noise_mask and all(map(_is_masked, parts))):
                return None
            joined[name] = [_concatenate(parts, keep_index=self._has_batch_index)]
        return joined


def _bounds(length: int, count: int) -> list[tuple[int, int]]:
    count = min(count, length)
    edges = [length * index // count for index in range(count + 1)]
    return list(itertools.pairwise(edges)) if count > 1 else []


def _size(value: Any, kind: str) -> int | None:
    """Return the number of images in a value, 1 for a value that applies to all of them, or None if it cannot be split."""
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
    sliceable = index is not None or size == 1 or samples[0].numel() % _NOISE_BLOCK == 0
    fits = (index is None or len(index) == size) and (mask is None or (_is_tensor(mask) and mask.dim() > 2 and len(mask) == size))
    others = (item for key, item in latent.items() if key not in ("samples", "noise_mask"))
    return size if sliceable and fits and not any(_is_tensor(item) for item in others) else None


def _slice(value: Any, start: int, stop: int) -> Any:
    if not isinstance(value, dict):
        return value[start:stop]
    size = len(value["samples"])
    piece = {**value, "samples": value["samples"][start:stop]}
    piece["batch_index"] = list(value.get("batch_index") or range(size))[start:stop]
    if _is_masked(value):
        piece["noise_mask"] = value["noise_mask"][start:stop]
    return piece


def _concatenate(pieces: Sequence[Any], *, keep_index: bool) -> Any:
    """Return the joined value. ``keep_index``: the latents that were sent had a ``batch_index``, so the result keeps it."""
    import torch

    if not isinstance(pieces[0], dict):
        return torch.cat(list(pieces))
    joined = {**pieces[0], "samples": torch.cat([piece["samples"] for piece in pieces])}
    if "batch_index" in joined:
        joined["batch_index"] = [place for piece in pieces for place in piece["batch_index"]]
        if not keep_index:
            del joined["batch_index"]
    if joined.get("noise_mask") is not None:
        joined["noise_mask"] = torch.cat([piece["noise_mask"] for piece in pieces])
    return joined


def _is_masked(value: Any) -> bool:
    return isinstance(value, dict) and value.get("noise_mask") is not None


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not getattr(value, "is_nested", False)


def can_be_split(call: PartCall, schemas: Mapping[str, NodeSchema]) -> bool:
    """Return whether ComfyUI calls every node inside once per value and no node may change between runs.

    A node that takes or returns a whole list must receive the whole list.
    """
    if call.asks_again:
        return False
    inside = [schemas.get(call.prompt[node]["class_type"]) for node in (*call.nodes, *call.copies)]
    return all(schema is not None and not schema.input_is_list and not any(schema.output_is_list) for schema in inside)


def output_dependencies(prompt: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Map each output of a prompt with ports, by name, to the inputs that it depends on."""
    inputs_of: dict[str, frozenset[str]] = {}

    def inputs_behind(start: str) -> frozenset[str]:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            links = [value[0] for value in prompt[node].get("inputs", {}).values() if is_link(value)]
            unresolved = [link for link in links if link not in inputs_of]
            if unresolved:
                waiting += unresolved
                continue
            direct = {str(prompt[node]["inputs"]["name"])} if prompt[node]["class_type"] == INPUT_NODE else set()
            inputs_of[node] = frozenset(direct.union(*(inputs_of[link] for link in links)))
            waiting.pop()
        return inputs_of[start]

    sinks = [node for node in prompt if prompt[node]["class_type"] == OUTPUT_NODE]
    return {str(prompt[node]["inputs"]["name"]): inputs_behind(node) for node in sinks}
