"""Tables and values in words."""

from __future__ import annotations

import pytest
import torch

from yggdrasill.cli import main
from yggdrasill.cli.console import table
from yggdrasill.cli.inputs import parse_assignments, parse_value
from yggdrasill.cli.outputs import describe


def test_numbers_stand_right_and_words_left() -> None:
    assert table(["name", "count"], [["a", 1], ["bcd", 22]]) == "name  count\n----  -----\na         1\nbcd      22"


def test_a_table_without_rows_has_its_headings() -> None:
    assert table(["a", "b"], []) == "a  b\n-  -"


def test_values_are_json_where_they_read_as_json() -> None:
    assert parse_assignments(["a=1", "b=[1, 2]", "c=plain words", "d=", 'e="1"']) == {
        "a": 1,
        "b": [1, 2],
        "c": "plain words",
        "d": "",
        "e": "1",
    }


def test_a_text_file_is_its_text(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "story.txt"
    path.write_text("Once", encoding="utf-8")
    assert parse_value(f"@{path}") == "Once"


def test_a_tensor_is_described_by_dtype_and_shape() -> None:
    assert describe(torch.zeros(1, 2, dtype=torch.bfloat16)) == "bfloat16 [1, 2]"
    assert "\n" not in describe({"a": torch.zeros(100, 100)})


def test_help_lists_every_command_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for command in ("run", "validate", "draw", "demo", "serve", "endpoints", "jobs", "place", "up", "templates"):
        assert f"\n    {command}" in text


@pytest.mark.parametrize("words", [["endpoints"], ["jobs"], ["run"], ["serve"], ["up"], ["place"]])
def test_help_of_a_command_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    assert f"usage: yggdrasill {words[0]}" in capsys.readouterr().out
