"""Figures: a ratio of two measurements of the same run, with its spread and its target."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Figure", "Verdict", "middle_half"]

Verdict = Literal["met", "NOT MET", "NOT MEASURED", "-"]


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@dataclass(frozen=True)
class Figure:
    """``ratio`` is the median over the rounds of one run, ``low`` to ``high`` the middle half of the rounds.

    ``beside`` names the reference of the ratio; ``parts`` has the medians of both sides by name, as printed. A figure without a
    target is for information; one without a ratio has the reason in ``note``.
    """

    what: str
    beside: str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    rounds: int = 0
    parts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(
        cls,
        what: str,
        beside: str,
        ratios: Sequence[float],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        parts: Mapping[str, str] | None = None,
        note: str = "",
    ) -> Figure:
        """Return the figure for one ratio per round."""
        low, high = middle_half(ratios)
        return cls(what, beside, statistics.median(ratios), low, high, at_most, at_least, len(ratios), dict(parts or {}), note)

    @classmethod
    def missing(cls, what: str, beside: str, why: str, *, at_most: float | None = None, at_least: float | None = None) -> Figure:
        """Return a figure that could not be measured."""
        return cls(what, beside, None, at_most=at_most, at_least=at_least, note=why)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Figure:
        """Return the figure of a `to_dict` result."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return asdict(self)

    @property
    def target(self) -> str:
        """Return the target as text, or a dash."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "-" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def verdict(self) -> Verdict:
        """Return whether the median meets the target, as text."""
        if self.ratio is None:
            return "NOT MEASURED"
        if self.at_most is not None:
            return "met" if self.ratio <= self.at_most else "NOT MET"
        if self.at_least is not None:
            return "met" if self.ratio >= self.at_least else "NOT MET"
        return "-"
