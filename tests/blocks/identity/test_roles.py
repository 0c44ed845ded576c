"""Role stubs: the ports of their roles, and outputs that are copies of inputs."""

from __future__ import annotations

from typing import Any

import pytest

from yggdrasill.foundation import BlockRegistry, PortAggregation

PORTS = {
    "backbone": ("latent tensor, timestep tensor, condition any?", "pred tensor"),
    "solver": ("latent tensor, timestep tensor, pred tensor", "next_latent tensor, next_timestep tensor"),
    "codec": ("encode_image image?, decode_latent tensor?", "encode_latent tensor, decode_image image"),
    "conditioner": ("input any", "embedding tensor"),
    "tokenizer": ("text text", "token_ids tensor, attention_mask tensor?"),
    "adapter": ("condition any, hidden tensor?", "adapted tensor"),
    "guidance": ("pred_cond tensor, pred_uncond tensor, scale tensor?", "pred_guided tensor"),
}
PASSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("backbone", {"latent": 1, "timestep": 2, "condition": {"a:b": 3}}, {"pred": 1}),
    ("solver", {"latent": 1, "timestep": 2, "pred": 3}, {"next_latent": 1, "next_timestep": 2}),
    ("codec", {"encode_image": 1}, {"encode_latent": 1}),
    ("codec", {"decode_latent": 2}, {"decode_image": 2}),
    ("codec", {"encode_image": 1, "decode_latent": 2}, {"encode_latent": 1, "decode_image": 2}),
    ("conditioner", {"input": 1}, {"embedding": 1}),
    ("tokenizer", {"text": "a b"}, {"token_ids": "a b"}),
    ("adapter", {"condition": 1, "hidden": 2}, {"adapted": 1}),
    ("guidance", {"pred_cond": 1, "pred_uncond": 2, "scale": 7}, {"pred_guided": 1}),
]


@pytest.mark.parametrize("role", PORTS)
def test_a_stub_has_the_ports_of_its_role(role: str) -> None:
    block = BlockRegistry().build({"block_type": f"{role}/identity"})
    spelled = tuple(
        ", ".join(f"{port.name} {port.dtype}{'?' * port.optional}" for port in ports)
        for ports in (block.get_input_ports(), block.get_output_ports())
    )
    assert spelled == PORTS[role]


@pytest.mark.parametrize("role, inputs, outputs", PASSED)
def test_a_stub_copies_its_inputs_to_its_outputs(role: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    assert BlockRegistry().build({"block_type": f"{role}/identity"}).run(inputs) == outputs


def test_a_backbone_accepts_several_conditions_in_any_order() -> None:
    port = BlockRegistry().build({"block_type": "backbone/identity"}).get_port("condition")
    assert port is not None
    assert port.aggregation is PortAggregation.DICT
