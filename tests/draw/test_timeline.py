"""Timelines: rows, lanes, kinds, passes, and an axis that starts at the first span."""

from __future__ import annotations

import math
import random
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.draw import Span, draw_timeline
from yggdrasill.errors import InvalidArgument

SVG = "{http://www.w3.org/2000/svg}"
SPANS = [
    Span("local", "philosopher", "skipped", 100.0, 100.0),
    Span("local", "architect", "compute", 100.0, 100.4),
    Span("studio", "inputs", "transfer", 100.4, 100.5),
    Span("studio", "creator", "compute", 100.5, 102.5),
    Span("local", "creator elsewhere", "wait", 100.4, 102.6),
    Span("local", "author <&>", "compute", 102.6, 103.1, 1),
]


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}text")]


def tooltips(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}title")]


def test_a_timeline_shows_places_labels_kinds_passes_and_time() -> None:
    words = texts(draw_timeline(SPANS, title="One <run>"))
    shown = {"One <run>", "local", "studio", "creator", "author <&>", "compute", "transfer", "wait", "skipped", "pass 1", "pass 2"}
    assert shown <= set(words)
    assert {"0 s", "0.5 s", "3 s", "3.1 s on 2 places"} <= set(words)


def test_the_tooltip_of_a_bar_has_its_kind_duration_and_pass() -> None:
    found = tooltips(draw_timeline(SPANS))
    assert "creator: compute, 2 s, pass 1" in found
    assert "author <&>: compute, 500 ms, pass 2" in found


def test_the_order_of_the_spans_does_not_matter() -> None:
    mixed = SPANS.copy()
    random.Random(3).shuffle(mixed)
    assert draw_timeline(mixed) == draw_timeline(SPANS)


def test_short_times_are_in_milliseconds() -> None:
    assert "10 ms" in texts(draw_timeline([Span("local", "quick", "compute", 0.0, 0.05)]))


def test_overlapping_spans_of_a_place_are_drawn_in_separate_lanes() -> None:
    one = draw_timeline([Span("p", "a", "compute", 0, 2), Span("p", "b", "compute", 2, 4)])
    two = draw_timeline([Span("p", "a", "compute", 0, 2), Span("p", "b", "compute", 1, 4)])
    assert len(_rows_of_bars(one)) == 1
    assert len(_rows_of_bars(two)) == 2


def _rows_of_bars(picture: str) -> set[str]:
    return {bar.get("y", "") for bar in ET.fromstring(picture).iter(f"{SVG}rect") if bar.get("height") == "20"}


def test_one_pass_needs_no_separator() -> None:
    assert not any(word.startswith("pass ") for word in texts(draw_timeline(SPANS[:3])))


def test_an_empty_timeline_says_so() -> None:
    assert "nothing ran" in texts(draw_timeline([]))


def test_spans_beyond_two_thousand_are_counted() -> None:
    spans = [Span("local", "tick", "compute", index, index + 0.5) for index in range(2_500)]
    picture = draw_timeline(spans)
    assert "500 of 2,500 spans are not drawn: the latest." in texts(picture)
    assert picture.count('height="20"') == 2_000


@pytest.mark.parametrize("start, end", [(2.0, 1.0), (math.nan, 1.0), (0.0, math.inf), (-1e300, 1e300)])
def test_impossible_times_are_refused(start: float, end: float) -> None:
    with pytest.raises(InvalidArgument, match=r"'bad' runs from .* the end must not be before the start"):
        Span("local", "bad", "compute", start, end)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"span 'nap': Unknown kind 'sleep'\. Available: 'compute', 'skipped', 'transfer', 'wait'"):
        Span("local", "nap", "sleep", 0, 1)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start = draw(st.floats(-1e9, 1e9))
    length = draw(st.floats(0, 1e6))
    text = st.text(st.characters(exclude_categories=[]), max_size=10)
    kind = draw(st.sampled_from(["compute", "transfer", "wait", "skipped"]))
    return Span(draw(text), draw(text), kind, start, start + length, draw(st.integers(0, 3)))


@settings(max_examples=40, deadline=None)
@given(st.lists(spans(), max_size=8))
def test_any_spans_draw(events: list[Span]) -> None:
    picture = draw_timeline(events)
    root = ET.fromstring(picture.encode())
    right = float(root.get("width", "0"))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.get("height") == "20"]
    assert len(bars) == len(events)
    assert all(0 <= float(bar.get("x", "nan")) <= right for bar in bars)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_fixed_theme_does_not_depend_on_the_page(theme: str) -> None:
    drawn = draw_timeline([Span("here", "a", "compute", 0, 1)], theme=theme)
    assert "prefers-color-scheme" not in drawn
    assert ("#0f141b" in drawn) == (theme == "dark")
    with pytest.raises(InvalidArgument, match="theme"):
        draw_timeline([], theme="blue")
