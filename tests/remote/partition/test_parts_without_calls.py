"""A part whose nodes only make non-transferable values for other parts: they run there as copies, and the part has no call."""

from __future__ import annotations

import pytest

from samples.comfy_prompts import SCHEMAS
from yggdrasill.errors import PartitionError
from yggdrasill.remote.partition import Part, partition_prompt, restore_prompt

PROMPT = {
    "1": {"class_type": "LoadModel", "inputs": {"name": "m"}},
    "2": {"class_type": "Encode", "inputs": {"text": "t"}},
    "3": {"class_type": "MakeLatent", "inputs": {"seed": 1}},
    "4": {"class_type": "Sample", "inputs": {"model": ["1", 0], "cond": ["2", 0], "latent": ["3", 0]}},
    "5": {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0]}},
}
LOADERS = Part("loaders", frozenset({"1"}))


def test_loaders_placed_beside_what_they_load_for_run_in_its_call() -> None:
    partition = partition_prompt(PROMPT, [LOADERS, Part("sampling", frozenset({"4"}))], SCHEMAS)
    (call,) = partition.calls
    assert call.part == "sampling"
    assert set(call.prompt) >= {"1", "4"}
    assert restore_prompt(partition) == PROMPT


def test_loaders_placed_alone_are_refused_with_their_non_transferable_outputs() -> None:
    with pytest.raises(
        PartitionError,
        match=r"No node of part 'loaders' can run on an endpoint: '1' \(LoadModel\): its output \(MODEL\) cannot be transferred",
    ):
        partition_prompt(PROMPT, [LOADERS, Part("words", frozenset({"2"}))], SCHEMAS)
