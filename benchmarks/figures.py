"""The figure: one ratio of two things measured in the same run, with its spread and its target."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Figure", "Verdict", "middle_half"]

Verdict = Literal["met", "NOT MET", "NOT MEASURED", "-"]


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@dataclass(frozen=True)
class Figure:
    """``ratio`` is the median over the rounds of one run, ``low`` to ``high`` the middle half of the rounds.

    ``beside`` names what the ratio is relative to; ``parts`` holds the medians behind it, by name, as printed. A figure
    without a target stands for information; one without a ratio says in ``note`` why it is missing.
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
        """The figure of one ratio per round."""
        low, high = middle_half(ratios)
        return cls(what, beside, statistics.median(ratios), low, high, at_most, at_least, len(ratios), dict(parts or {}), note)

    @classmethod
    def missing(cls, what: str, beside: str, why: str, *, at_most: float | None = None, at_least: float | None = None) -> Figure:
        """A figure that could not be taken."""
        return cls(what, beside, None, at_most=at_most, at_least=at_least, note=why)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Figure:
        """The inverse of `to_dict`."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def target(self) -> str:
        """The target in words, or a dash."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "-" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def verdict(self) -> Verdict:
        """Whether the median keeps the target."""
        if self.ratio is None:
            return "NOT MEASURED"
        if self.at_most is not None:
            return "met" if self.ratio <= self.at_most else "NOT MET"
        if self.at_least is not None:
            return "met" if self.ratio >= self.at_least else "NOT MET"
        return "-"
