"""One stub per role, ``<role>/identity``, with the ports of the role; each output is an input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from yggdrasill.foundation import AbstractBaseBlock, Port, PortAggregation, PortDirection, PortType

__all__ = [
    "AdapterIdentity",
    "BackboneIdentity",
    "CodecIdentity",
    "ConditionerIdentity",
    "GuidanceIdentity",
    "SolverIdentity",
    "TokenizerIdentity",
]


class _Identity(AbstractBaseBlock):
    """Copies inputs to outputs by ``passes``; without an input its output is absent."""

    deterministic: ClassVar[bool] = True
    settings = ()
    passes: ClassVar[dict[str, str]]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {output: inputs[source] for output, source in self.passes.items() if source in inputs}


class BackboneIdentity(_Identity):
    """``pred`` is ``latent``.

    ``condition`` accepts several edges (a conditioner's and an adapter's) as a dict ``node:port`` -> value: all values are
    kept apart, and the order in which the edges were added does not matter.
    """

    block_type = "backbone/identity"
    passes: ClassVar[dict[str, str]] = {"pred": "latent"}

    def declare_ports(self) -> Iterable[Port]:
        yield Port("latent", PortDirection.IN, PortType.TENSOR)
        yield Port("timestep", PortDirection.IN, PortType.TENSOR)
        yield Port("condition", PortDirection.IN, PortType.ANY, optional=True, aggregation=PortAggregation.DICT)
        yield Port("pred", PortDirection.OUT, PortType.TENSOR)


class SolverIdentity(_Identity):
    """``next_latent`` is ``latent``, ``next_timestep`` is ``timestep``."""

    block_type = "solver/identity"
    passes: ClassVar[dict[str, str]] = {"next_latent": "latent", "next_timestep": "timestep"}

    def declare_ports(self) -> Iterable[Port]:
        for name in ("latent", "timestep", "pred"):
            yield Port(name, PortDirection.IN, PortType.TENSOR)
        for name in ("next_latent", "next_timestep"):
            yield Port(name, PortDirection.OUT, PortType.TENSOR)


class CodecIdentity(_Identity):
    """Copies each input that is present: ``encode_latent`` is ``encode_image``, ``decode_image`` is ``decode_latent``."""

    block_type = "codec/identity"
    passes: ClassVar[dict[str, str]] = {"encode_latent": "encode_image", "decode_image": "decode_latent"}

    def declare_ports(self) -> Iterable[Port]:
        yield Port("encode_image", PortDirection.IN, PortType.IMAGE, optional=True)
        yield Port("decode_latent", PortDirection.IN, PortType.TENSOR, optional=True)
        yield Port("encode_latent", PortDirection.OUT, PortType.TENSOR)
        yield Port("decode_image", PortDirection.OUT, PortType.IMAGE)


class ConditionerIdentity(_Identity):
    """``embedding`` is ``input``."""

    block_type = "conditioner/identity"
    passes: ClassVar[dict[str, str]] = {"embedding": "input"}

    def declare_ports(self) -> Iterable[Port]:
        yield Port("input", PortDirection.IN, PortType.ANY)
        yield Port("embedding", PortDirection.OUT, PortType.TENSOR)


class TokenizerIdentity(_Identity):
    """``token_ids`` is ``text``; the stub has no ``attention_mask``."""

    block_type = "tokenizer/identity"
    passes: ClassVar[dict[str, str]] = {"token_ids": "text"}

    def declare_ports(self) -> Iterable[Port]:
        yield Port("text", PortDirection.IN, PortType.TEXT)
        yield Port("token_ids", PortDirection.OUT, PortType.TENSOR)
        yield Port("attention_mask", PortDirection.OUT, PortType.TENSOR, optional=True)


class AdapterIdentity(_Identity):
    """``adapted`` is ``condition``; the features in ``hidden`` are ignored."""

    block_type = "adapter/identity"
    passes: ClassVar[dict[str, str]] = {"adapted": "condition"}

    def declare_ports(self) -> Iterable[Port]:
        yield Port("condition", PortDirection.IN, PortType.ANY)
        yield Port("hidden", PortDirection.IN, PortType.TENSOR, optional=True)
        yield Port("adapted", PortDirection.OUT, PortType.TENSOR)


class GuidanceIdentity(_Identity):
    """``pred_guided`` is ``pred_cond``."""

    block_type = "guidance/identity"
    passes: ClassVar[dict[str, str]] = {"pred_guided": "pred_cond"}

    def declare_ports(self) -> Iterable[Port]:
        yield Port("pred_cond", PortDirection.IN, PortType.TENSOR)
        yield Port("pred_uncond", PortDirection.IN, PortType.TENSOR)
        yield Port("scale", PortDirection.IN, PortType.TENSOR, optional=True)
        yield Port("pred_guided", PortDirection.OUT, PortType.TENSOR)
