"""Artifact stores compared with a memory copy and a plain file: ratios of medians, measured alternately in one process."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yggdrasill.values import MemoryStore, SharedFolderStore, pack, unpack
from yggdrasill.values.payload import blake3_hex

__all__ = ["NBYTES", "run"]

NBYTES = 96 << 20
ROUNDS = 7
CASES = {
    "hash": ("hash", "copy"),
    "pack, in the tensor's memory": ("pack", "copy"),
    "pack, already on disk": ("pack again", "copy"),
    "put in memory": ("memory put", "copy"),
    "put on disk": ("disk put", "file write"),
    "put on disk, hash known": ("disk put, hash known", "file write"),
    "stream to disk": ("disk writer", "file write"),
    "unpack from memory": ("memory unpack", "copy"),
    "unpack from disk, mapped": ("disk unpack", "file read"),
    "unpack from disk, all bytes read": ("disk unpack, summed", "file read"),
    "stream from disk": ("disk chunks", "file read"),
}


def run() -> dict[str, Any]:
    """Return ``{"nbytes", "seconds": {act: median}, "ratios": {case: ratio to its base}, "hash_gib_s"}`` for a 96 MiB float32 tensor."""
    tensor = torch.rand(NBYTES // 4)
    memory = tensor.view(torch.uint8).numpy().data
    with tempfile.TemporaryDirectory() as folder:
        seconds = _medians(_acts(tensor, memory, Path(folder)))
    ratios = {case: seconds[act] / seconds[base] for case, (act, base) in CASES.items()}
    return {"nbytes": NBYTES, "seconds": seconds, "ratios": ratios, "hash_gib_s": NBYTES / (1 << 30) / seconds["hash"]}


def _acts(tensor: torch.Tensor, memory: memoryview, folder: Path) -> dict[str, Callable[[], Any]]:
    digest, plain = blake3_hex(memory), folder / "plain.bin"
    kept, disk = MemoryStore(), SharedFolderStore(folder / "kept")
    wire = pack(tensor, kept, owner="bench").wire
    pack(tensor, disk, owner="bench")

    def fresh() -> SharedFolderStore:
        return SharedFolderStore(folder / "fresh", quota_bytes=NBYTES)

    def put_anew(verify: bool) -> None:
        store = fresh()
        path = store.path(store.put(memory, hash=digest, verify=verify))
        assert path is not None
        path.unlink()

    def stream_in() -> None:
        store = fresh()
        with store.writer(digest, NBYTES) as writer:
            for start in range(0, NBYTES, 1 << 20):
                writer.write(memory[start : start + (1 << 20)])
            path = store.path(writer.commit())
        assert path is not None
        path.unlink()

    def write_plain() -> None:
        plain.write_bytes(memory)
        plain.unlink()

    def load(store: MemoryStore | SharedFolderStore) -> Any:
        return unpack(wire, lambda ref: store.read(ref.hash))

    kept_file = disk.path(digest)
    assert kept_file is not None
    return {
        "copy": tensor.clone,
        "file write": write_plain,
        "file read": kept_file.read_bytes,
        "hash": lambda: blake3_hex(memory),
        "pack": lambda: pack(tensor, MemoryStore()).release(),
        "pack again": lambda: pack(tensor, disk).release(),
        "memory put": lambda: MemoryStore().put(memory),
        "disk put": lambda: put_anew(verify=True),
        "disk put, hash known": lambda: put_anew(verify=False),
        "disk writer": stream_in,
        "memory unpack": lambda: load(kept),
        "disk unpack": lambda: load(disk),
        "disk unpack, summed": lambda: load(disk).view(torch.int32).sum(),
        "disk chunks": lambda: sum(chunk.nbytes for chunk in disk.chunks(digest)),
    }


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
    print(f"float32 tensor of {NBYTES >> 20} MiB; blake3 takes in {result['hash_gib_s']:.1f} GiB/s")
    for name, seconds in result["seconds"].items():
        print(f"{name:36} {seconds * 1e3:8.2f} ms")
    for case, ratio in result["ratios"].items():
        print(f"{case:36} {ratio:8.2f} x {CASES[case][1]}")


if __name__ == "__main__":
    main()
