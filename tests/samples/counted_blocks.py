"""Blocks that record every execution in a file, so that a test knows what ran, across restarts of the process. A plugin for endpoints.

Their files are inputs, because a config from a network cannot contain paths.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samples.served_blocks import wait_for
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Port, PortDirection

__all__ = ["Counted", "CountedDeaf", "CountedKeeper", "Filler", "Journal", "SlowlyBuilt"]


@dataclass(frozen=True)
class Journal:
    """The executions of one call, in files that begin with ``path``: one line when a run begins, one when it ends.

    A run waits between the two for the file ``<path>.gate``.
    """

    path: Path

    @property
    def gate(self) -> Path:
        """The file that a run waits for."""
        return self.path.with_name(self.path.name + ".gate")

    def open(self) -> None:
        """Let the run end."""
        self.gate.touch()

    @property
    def is_open(self) -> bool:
        """Whether a run may end."""
        return self.gate.exists()

    def add(self, word: str) -> int:
        """Append a line, and return the number of equal lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{word}\n")
        return self.count(word)

    def count(self, word: str) -> int:
        """Return the number of lines ``word``."""
        return self.path.read_text(encoding="utf-8").splitlines().count(word) if self.path.exists() else 0

    @property
    def begun(self) -> int:
        """The number of runs that began."""
        return self.count("begin")

    @property
    def ended(self) -> int:
        """The number of runs that ended by themselves."""
        return self.count("end")


class Counted(AbstractBaseBlock):
    """Returns ``x`` with the number of its run, when the gate is open."""

    block_type = "sample/counted"

    def declare_ports(self) -> list[Port]:
        return [Port("path", PortDirection.IN), Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        journal = Journal(Path(inputs["path"]))
        number = journal.add("begin")
        wait_for(str(journal.gate))
        journal.add("end")
        return {"y": {"run": number, "x": inputs["x"]}}


class CountedKeeper(Counted):
    """A counted block that keeps state, so that its calls run one at a time and never again."""

    block_type = "sample/counted_keeper"
    deterministic = False
    stateful = True


class CountedDeaf(Counted):
    """A counted block that does not notice that it was cancelled."""

    block_type = "sample/counted_deaf"

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        journal = Journal(Path(inputs["path"]))
        number = journal.add("begin")
        while not journal.is_open:
            time.sleep(0.005)
        journal.add("end")
        return {"y": {"run": number, "x": inputs["x"]}}


class SlowlyBuilt(Counted):
    """A counted block that takes 0.4 s to build."""

    block_type = "sample/slowly_built"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        time.sleep(0.4)


class Filler(AbstractBaseBlock):
    """Returns a tensor of ``nbytes`` bytes, all ``x``."""

    block_type = "sample/filler"

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("nbytes", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": torch.full((inputs["nbytes"] // 4,), inputs["x"], dtype=torch.int32)}


for _block in (Counted, CountedDeaf, CountedKeeper, SlowlyBuilt, Filler):
    BlockRegistry.global_registry().register(_block.block_type, _block)
