"""The fingerprint of model files, without a ComfyUI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yggdrasill.server_ext.comfy.model_files import fingerprint


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_fingerprints_are_equal_only_for_equal_files(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    one, two, longer = (tmp_path / name for name in ("one.bin", "two.bin", "longer.bin"))
    one.write_bytes(content)
    two.write_bytes(content)
    longer.write_bytes(content + b"x")
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(longer) != fingerprint(one)
    for place in (0, size // 2, size - 1) if size else ():
        # the middle of a large file may lie between two windows, so a whole stretch of it is changed
        other = bytearray(content)
        end = min(size, place + 300_000)
        other[place:end] = bytes(255 - byte for byte in other[place:end])
        changed = tmp_path / f"changed-{place}.bin"
        changed.write_bytes(other)
        assert fingerprint(changed) != fingerprint(one)


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"a" * 1000)
    before = fingerprint(file)
    file.write_bytes(b"b" * 1000)
    os.utime(file, ns=(1, 1))
    assert fingerprint(file) != before
