"""What the invented cases of equivalence were made of, counted over a test run."""

from __future__ import annotations

from collections import Counter

__all__ = ["TALLY"]

TALLY: Counter[str] = Counter()
