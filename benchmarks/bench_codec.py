"""The codec compared with a plain memory copy of the same tensor: ratios of medians, measured alternately in one process."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yggdrasill.values import dump, dumps, iter_envelope, load, loads

__all__ = ["NBYTES", "run"]

NBYTES = 96 << 20
ROUNDS = 9
CASES = {
    "encode, checksum": ("dumps", "bytes"),
    "encode, no checksum": ("dumps_plain", "bytes"),
    "encode to chunks, checksum": ("chunks", "bytes"),
    "decode, checksum": ("loads", "clone"),
    "decode, no checksum": ("loads_plain", "clone"),
    "decode a mapped file, checksum": ("load", "clone"),
    "write a file, checksum": ("dump", "bytes"),
}


def run() -> dict[str, Any]:
    """Return ``{"nbytes", "seconds": {act: median}, "ratios": {case: ratio to a copy}}`` for a 96 MiB float32 tensor."""
    tensor = torch.rand(NBYTES // 4)
    memory = tensor.view(torch.uint8).numpy().data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensor.bin"
        dump(tensor, path)
        sealed, plain = dumps(tensor), dumps(tensor, checksum=False)
        seconds = _medians(
            {
                "bytes": lambda: bytes(memory),
                "clone": tensor.clone,
                "dumps": lambda: dumps(tensor),
                "dumps_plain": lambda: dumps(tensor, checksum=False),
                "chunks": lambda: [len(chunk) for chunk in iter_envelope(tensor)],
                "loads": lambda: loads(sealed),
                "loads_plain": lambda: loads(plain),
                "load": lambda: load(path),
                "dump": lambda: dump(tensor, path),
            }
        )
    return {"nbytes": NBYTES, "seconds": seconds, "ratios": {case: seconds[act] / seconds[base] for case, (act, base) in CASES.items()}}


def _medians(acts: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the seconds per act; every round runs each act once, so that a slow moment of the machine affects all acts."""
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(ROUNDS):
        for name, act in acts.items():
            gc.collect()
            begin = time.perf_counter()
            made = act()
            taken[name].append(time.perf_counter() - begin)
            del made
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Print the table."""
    result = run()
    print(f"float32 tensor of {NBYTES >> 20} MiB; a copy takes {result['seconds']['bytes'] * 1e3:.0f} ms as bytes, ", end="")
    print(f"{result['seconds']['clone'] * 1e3:.0f} ms as tensor.clone()")
    for case, ratio in result["ratios"].items():
        print(f"{case:32} {result['seconds'][CASES[case][0]] * 1e3:7.1f} ms  {ratio:5.2f} x {CASES[case][1]}")


if __name__ == "__main__":
    main()
