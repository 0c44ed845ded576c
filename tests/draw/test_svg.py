"""SVG elements: any text gives well-formed XML with that text."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from yggdrasill.draw.svg import Picture, document, escape, number, shorten, tag, text, text_width


@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_any_text_survives_in_elements_and_attributes(words: str) -> None:
    element = ET.fromstring(tag("a", escape(words), note=words))
    expected = words.translate({9: 32, 10: 32, 13: 32})
    for found in (element.text or "", element.get("note") or ""):
        assert len(found) == len(expected)
        assert all(char in (wanted, "\ufffd") for char, wanted in zip(found, expected, strict=True))


def test_attribute_names_are_written_as_in_svg_and_none_is_omitted() -> None:
    assert tag("path", class_="y-x", stroke_width=1.25, d=None) == '<path class="y-x" stroke-width="1.2"/>'


def test_numbers_are_short() -> None:
    assert [number(value) for value in (1.0, 0.04, -0.04, 12.3456, 100.0)] == ["1", "0", "0", "12.3", "100"]


def test_a_document_has_no_scripts_no_ids_and_no_external_files() -> None:
    page = document(Picture(10, 20, text(1, 2, "hello", "y-t")), name="n", style=".y-t{fill:red}")
    root = ET.fromstring(page)
    assert (root.get("width"), root.get("viewBox")) == ("10", "0 0 10 20")
    assert not any(word in page for word in ("<script", "href", " id=", "url(", "@import"))


@given(st.text(max_size=80), st.integers(4, 30), st.booleans())
def test_shortened_text_keeps_to_its_length(words: str, length: int, keep_end: bool) -> None:
    assert len(shorten(words, length, keep_end=keep_end)) <= length


def test_shortening_keeps_the_end_of_a_path() -> None:
    assert shorten("a/very/long/path/graph.yaml", 12, keep_end=True) == "…/graph.yaml"


def test_wide_letters_are_estimated_wider() -> None:
    assert text_width("iiii", 10) < text_width("nnnn", 10) < text_width("日本語文", 10)
