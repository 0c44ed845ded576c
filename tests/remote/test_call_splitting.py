"""Values split into pieces and joined: the result is that of the whole, or nothing is split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.comfy_graphs import graph_input, graph_output, node
from samples.comfy_schemas import comfy_schemas
from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.call_splitting import BatchSplitter, ListSplitter, Values, can_be_split, output_dependencies
from yggdrasill.remote.comfy_ports import Blocked
from yggdrasill.remote.partition import Part, partition_prompt
from yggdrasill.remote.placement import Placement

REACH = {"sum": frozenset({"a", "b"}), "b": frozenset({"b"}), "nothing": frozenset[str]()}
KINDS = {"a": "INT", "b": "INT"}, {"sum": "INT", "b": "INT", "nothing": "INT"}


def mapped(values: Values) -> dict[str, list[Any]]:
    """The results of ComfyUI nodes that add two values, return one, and create one."""
    a, b = values["a"], values["b"]
    longest = range(max(len(a), len(b)))
    return {"sum": [(a[min(i, len(a) - 1)], b[min(i, len(b) - 1)]) for i in longest], "b": list(b), "nothing": [7]}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_lists_come_back_as_the_whole_would(first: int, second: int, count: int) -> None:
    lists = ListSplitter(REACH, *KINDS)
    values = {"a": list(range(first)), "b": list(range(100, 100 + second))}
    shares = lists.split(values, count)
    assert len(shares) == (min(count, max(first, second)) if count > 1 and max(first, second) > 1 else 0)
    if shares:
        assert lists.join(shares, [mapped(share.values) for share in shares]) == mapped(values)


@pytest.mark.parametrize("a", [[], [1], [1, Blocked("no")]])
def test_lists_that_cannot_be_split_stay_together(a: list[Any]) -> None:
    assert ListSplitter(REACH, *KINDS).split({"a": a, "b": [1]}, 4) == []


def test_pieces_that_return_another_number_of_values_are_not_joined() -> None:
    lists = ListSplitter(REACH, *KINDS)
    values = {"a": [1, 2, 3], "b": [4]}
    shares = lists.split(values, 2)
    given_ = [mapped(share.values) for share in shares]
    partial: list[dict[str, Any]] = [{"sum": [1]}, {"sum": []}, {}]
    for wrong in partial:
        assert lists.join(shares, [given_[0], {**wrong, "b": [4], "nothing": [7]}]) is None


# -- batches ----------------------------------------------------------------------------------------------------

IMAGES = torch.arange(8 * 4 * 4 * 3, dtype=torch.float32).reshape(8, 4, 4, 3)
NOISE_SIZE = (4, 4, 4)


def batches(inputs: dict[str, str], outputs: dict[str, str], *, seeded: bool = False) -> BatchSplitter:
    return BatchSplitter(dict.fromkeys(outputs, frozenset(inputs)), inputs, outputs, seeded=seeded)


def test_pictures_come_back_in_order() -> None:
    sharing = batches({"x": "IMAGE", "one": "IMAGE", "strength": "FLOAT"}, {"y": "IMAGE", "m": "MASK"})
    shares = sharing.split({"x": [IMAGES], "one": [IMAGES[:1]], "strength": [0.5]}, 3)
    assert [(share.start, share.stop) for share in shares] == [(0, 2), (2, 5), (5, 8)]
    assert all(torch.equal(share.values["one"][0], IMAGES[:1]) for share in shares)
    joined = sharing.join(shares, [{"y": [1 - share.values["x"][0]], "m": [share.values["x"][0][..., 0]]} for share in shares])
    assert joined is not None
    assert torch.equal(joined["y"][0], 1 - IMAGES)
    assert torch.equal(joined["m"][0], IMAGES[..., 0])


def noise(latent: dict[str, Any], seed: int) -> torch.Tensor:
    """As ``comfy.sample.prepare_noise``: for the whole at once, or in turn for the positions in ``batch_index``."""
    generator = torch.manual_seed(seed)
    if "batch_index" not in latent:
        return torch.randn(latent["samples"].size(), generator=generator)
    rows = [torch.randn((1, *NOISE_SIZE), generator=generator) for _ in range(max(latent["batch_index"]) + 1)]
    return torch.cat([rows[place] for place in latent["batch_index"]])


@pytest.mark.parametrize("index", [None, [3, 1, 4, 1, 5, 9, 2, 6]])
def test_a_latent_gets_the_noise_of_its_place_in_the_batch(index: list[int] | None) -> None:
    whole: dict[str, Any] = {"samples": torch.zeros(8, *NOISE_SIZE), "noise_mask": torch.rand(8, 1, 4, 4), "kind": "plain"}
    if index is not None:
        whole["batch_index"] = index
    sharing = batches({"x": "LATENT"}, {"y": "LATENT"}, seeded=True)
    shares = sharing.split({"x": [whole]}, 3)
    assert len(shares) == 3
    joined = sharing.join(shares, [{"y": [{**share.values["x"][0], "samples": noise(share.values["x"][0], 5)}]} for share in shares])
    assert joined is not None
    (latent,) = joined["y"]
    assert torch.equal(latent["samples"], noise(whole, 5))
    assert torch.equal(latent["noise_mask"], whole["noise_mask"])
    assert latent.keys() == whole.keys()
    assert latent.get("batch_index") == index


LATENT = {"samples": torch.zeros(8, *NOISE_SIZE)}
PAIR = [[torch.zeros(1, 7, 3), {}]]


@pytest.mark.parametrize(
    "inputs, outputs, values, seeded",
    [
        ({"x": "IMAGE"}, {"y": "IMAGE"}, [IMAGES[:1]], False),
        ({"x": "IMAGE"}, {"y": "INT"}, [IMAGES], False),
        ({"x": "IMAGE"}, {"y": "IMAGE"}, [IMAGES], True),
        ({"x": "IMAGE", "z": "IMAGE"}, {"y": "IMAGE"}, [IMAGES, IMAGES[:3]], False),
        ({"x": "IMAGE", "z": "*"}, {"y": "IMAGE"}, [IMAGES, IMAGES], False),
        ({"x": "IMAGE", "z": "CONDITIONING"}, {"y": "IMAGE"}, [IMAGES, [[torch.zeros(2, 7, 3), {}]]], False),
        ({"x": "LATENT"}, {"y": "LATENT"}, [{"samples": torch.zeros(8, 3, 3, 3)}], False),
        ({"x": "LATENT"}, {"y": "LATENT"}, [{**LATENT, "noise_mask": torch.zeros(1, 1, 4, 4)}], False),
        ({"x": "LATENT"}, {"y": "LATENT"}, [{**LATENT, "batch_index": [1, 2]}], False),
        ({"x": "LATENT"}, {"y": "LATENT"}, [{**LATENT, "more": torch.zeros(8)}], False),
        ({"x": "IMAGE"}, {"y": "IMAGE"}, ["a text"], False),
    ],
)
def test_what_may_not_be_the_same_in_pieces_stays_together(
    inputs: dict[str, str], outputs: dict[str, str], values: Sequence[Any], seeded: bool
) -> None:
    assert batches(inputs, outputs, seeded=seeded).split({name: [value] for name, value in zip(inputs, values, strict=True)}, 2) == []


def test_values_common_to_all_images_are_in_each_piece() -> None:
    sharing = batches({"x": "LATENT", "c": "CONDITIONING", "s": "SIGMAS"}, {"y": "LATENT"}, seeded=True)
    shares = sharing.split({"x": [LATENT], "c": [PAIR], "s": [torch.zeros(20)]}, 2)
    assert [share.values["c"] for share in shares] == [[PAIR], [PAIR]]


def test_images_that_are_not_one_for_one_are_not_joined() -> None:
    sharing = batches({"x": "IMAGE"}, {"y": "IMAGE"})
    shares = sharing.split({"x": [IMAGES]}, 2)
    assert sharing.join(shares, [{"y": [share.values["x"][0][:1]]} for share in shares]) is None
    assert sharing.join(shares, [{} for _ in shares]) is None
    masked = batches({"x": "LATENT"}, {"y": "LATENT"})
    shares = masked.split({"x": [LATENT]}, 2)
    assert masked.join(shares, [{"y": [{**share.values["x"][0], "noise_mask": torch.zeros(4, 1, 4, 4)}]} for share in shares]) is None


# -- which calls ------------------------------------------------------------------------------------------------


def test_a_call_is_split_only_if_every_node_runs_once_for_each_value() -> None:
    def call(*inner: dict[str, Any]) -> Any:
        prompt = {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
            "9": node("PreviewImage", images=(f"{1 + len(inner)}", 0)),
        }
        prompt |= {str(index): each for index, each in enumerate(inner, start=2)}
        (found,) = partition_prompt(
            prompt, [Part("part", frozenset(str(index) for index in range(2, 2 + len(inner))))], comfy_schemas()
        ).calls
        return found

    invert = node("ImageInvert", image=("1", 0))
    assert can_be_split(call(invert), comfy_schemas())
    assert not can_be_split(call(invert, node("RebatchImages", images=("2", 0), batch_size=2)), comfy_schemas())


def test_each_output_is_known_by_the_inputs_behind_it() -> None:
    prompt = {
        "1": graph_input("a"),
        "2": graph_input("b"),
        "3": node("ImageBlend", image1=("1", 0), image2=("2", 0)),
        "4": graph_output("both", ("3", 0)),
        "5": graph_output("one", ("2", 0)),
        "6": node("EmptyImage"),
        "7": graph_output("none", ("6", 0)),
    }
    assert output_dependencies(prompt) == {"both": {"a", "b"}, "one": {"b"}, "none": set()}


def test_a_placement_says_what_is_split() -> None:
    for config in ({"replicas": ["a", "b"], "split": "batch"}, {"replicas": ["a"], "split": "none"}):
        placement = Placement.of(config, ["a", "b"], "here")
        assert placement.split == config["split"]
        assert Placement.of(placement.to_config(), ["a", "b"], "here") == placement
    assert "split" not in Placement.of({"replicas": ["a", "b"]}, ["a", "b"], "here").to_config()
    with pytest.raises(InvalidConfig, match="split"):
        Placement.of({"replicas": ["a", "b"], "split": "halves"}, ["a", "b"], "here")
