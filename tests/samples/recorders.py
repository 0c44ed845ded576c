"""The sample blocks as recorders, in any process: each block writes its inputs to a file before it computes. A plugin.

The environment names the file, because a config from a network cannot contain paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3

from samples.blocks import SAMPLES
from samples.worlds import WORLD_BLOCKS
from yggdrasill.executor.context import current_run
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry
from yggdrasill.values import dumps

__all__ = ["REGISTRY", "WITNESS_FILE", "Recordered", "exact", "register_recorders", "witnessed"]

WITNESS_FILE = "YGGDRASILL_TEST_WITNESS_FILE"

#: What each node was given, in its order: pass, call, and its inputs by port with a hash of each.
Recordered = dict[str, list[tuple[int, int, list[tuple[str, str]]]]]


def exact(value: Any) -> bytes:
    """Return the codec's bytes of a value, ignoring which of its tensors are the same object: a transferred value is a copy."""
    return dumps(_apart(value))


def _apart(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _apart(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_apart(item) for item in value)
    return value


def note(inputs: Mapping[str, Any]) -> None:
    """Write a line about the running node if recording is on."""
    path = os.environ.get(WITNESS_FILE)
    if path is not None:
        run = current_run()
        heard = [(name, blake3(exact(value)).hexdigest()) for name, value in inputs.items()]
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([run.place, run.pass_index, run.call, heard]) + "\n")


@contextmanager
def witnessed(path: Path) -> Iterator[Recordered]:
    """Record the blocks of this process and of those started with that file; the records are complete when the context ends."""
    path.unlink(missing_ok=True)
    seen: Recordered = {}
    before = os.environ.get(WITNESS_FILE)
    os.environ[WITNESS_FILE] = str(path)
    try:
        yield seen
    finally:
        del os.environ[WITNESS_FILE]
        if before is not None:
            os.environ[WITNESS_FILE] = before
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                place, pass_index, call, heard = json.loads(line)
                seen.setdefault(place, []).append((pass_index, call, [(name, digest) for name, digest in heard]))


def _recorder(cls: type[Any]) -> type[AbstractBaseBlock]:
    class Recorder(cls):  # type: ignore[misc]  # a subclass of whatever block it is
        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            note(inputs)
            outputs: dict[str, Any] = super().forward(inputs)
            return outputs

    Recorder.__name__ = Recorder.__qualname__ = f"Recorder{cls.__name__}"
    return Recorder


def register_recorders(registry: BlockRegistry) -> BlockRegistry:
    """Register a recorder for every sample block, under the block's type."""
    for cls in (*SAMPLES, *WORLD_BLOCKS):
        registry.register(cls.block_type, _recorder(cls))
    return registry


#: The recorders and nothing else.
REGISTRY = register_recorders(BlockRegistry(built_ins=False))
