"""Deterministic choices: equal arguments give equal choices, and consecutive turns do not repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

__all__ = ["invent_name", "pick", "seed_of"]

_STARTS = (
    "Al",
    "Bren",
    "Cal",
    "Dor",
    "El",
    "Far",
    "Gal",
    "Hel",
    "Is",
    "Kar",
    "Lor",
    "Mar",
    "Nor",
    "Or",
    "Pel",
    "Rho",
    "Sel",
    "Tar",
    "Ul",
    "Ves",
    "Yr",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ae", "ia", "an", "en", "or", "ith", "ar", "el")
_ENDS = ("dor", "mir", "nath", "ra", "ros", "sil", "th", "van", "wen", "dun", "lin", "gar", "mond", "rin", "los", "nor", "var", "meth")


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2**63) from the text of ``parts``, equal in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


def pick(options: Sequence[str], turn: int, *parts: object) -> str:
    """Return one of ``options``: ``parts`` determine the start, each ``turn`` takes the next, so consecutive turns differ."""
    return options[(seed_of(*parts) + turn) % len(options)]


def invent_name(*parts: object) -> str:
    """Return a pronounceable name determined by ``parts``."""
    rng = np.random.Generator(np.random.PCG64(seed_of("name", *parts)))
    middle = _MIDDLES[rng.integers(len(_MIDDLES))] + (_ENDS[rng.integers(len(_ENDS))])
    name = _STARTS[rng.integers(len(_STARTS))] + middle
    return name if rng.random() < 0.7 else name + _MIDDLES[rng.integers(5)]
