"""Saving and loading 1 GiB of weights beside the safetensors package: time, and peak memory in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.figures import Figure
from benchmarks.memory import measurable, memory_folder, peak_of, warm_memory
from benchmarks.timing import interleave, median, ratios, seconds
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph, Port, PortDirection, ReusePool

__all__ = ["NBYTES", "TENSORS", "Weights", "run"]

NBYTES = 1 << 30
TENSORS = 16
ROUNDS = 5
MIB = 1 << 20
AT_MOST = 1.5
EXTRA_AT_MOST = 1.3
ACTS = ("save", "load", "save archive", "load archive")


class Weights(AbstractBaseBlock):
    """A block with ``TENSORS`` tensors of equal size; loading copies into them, as torch modules do."""

    block_type = "bench/weights"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        size = NBYTES // TENSORS // 4
        self.tensors = {f"layer{number:02}.weight": torch.full((size // 1024, 1024), float(number)) for number in range(TENSORS)}

    def declare_ports(self) -> Iterator[Port]:
        yield Port("y", PortDirection.OUT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.tensors["layer00.weight"]}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])


def _registry() -> BlockRegistry:
    registry = BlockRegistry(built_ins=False)
    registry.register(Weights.block_type, Weights)
    return registry


def _graph() -> Graph:
    graph = Graph("weights", registry=_registry(), pool=ReusePool())
    graph.add_node("n", Weights.block_type)
    return graph


def run() -> list[Figure]:
    """Ratios of times to those of ``save_file`` and ``load_file`` with the same copies, and of memory to the largest tensor.

    Raises:
        AssertionError: what was loaded is not what was saved.
    """
    folder = memory_folder(6 * NBYTES)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        return [*_times(Path(name)), *_memory(Path(name))]


def _times(folder: Path) -> list[Figure]:
    graph, block = _graph(), Weights()
    source = graph.get_node("n").block
    plain, save = folder / "plain.safetensors", folder / "save"

    def load_save() -> None:
        # config, states and the copies into a block that exists, which is what load_file is followed by as well
        graph.load_from_checkpoint(checkpoint_path=save / "checkpoint.json")

    warm_memory()
    taken = interleave(
        "saving",
        {
            "save": lambda: graph.save(save),
            "save_file": lambda: save_file(block.state_dict(), plain),
            "load": load_save,
            "load_file": lambda: block.load_state_dict(load_file(plain)),
        },
        ROUNDS,
    )
    source.load_state_dict({name: tensor.zero_() for name, tensor in source.state_dict().items()})
    load_save()
    for number, tensor in enumerate(source.state_dict().values()):
        if not bool((tensor == number).all()):
            raise AssertionError(f"tensor {number} changed on its way through the save")
    return [
        Figure.of(
            f"{act} 1 GiB of weights in {TENSORS} tensors",
            f"safetensors' {beside}",
            ratios(taken[act], taken[beside]),
            at_most=AT_MOST,
            parts={"ours": seconds(median(taken[act])), "beside": seconds(median(taken[beside]))},
            note="with the digest of the state and, for saving, the flush of every file"
            if act == "save"
            else "with the copies into the block",
        )
        for act, beside in (("save", "save_file"), ("load", "load_file"))
    ]


def _memory(folder: Path) -> list[Figure]:
    largest = NBYTES // TENSORS
    figures = []
    for act in ACTS:
        what, beside = f"extra memory, {act} 1 GiB", "the largest tensor"
        if not measurable():
            figures.append(Figure.missing(what, beside, "this system does not report RssAnon", at_most=EXTRA_AT_MOST))
            continue
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_saving", act, str(folder / "memory")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        extra = json.loads(done.stdout)["extra"]
        parts = {"ours": f"{extra / MIB:.0f} MiB", "beside": f"{largest / MIB:.0f} MiB"}
        figures.append(Figure.of(what, beside, [extra / largest], at_most=EXTRA_AT_MOST, parts=parts))
    return figures


def main(act: str, path: str) -> None:
    """Do one of `ACTS` in this process and print the extra memory in bytes; a save must come before its load."""
    graph = _graph()
    archive = f"{path}.zip"
    acts: dict[str, Callable[[], Any]] = {
        "save": lambda: graph.save(path),
        "load": lambda: graph.load_from_checkpoint(checkpoint_path=Path(path) / "checkpoint.json"),
        "save archive": lambda: graph.save(archive, format="archive"),
        "load archive": lambda: Graph.load(archive, registry=_registry(), pool=ReusePool()),
    }
    with peak_of() as peak:
        acts[act]()
    # loading an archive builds the graph, whose weights are not extra
    print(json.dumps({"extra": peak.extra - (NBYTES if act == "load archive" else 0)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
