"""The skeletons of image and video tasks compute what a loop written by hand computes, once their roles have real types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch

from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph, Port, PortDirection
from yggdrasill.pipeline import Pipeline

TYPES: dict[str, Any] = {
    "tokenizer_type": "tokenizer/tiny",
    "conditioner_type": "conditioner/tiny",
    "backbone_type": "backbone/tiny",
    "solver_type": "solver/tiny",
    "codec_type": "codec/tiny",
}


class Tiny(AbstractBaseBlock):
    """A role with arithmetic in place of a model; ``ports`` are ``name: dtype`` in and out."""

    inputs: ClassVar[dict[str, str]]
    outputs: ClassVar[dict[str, str]]

    def declare_ports(self) -> Iterable[Port]:
        optional = self.block_type.startswith("codec")
        yield from (Port(name, PortDirection.IN, dtype, optional=optional) for name, dtype in self.inputs.items())
        yield from (Port(name, PortDirection.OUT, dtype) for name, dtype in self.outputs.items())


class TinyTokenizer(Tiny):
    block_type = "tokenizer/tiny"
    inputs: ClassVar = {"text": "text"}
    outputs: ClassVar = {"token_ids": "tensor"}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"token_ids": torch.tensor([float(len(inputs["text"]))])}


class TinyConditioner(Tiny):
    block_type = "conditioner/tiny"
    inputs: ClassVar = {"input": "any"}
    outputs: ClassVar = {"embedding": "tensor"}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": inputs["input"] * 0.5}


class TinyBackbone(Tiny):
    block_type = "backbone/tiny"
    inputs: ClassVar = {"latent": "tensor", "timestep": "tensor", "condition": "any"}
    outputs: ClassVar = {"pred": "tensor"}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"pred": predict(**inputs)}


class TinySolver(Tiny):
    block_type = "solver/tiny"
    inputs: ClassVar = {"latent": "tensor", "timestep": "tensor", "pred": "tensor"}
    outputs: ClassVar = {"next_latent": "tensor", "next_timestep": "tensor"}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        latent, timestep = step(**inputs)
        return {"next_latent": latent, "next_timestep": timestep}


class TinyCodec(Tiny):
    block_type = "codec/tiny"
    inputs: ClassVar = {"encode_image": "image", "decode_latent": "tensor"}
    outputs: ClassVar = {"encode_latent": "tensor", "decode_image": "image"}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        coded = {"encode_latent": inputs["encode_image"] - 0.5} if "encode_image" in inputs else {}
        return coded | ({"decode_image": inputs["decode_latent"] * 2} if "decode_latent" in inputs else {})


def predict(latent: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    return latent * 0.25 + timestep * condition


def step(latent: torch.Tensor, timestep: torch.Tensor, pred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return latent - pred / (timestep + 1), timestep - 1


def by_hand(text: str, latent: torch.Tensor, timestep: torch.Tensor, steps: int) -> torch.Tensor:
    condition = torch.tensor([float(len(text))]) * 0.5
    for _ in range(steps):
        latent, timestep = step(latent, timestep, predict(latent, timestep, condition))
    return latent * 2


@pytest.fixture
def registry() -> BlockRegistry:
    registry = BlockRegistry()
    for block in (TinyTokenizer, TinyConditioner, TinyBackbone, TinySolver, TinyCodec):
        registry.register(block.block_type, block)
    return registry


LATENT = torch.linspace(0.0, 1.0, 18).reshape(1, 2, 3, 3)
START = torch.tensor([5.0])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_text_to_image_is_the_loop_of_its_roles(registry: BlockRegistry, steps: int) -> None:
    graph = Graph.from_template("text_to_image", registry=registry, **TYPES)
    image = graph.run({"text": "a hill", "latent": LATENT, "timestep": START}, num_loop_steps=steps)["image"]
    assert torch.equal(image, by_hand("a hill", LATENT, START, steps))


def test_the_steps_of_a_template_are_the_default_of_a_run(registry: BlockRegistry) -> None:
    graph = Graph.from_template("text_to_image", registry=registry, steps=3, **TYPES)
    image = graph.run({"text": "a hill", "latent": LATENT, "timestep": START})["image"]
    assert torch.equal(image, by_hand("a hill", LATENT, START, 3))


@pytest.mark.parametrize("steps", [1, 3])
def test_image_to_video_starts_from_the_encoded_image(registry: BlockRegistry, steps: int) -> None:
    graph = Graph.from_template("image_to_video", registry=registry, **TYPES)
    video = graph.run({"text": "wind", "image": LATENT, "timestep": START}, num_loop_steps=steps)["video"]
    assert torch.equal(video, by_hand("wind", LATENT - 0.5, START, steps))


def test_text_to_video_is_one_after_the_other(registry: BlockRegistry) -> None:
    pipeline = Pipeline.from_template("text_to_video", registry=registry, text_to_image=TYPES, image_to_video={**TYPES, "steps": 2})
    video = pipeline.run({"text": "rain", "latent": LATENT, "timestep": START})["video"]
    assert torch.equal(video, by_hand("rain", by_hand("rain", LATENT, START, 1) - 0.5, START, 2))


def test_the_skeleton_is_exposed_once_and_decodes_outside_the_loop() -> None:
    graph = Graph.from_template("text_to_image")
    assert list(dict.fromkeys(entry["name"] for entry in graph.get_input_spec())) == ["text", "timestep", "latent"]
    assert [entry["name"] for entry in graph.get_output_spec()] == ["image"]
    assert list(graph.plan().cycles) == [("backbone", "solver")]
    carried = {str(edge) for edge in graph.get_edges() if edge.source_node == edge.target_node}
    assert carried == {"solver.next_latent -> solver.latent", "solver.next_timestep -> solver.timestep"}


def test_without_models_one_step_yields_the_latent_as_an_image() -> None:
    inputs = {"text": "a hill", "latent": LATENT, "timestep": START}
    assert torch.equal(Graph.from_template("text_to_image").run(inputs)["image"], LATENT)
    larger = Pipeline.from_template("generate_and_upscale", upscale={"scale": 3}).run(inputs)["image"]
    assert tuple(larger.shape) == (1, 6, 9, 3)
