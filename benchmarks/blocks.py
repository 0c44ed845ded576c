"""Blocks with almost no work, so that the overhead around them is measured. An endpoint loads them as a plugin."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from yggdrasill.foundation import AbstractBaseBlock, Port, PortAggregation, PortDirection, register_block

__all__ = ["Add", "Double", "First", "Identity", "Sleep", "Step", "Total"]

X = Port("x", PortDirection.IN)
Y = Port("y", PortDirection.OUT)


class _OneToOne(AbstractBaseBlock):
    deterministic = True

    def declare_ports(self) -> Iterable[Port]:
        return (X, Y)


@register_block("bench/step")
class Step(_OneToOne):
    """y = x + 1."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"] + 1}


@register_block("bench/identity")
class Identity(_OneToOne):
    """y = x."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}


@register_block("bench/double")
class Double(_OneToOne):
    """y = 2 x."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"] * 2}


@register_block("bench/first")
class First(_OneToOne):
    """y = the first number of a tensor: large input, small output."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": float(inputs["x"].flatten()[0])}


@register_block("bench/sleep")
class Sleep(_OneToOne):
    """y = x, after x seconds."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(inputs["x"])
        return {"y": inputs["x"]}


@register_block("bench/add")
class Add(AbstractBaseBlock):
    """y = a + b."""

    deterministic = True

    def declare_ports(self) -> Iterable[Port]:
        return (Port("a", PortDirection.IN), Port("b", PortDirection.IN), Y)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["a"] + inputs["b"]}


@register_block("bench/total")
class Total(AbstractBaseBlock):
    """y = x; its port adds the values of all its edges."""

    deterministic = True

    def declare_ports(self) -> Iterable[Port]:
        return (Port("x", PortDirection.IN, aggregation=PortAggregation.SUM), Y)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}
