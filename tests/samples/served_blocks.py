"""Blocks whose runs a test can hold, release and count from outside the process. A plugin for endpoints.

Their files are inputs, because a config from a network cannot contain paths.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from samples.blocks import register_samples
from yggdrasill.errors import Cancelled
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Port, PortDirection, current_run

__all__ = ["ENV_SECRET", "Gate", "Keeper", "Leak", "Outside", "Report", "Say", "Spread", "Total", "Watched", "Weighty"]

ENV_SECRET = "YGGDRASILL_TEST_API_KEY"


class Gate(AbstractBaseBlock):
    """Records its start in ``<path>.runs``, and returns ``x`` when the file ``path`` exists."""

    block_type = "sample/gate"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [Port("path", PortDirection.IN), Port("x", PortDirection.IN, optional=True), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        begin(inputs["path"])
        wait_for(inputs["path"])
        return {"y": inputs.get("x")}


class Keeper(Gate):
    """A gate that counts its calls and therefore keeps state."""

    block_type = "sample/keeper"
    deterministic = False
    stateful = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls = 0

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        super().forward(inputs)
        self.calls += 1
        return {"y": self.calls}


class Weighty(Gate):
    """A gate that takes ``build_seconds`` to construct, and then fails if ``build_error`` is set."""

    block_type = "sample/weighty"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        time.sleep(self.config.get("build_seconds", 0.0))
        if self.config.get("build_error"):
            raise ValueError(self.config["build_error"])


class Outside(Gate):
    """A gate that releases its slot while it waits."""

    block_type = "sample/outside"

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        begin(inputs["path"])
        with current_run().host.release_slot():
            wait_for(inputs["path"])
        return {"y": inputs.get("x")}


class Leak(AbstractBaseBlock):
    """Fails with a message that contains a secret of the process and its token."""

    block_type = "sample/leak"

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        secret = os.environ[ENV_SECRET]
        current_run().logger.warning("calling with key %s", secret)
        current_run().progress(1, 1, f"key {secret}")
        raise RuntimeError(f"the service refused key {secret} and token {os.environ['YGGDRASILL_TOKEN']}")


class Say(AbstractBaseBlock):
    """Logs ``x``."""

    block_type = "sample/say"

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        current_run().logger.info("I was given %s", inputs["x"])
        return {"y": inputs["x"]}


class Report(AbstractBaseBlock):
    """Reports a progress of ``(n, 0)`` with ``repeat`` times the text ``x`` for n from 1 to 500, and fails with that text if it is long."""

    block_type = "sample/report"

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("repeat", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        text = inputs["x"] * inputs["repeat"]
        for number in range(1, 501):
            current_run().progress(number, 0, text)
        if len(text) > 1000:
            raise ValueError(text)
        return {"y": text}


class Watched(Gate):
    """A gate that writes ``<path>.cancelled`` when its run is cancelled while it waits."""

    block_type = "sample/watched"

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().forward(inputs)
        except Cancelled:
            Path(f"{inputs['path']}.cancelled").touch()
            raise


class Total(AbstractBaseBlock):
    """``y`` is the sum of the tensor ``x``, in float64."""

    block_type = "sample/total"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": float(inputs["x"].double().sum())}


class Spread(AbstractBaseBlock):
    """``y`` is a uint8 tensor of ``count`` bytes that depend on ``x``."""

    block_type = "sample/spread"
    deterministic = True

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("count", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"y": torch.randint(0, 256, (inputs["count"],), generator=torch.Generator().manual_seed(inputs["x"]), dtype=torch.uint8)}


def begin(path: str) -> None:
    """Append a line to ``<path>.runs``."""
    with Path(f"{path}.runs").open("a", encoding="utf-8") as file:
        file.write("run\n")


def wait_for(path: str) -> None:
    """Wait until the file exists or the run is cancelled."""
    while not Path(path).exists():
        current_run().check_cancelled()
        time.sleep(0.005)


register_samples(BlockRegistry.global_registry())
for _block in (Gate, Keeper, Outside, Weighty, Leak, Report, Say, Watched, Total, Spread):
    BlockRegistry.global_registry().register(_block.block_type, _block)
