"""Small blocks from which tests build their graphs, so that tests run real blocks instead of mocks.

They compute with numbers, strings, lists and tensors. `register_samples` registers them as ``sample/<name>``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from yggdrasill.errors import CheckpointMismatch
from yggdrasill.executor.context import current_run
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.ports import Port, PortAggregation, PortDirection

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

__all__ = [
    "SAMPLES",
    "Accumulate",
    "Add",
    "Branch",
    "Collect",
    "Composite",
    "Concat",
    "Double",
    "Fail",
    "Identity",
    "Linear",
    "Mix",
    "Noise",
    "Scale",
    "Slow",
    "register_samples",
]


class Registry(Protocol):
    """The part of a block registry that `register_samples` needs."""

    def register(self, block_type: str, factory: Any) -> Any:
        """Register ``block_type``."""


def _in(name: str, dtype: str = "any", *, optional: bool = False, aggregation: str = "single") -> Port:
    return Port(name, PortDirection.IN, dtype, optional=optional, aggregation=PortAggregation(aggregation))


def _out(name: str, dtype: str = "any") -> Port:
    return Port(name, PortDirection.OUT, dtype)


class _Remembering(AbstractBaseBlock):
    """A block whose state is the attribute named by ``kept``."""

    kept: str

    def state_dict(self) -> dict[str, Any]:
        return {self.kept: getattr(self, self.kept), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        rest = dict(state)
        if self.kept in rest:
            setattr(self, self.kept, rest.pop(self.kept))
        elif strict:
            raise CheckpointMismatch(f"block {self.block_id!r} ({self.block_type}) got no state key {self.kept!r}", missing=[self.kept])
        super().load_state_dict(rest, strict)


class Add(_Remembering):
    """``out = a + b + offset``; ``offset`` starts from the config and is the block's state."""

    block_type = "sample/add"
    deterministic = True
    kept = "offset"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.offset = self.config.get("offset", 0)

    def declare_ports(self) -> list[Port]:
        return [_in("a"), _in("b"), _out("out")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": inputs["a"] + inputs["b"] + self.offset}


class Identity(AbstractBaseBlock):
    """``y`` is ``x``, the same object."""

    block_type = "sample/identity"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("x"), _out("y")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}


class Double(AbstractBaseBlock):
    """``y = x + x``."""

    block_type = "sample/double"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("x"), _out("y")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"] + inputs["x"]}


class Scale(AbstractBaseBlock):
    """``y = x * factor``; without a factor ``y`` is ``x``."""

    block_type = "sample/scale"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("x"), _in("factor", optional=True), _out("y")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"] * inputs["factor"] if "factor" in inputs else inputs["x"]}


class Concat(AbstractBaseBlock):
    """``out`` is the joined value of the aggregating port ``parts``."""

    block_type = "sample/concat"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("parts", aggregation="concat"), _out("out")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": inputs["parts"]}


class Collect(AbstractBaseBlock):
    """One optional input port per aggregation policy, named after it; ``out`` maps the connected ports to their values."""

    block_type = "sample/collect"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [*(_in(policy.value, optional=True, aggregation=policy.value) for policy in PortAggregation), _out("out")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": {policy.value: inputs[policy.value] for policy in PortAggregation if policy.value in inputs}}


class Mix(AbstractBaseBlock):
    """``out = terms + chosen``: ``terms`` adds its edges, ``chosen`` (optional) takes the first present one."""

    block_type = "sample/mix"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("terms", aggregation="sum"), _in("chosen", optional=True, aggregation="first"), _out("out")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": inputs["terms"] + inputs["chosen"] if "chosen" in inputs else inputs["terms"]}


class Fail(AbstractBaseBlock):
    """Raises ValueError with the config's ``message``, after returning ``x`` for the first ``after`` calls, if given."""

    block_type = "sample/fail"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.calls_left = int(self.config.get("after", 0))

    def declare_ports(self) -> list[Port]:
        return [_in("x", optional=True), _out("y")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.calls_left == 0:
            raise ValueError(self.config.get("message", "failed on purpose"))
        self.calls_left -= 1
        return {"y": inputs.get("x")}


class Slow(AbstractBaseBlock):
    """Returns ``x`` after ``seconds`` (config, default 0.05), in ten steps that report progress and can be cancelled."""

    block_type = "sample/slow"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("x"), _out("y")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        run = current_run()
        for step in range(10):
            run.check_cancelled()
            run.progress(step, 10)
            time.sleep(float(self.config.get("seconds", 0.05)) / 10)
        run.progress(10, 10)
        return {"y": inputs["x"]}


class Branch(AbstractBaseBlock):
    """Writes only one of its outputs: ``positive`` if x >= 0, else ``negative``."""

    block_type = "sample/branch"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [_in("x"), _out("positive"), _out("negative")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"positive" if inputs["x"] >= 0 else "negative": inputs["x"]}


class Noise(AbstractBaseBlock):
    """``noise`` is a standard normal float32 tensor of the config's ``shape`` (default [4]) from the run's generator."""

    block_type = "sample/noise"

    def declare_ports(self) -> list[Port]:
        return [_in("after", optional=True), _out("noise", "tensor")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"noise": torch.randn(self.config.get("shape", [4]), generator=current_run().generator())}


class Accumulate(_Remembering):
    """``total`` is the sum of every ``x`` since the block was created or loaded."""

    block_type = "sample/accumulate"
    stateful = True
    kept = "total"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.total = self.config.get("start", 0)

    def declare_ports(self) -> list[Port]:
        return [_in("x"), _out("total")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.total = self.total + inputs["x"]
        return {"total": self.total}


class Linear(AbstractBaseBlock):
    """``y = x @ weight.T + bias`` for x [..., size]; float32 weights [size, size] drawn from the config's ``seed``."""

    block_type = "sample/linear"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        import torch

        super().__init__(block_id, config=config)
        size = int(self.config.get("size", 3))
        generator = torch.Generator().manual_seed(int(self.config.get("seed", 0)))
        self.weight = torch.nn.Parameter(torch.randn(size, size, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(size, generator=generator))

    def declare_ports(self) -> list[Port]:
        return [_in("x", "tensor"), _out("y", "tensor")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"y": torch.nn.functional.linear(inputs["x"], self.weight, self.bias)}

    def to(self, device: Any) -> Self:
        """Move the weights."""
        self.weight.data = self.weight.data.to(device)
        self.bias.data = self.bias.data.to(device)
        return self

    def trainable_parameters(self) -> Iterator[torch.nn.Parameter]:
        if not self.frozen:
            yield self.weight
            yield self.bias

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach().clone(), "bias": self.bias.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        rest = dict(state)
        missing = [key for key in ("weight", "bias") if key not in rest]
        if strict and missing:
            raise CheckpointMismatch(f"block {self.block_id!r} ({self.block_type}) got no state keys {missing}", missing=missing)
        for key, parameter in (("weight", self.weight), ("bias", self.bias)):
            if key in rest:
                parameter.data.copy_(rest.pop(key))
        super().load_state_dict(rest, strict)


class Composite(AbstractBaseBlock):
    """``out = double(a + b + offset)`` from the sub-blocks ``sum`` and ``twice``, and ``y`` = ``linear(x)`` if x is given."""

    block_type = "sample/composite"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.sum = Add(config={"offset": self.config.get("offset", 0)})
        self.twice = Double()
        self.linear = Linear(config={"seed": self.config.get("seed", 0)})

    def declare_ports(self) -> list[Port]:
        return [_in("a"), _in("b"), _in("x", "tensor", optional=True), _out("out"), _out("y", "tensor")]

    def get_sub_blocks(self) -> dict[str, AbstractBaseBlock]:
        return {"sum": self.sum, "twice": self.twice, "linear": self.linear}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        added = self.sum.forward({"a": inputs["a"], "b": inputs["b"]})["out"]
        outputs = {"out": self.twice.forward({"x": added})["y"]}
        if "x" in inputs:
            outputs["y"] = self.linear.forward({"x": inputs["x"]})["y"]
        return outputs


SAMPLES: tuple[type[AbstractBaseBlock], ...] = (
    Accumulate,
    Add,
    Branch,
    Collect,
    Composite,
    Concat,
    Double,
    Fail,
    Identity,
    Linear,
    Mix,
    Noise,
    Scale,
    Slow,
)


def register_samples(registry: Registry) -> None:
    """Register every sample block under its type, ``sample/<name>``."""
    for block in SAMPLES:
        registry.register(block.block_type, block)
