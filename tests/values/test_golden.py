"""The bytes of version 1: the encoder writes exactly these, and the decoder reads them.

``python tests/values/test_golden.py`` writes the files that are missing; an existing file is never rewritten.
"""

from __future__ import annotations

import math
import struct
import sys
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from yggdrasill.values import Opaque, dumps, loads

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SCALARS = [None, True, False, 0, -1, 2**53, 2**53 + 1, -(2**200), 0.1, 1.0, -0.0, math.inf, -math.inf, 1j, complex(-0.0, math.inf)]
NANS = [struct.unpack(">d", bytes.fromhex(bits))[0] for bits in ("7ff8000000000000", "fff8000000000000", "7ff8000000000123")]
CASES: dict[str, Any] = {
    "none": None,
    "scalars": [*SCALARS, *NANS],
    "texts": ["", "plain", "Æsir 🌳", "\ud800", "\ud83d\ude00", '\x00\n"\\'],
    "bytes": [b"", b"\x00\xff", bytes(range(256)) * 3, bytearray(b"ab")],
    "containers": [[], (), {}, set(), (1, [2, (3,)]), {"a": 1, "$b": 2, "$$c": 3}, {1, "a"}, frozenset({(1, 2)})],
    "keys": {1: "int", "1": "text", 2.5: "float", None: "none", b"1": "bytes", (1, ("x",)): "tuple"},
    "extensions": [Fraction(-1, 3), OrderedDict([("z", 1), ("a", 2)]), Opaque("other.mesh", 4, {"v": [1, 2]})],
    "tensors": {
        "float32": torch.arange(6, dtype=torch.float32).view(2, 3),
        "transposed": torch.arange(6, dtype=torch.int16).view(2, 3).t(),
        "channels_last": torch.arange(24, dtype=torch.uint8).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "float8": torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "complex64": torch.tensor([1 + 2j]),
    },
    "arrays": {
        "fortran": np.asfortranarray(np.arange(6, dtype="<i4").reshape(2, 3)),
        "big_endian": np.array([1, 2], ">f8"),
        "dates": np.array(["2026-01-02"], "<M8[D]"),
        "names": np.array(["ab", "c"], "<U2"),
        "records": np.array([(1, 2.0)], np.dtype([("id", "<i2"), ("x", "<f4")])),
        "number": np.float32(0.5),
        "text": np.str_("x"),
    },
}


def case(name: str) -> bytes:
    return dumps(CASES[name]) if name != "unchecked" else dumps(CASES["tensors"], checksum=False)


@pytest.mark.parametrize("name", [*CASES, "unchecked"])
def test_the_encoder_writes_the_golden_bytes(name: str) -> None:
    assert case(name) == (GOLDEN / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", [*CASES, "unchecked"])
def test_the_decoder_reads_the_golden_bytes(name: str) -> None:
    from samples.values import same

    expected = CASES["tensors" if name == "unchecked" else name]
    assert same(expected, loads((GOLDEN / f"{name}.bin").read_bytes()))


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.bin")} == {*CASES, "unchecked"}


def write_missing() -> None:
    """Write the golden files of new cases."""
    for name in (*CASES, "unchecked"):
        path = GOLDEN / f"{name}.bin"
        if not path.exists():
            path.write_bytes(case(name))
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    write_missing()
