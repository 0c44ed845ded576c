"""Config files: JSON and YAML, with the line of every mistake."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import InvalidConfig, MissingFile, StorageFailed
from yggdrasill.foundation import config as documents
from yggdrasill.foundation.config import parse_document, read_document

BROKEN = {
    "yaml syntax": ("a: 1\nb: [1,\n  2\n", True, "w, line 4, column 1: did not find expected ',' or ']'"),
    "yaml key twice": ("a: 1\nb: 2\na: 3\n", True, "w, line 3, column 1: duplicate key 'a'"),
    "yaml inner key twice": ("a:\n  x: 1\n  x: 2\n", True, "w, line 3, column 3: duplicate key 'x'"),
    "yaml list as key": ("? [1]\n: 2\n", True, "w, line 1, column 3: a key must be a scalar"),
    "yaml tag": ("a: !!python/object/apply:os.system ['true']\n", True, "w, line 1, column 4: could not determine a constructor"),
    "yaml bad character": ("a: \x07\n", True, "w: "),
    "yaml list": ("- a\n", True, "w: a config is a mapping, got list"),
    "yaml nothing": ("", True, "w: a config is a mapping, got NoneType"),
    "yaml two documents": ("a: 1\n---\nb: 2\n", True, "w, line 2, column 1: but found another document"),
    "yaml number too long": (f"a: {'1' * 5000}\n", True, "w: Exceeds the limit"),
    "yaml too deep": ("a: " + "[" * 100_000, True, "w: nested deeper than 200 levels"),
    "yaml map in map without end": ("{a: " * 1000, True, "w: nested deeper than 200 levels"),
    "json syntax": ('{"a": 1,\n "b": }', False, "w, line 2, column 7: Expecting value; the file must hold JSON"),
    "json key twice": ('{"a": 1, "a": 2}', False, "w: duplicate key 'a'"),
    "json nothing": ("", False, "w, line 1, column 1: Expecting value"),
    "json list": ("[]", False, "w: a config is a mapping, got list"),
    "json too deep": ("[" * 100_000, False, "w: nested too deeply to be a config"),
    "json number too long": (f'{{"a": {"1" * 5000}}}', False, "w: Exceeds the limit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_text_is_one_clear_error_with_its_place(case: str) -> None:
    text, is_yaml, message = BROKEN[case]
    with pytest.raises(InvalidConfig) as caught:
        parse_document(text, "w", yaml=is_yaml)
    assert str(caught.value).startswith(message)


def test_yaml_merges_anchors_and_keeps_dates_as_text() -> None:
    text = "base: &b {x: 1}\nmore:\n  <<: *b\n  y: 2\nday: 2024-02-30\nyes: true\n"
    assert parse_document(text, "w", yaml=True) == {"base": {"x": 1}, "more": {"x": 1, "y": 2}, "day": "2024-02-30", True: True}


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.booleans())
def test_any_text_is_a_mapping_or_a_clear_error(text: str, is_yaml: bool) -> None:
    with contextlib.suppress(InvalidConfig):
        assert isinstance(parse_document(text, "w", yaml=is_yaml), dict)


def test_a_file_is_read_by_its_ending(tmp_path: Path) -> None:
    for name, text in (("a.json", '{"a": 1}'), ("b.yaml", "a: 1"), ("c.YML", "a: 1"), ("d.txt", '{"a": 1}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_document(tmp_path / name) == {"a": 1}


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"Config .*none.json' does not exist"):
        read_document(tmp_path / "none.json")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(InvalidConfig, match=r"bytes.yaml' is not UTF-8 text"):
        read_document(tmp_path / "bytes.yaml")
    with pytest.raises(StorageFailed, match="cannot read"):
        read_document(tmp_path)


def test_a_file_too_large_for_a_config_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": 123456789}', encoding="utf-8")
    with pytest.raises(InvalidConfig, match="larger than 10 bytes"):
        read_document(tmp_path / "a.json")
