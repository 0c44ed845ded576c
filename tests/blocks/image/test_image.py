"""The image blocks resize, blend, grid and adjust."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import BlockRegistry


def run(block_type: str, inputs: dict[str, Any], **config: Any) -> torch.Tensor:
    kept = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    outputs = BlockRegistry().build({"block_type": block_type, **config}).run(inputs)
    assert all(torch.equal(inputs[name], value) for name, value in kept.items())
    (image,) = outputs.values()
    assert isinstance(image, torch.Tensor)
    assert image.dtype == torch.float32
    assert 0.0 <= float(image.min()) <= float(image.max()) <= 1.0
    return image


def plain(*shape: int, value: float = 0.5) -> torch.Tensor:
    return torch.full(shape, value)


@pytest.mark.parametrize(
    "config, shape",
    [
        ({"width": 10}, (2, 5, 10, 3)),
        ({"height": 40}, (2, 40, 80, 3)),
        ({"width": 7, "height": 9}, (2, 9, 7, 3)),
        ({"scale": 0.5}, (2, 10, 20, 3)),
        ({"scale": 1}, (2, 20, 40, 3)),
    ],
)
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_resize_returns_the_configured_size(config: dict[str, Any], shape: tuple[int, ...], method: str) -> None:
    image = torch.rand(2, 20, 40, 3, generator=torch.Generator().manual_seed(1))
    assert tuple(run("image/resize", {"image": image}, method=method, **config).shape) == shape


def test_nearest_repeats_pixels() -> None:
    image = torch.tensor([[0.0, 1.0]]).reshape(1, 1, 2, 1)
    assert run("image/resize", {"image": image}, width=4, height=1, method="nearest").flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "mode, expected",
    [("normal", 0.5), ("multiply", 0.125), ("screen", 0.625), ("overlay", 0.25), ("darken", 0.25), ("lighten", 0.5), ("difference", 0.25)],
)
def test_blend_modes_are_the_known_formulas(mode: str, expected: float) -> None:
    inputs = {"below": plain(1, 2, 2, 3, value=0.25), "above": plain(1, 2, 2, 3, value=0.5)}
    assert set(run("image/blend", inputs, mode=mode).flatten().tolist()) == {expected}


def test_opacity_and_mask_weight_the_blend() -> None:
    inputs = {"below": plain(2, 1, 2, 3, value=0.0), "above": plain(1, 1, 2, 3, value=1.0), "mask": torch.tensor([[0.0, 1.0]])}
    image = run("image/blend", inputs, opacity=0.5)
    assert tuple(image.shape) == (2, 1, 2, 3)
    assert image[:, 0, :, 0].tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_grid_arranges_batches_and_lists_in_order() -> None:
    images = {"a:image": plain(2, 4, 6, 3, value=0.25), "b:image": [plain(1, 2, 2, 3, value=0.75)]}
    sheet = run("image/grid", {"images": images}, columns=2, gap=1)
    assert tuple(sheet.shape) == (1, 11, 15, 3)
    assert [round(float(sheet[0, y, x, 0]), 2) for y, x in ((0, 0), (1, 1), (1, 8), (6, 1), (7, 3))] == [1.0, 0.25, 0.25, 1.0, 0.75]


def test_adjust_changes_colours_and_keeps_alpha() -> None:
    image = plain(1, 1, 1, 4, value=0.25)
    assert run("image/adjust", {"image": image}, brightness=0.25)[0, 0, 0].tolist() == [0.5, 0.5, 0.5, 0.25]
    assert run("image/adjust", {"image": image}, contrast=2.0)[0, 0, 0, 0] == 0.0
    assert run("image/adjust", {"image": image}, gamma=2.0)[0, 0, 0, 0] == 0.5
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
    assert run("image/adjust", {"image": red}, saturation=0.0).flatten().tolist() == pytest.approx([0.2126] * 3)


@pytest.mark.parametrize(
    "block_type, inputs, config, message",
    [
        ("image/resize", {"image": plain(1, 2, 2, 3)}, {}, "config has no size; set 'width', 'height' or 'scale'"),
        ("image/resize", {"image": plain(1, 2, 2, 3)}, {"width": 0}, "'width' is 0; it must be a number from 1 to 16384"),
        ("image/resize", {"image": plain(1, 2, 2, 3)}, {"width": 4, "method": "best"}, "'method' is 'best'; it can be 'bicubic'"),
        ("image/resize", {"image": "a.png"}, {"width": 4}, "port 'image' got a str"),
        ("image/adjust", {"image": plain(2, 2)}, {}, r"port 'image' got shape \[2, 2\]"),
        ("image/adjust", {"image": torch.zeros(1, 2, 2, 3, dtype=torch.uint8)}, {}, "uint8; expected an image, a float32 tensor"),
        ("image/blend", {"below": plain(1, 2, 2, 3), "above": plain(1, 3, 2, 3)}, {}, "make the sizes equal with image/resize"),
        ("image/blend", {"below": plain(1, 2, 2, 3), "above": plain(1, 2, 2, 3), "mask": plain(3, 3)}, {}, r"mask is \[3, 3\]"),
        ("image/grid", {"images": []}, {}, "got 0 images"),
    ],
)
def test_invalid_inputs_of_an_image_block_are_refused_with_the_reason(
    block_type: str, inputs: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        BlockRegistry().build({"block_type": block_type, **config}).run(inputs)
