"""``python -m benchmarks.caller URL``: one large call in a new process; prints its peak memory beyond the inputs."""

from __future__ import annotations

import json
import os
import sys

import torch

from benchmarks.memory import peak_of
from benchmarks.payload import ELEMENTS, NBYTES
from yggdrasill.remote import RemoteGraph

__all__ = ["main"]


def main(url: str) -> None:
    """Call ``double`` with the payload, after a small call that imports all modules."""
    double = RemoteGraph(url, "double", token=os.environ["YGGDRASILL_TOKEN"])
    double.run({"x": torch.rand(1 << 18)})
    tensor = torch.rand(ELEMENTS)
    with peak_of() as peak:
        result = double.run({"x": tensor})["y"]
    if not torch.equal(result, tensor * 2):
        raise AssertionError("the endpoint returned different numbers")
    print(json.dumps({"extra": peak.extra, "nbytes": NBYTES}))


if __name__ == "__main__":
    main(sys.argv[1])
