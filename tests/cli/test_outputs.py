"""Results as files: one file name per value, forms by kind, and values in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.cli import main
from yggdrasill.cli.outputs import describe, save_values
from yggdrasill.values import dumps, load


def file_names(saved: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {name: [path.name for path in paths] for name, paths in saved.items()}


def test_names_that_would_be_one_file_get_files_of_their_own(tmp_path: Path) -> None:
    saved = save_values({"a:b": "one", "a_b": "two", "A_B": "three"}, tmp_path)

    assert file_names(saved) == {"a:b": ["a_b.txt"], "a_b": ["a_b-2.txt"], "A_B": ["A_B-3.txt"]}
    assert [paths[0].read_text(encoding="utf-8") for paths in saved.values()] == ["one", "two", "three"]


def test_the_images_of_a_batch_do_not_take_the_file_of_another_value(tmp_path: Path) -> None:
    saved = save_values({"a": torch.zeros(2, 1, 1, 3), "a-0": torch.ones(1, 1, 1, 3), "a-1": "text"}, tmp_path)

    assert file_names(saved) == {"a": ["a-0.png", "a-1.png"], "a-0": ["a-0-2.png"], "a-1": ["a-1.txt"]}


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(alphabet="aAb:_-./ 12", min_size=1, max_size=5), unique=True, max_size=8))
def test_every_value_has_its_own_file(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("out")
    saved = save_values({name: f"value of {name}" for name in names}, folder)

    assert list(saved) == names
    assert {name: paths[0].read_text(encoding="utf-8") for name, paths in saved.items()} == {n: f"value of {n}" for n in names}
    assert len({path.name.casefold() for paths in saved.values() for path in paths}) == len(names)
    assert sorted(folder.iterdir()) == sorted(path for paths in saved.values() for path in paths)


@pytest.mark.parametrize(
    "value, suffix",
    [("text", ".txt"), ({"a": [1]}, ".json"), (None, ".json"), (float("nan"), ".ygg"), ("\ud800", ".ygg"), (b"bytes", ".ygg")],
)
def test_the_form_of_a_file_follows_the_value(value: Any, suffix: str, tmp_path: Path) -> None:
    ((path,),) = save_values({"x": value}, tmp_path).values()

    assert path.suffix == suffix
    again = load(path) if suffix == ".ygg" else json.loads(path.read_text()) if suffix == ".json" else path.read_text()
    assert repr(again) == repr(value)


def test_nothing_is_written_if_one_value_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_values({"a": "text", "b": object()}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_run_reports_the_file_of_each_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from yggdrasill.foundation import Graph

    graph = Graph("g")
    graph.add_node("n", "image/resize", config={"scale": 2}, auto_connect=False)
    graph.expose_input("n", "image", "image")
    graph.expose_output("n", "resized", "big:image")
    graph.expose_output("n", "resized", "big_image")
    graph.save_config(tmp_path / "g.yaml")
    (tmp_path / "one.ygg").write_bytes(dumps(torch.zeros(1, 2, 2, 3)))
    arguments = ["run", str(tmp_path / "g.yaml"), "--input", f"image=@{tmp_path / 'one.ygg'}", "--out", str(tmp_path / "out")]

    assert main([*arguments, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["output_files"]
    assert {name: [Path(path).name for path in paths] for name, paths in files.items()} == {
        "big:image": ["big_image.png"],
        "big_image": ["big_image-2.png"],
    }
    assert main(arguments) == 0
    assert "big_image.png (output 'big:image')" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value, text",
    [
        (torch.zeros(2, 3), "float32 [2, 3]"),
        ("two\n words", "two words"),
        ([1], "[1]"),
        ("x" * 200, "str: " + "x" * 90 + "..."),
    ],
)
def test_a_value_is_described_in_one_line(value: Any, text: str) -> None:
    assert describe(value) == text
