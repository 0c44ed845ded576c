"""Counts of the properties of generated equivalence cases over a test run."""

from __future__ import annotations

from collections import Counter

__all__ = ["CASE_COUNTS"]

CASE_COUNTS: Counter[str] = Counter()
