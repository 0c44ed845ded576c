"""What users get wrong on the command line is one line on standard error and exit code 2, for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.cli import main

#: file name -> content that cannot be what the name promises
BAD_FILES = {
    "broken.json": b"{oops",
    "deep.json": b"[" * 100_000,
    "latin.json": b'"\xff"',
    "latin.txt": b"\xff\xfe\xfa",
    "empty.png": b"",
    "text.png": b"not an image",
    "cut.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde\x00\x00\x00\x0cIDAT",
    "text.ygg": b"not an envelope",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, data in BAD_FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "list.yaml").write_text("[1, 2]\n", encoding="utf-8")
    (tmp_path / "plugin_that_fails.py").write_text("raise NameError('a typo')\n", encoding="utf-8")
    (tmp_path / "plugin_with_syntax_error.py").write_text("def\n", encoding="utf-8")
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err


@pytest.mark.parametrize("name", [*BAD_FILES, "folder.json", "missing.txt"])
@pytest.mark.parametrize("option", ["--input", "--param"])
def test_a_value_file_that_cannot_be_read_is_named(name: str, option: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["run", "template:upscale", option, f"image=@{files / name}"], capsys, name)


def test_a_file_without_read_permission_is_named(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments, **options)

    (files / "secret.txt").touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    refused(["run", "template:upscale", "--input", f"image=@{files / 'secret.txt'}"], capsys, "secret.txt", "Permission denied")


def test_a_json_text_nested_too_deeply_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    from yggdrasill.cli.inputs import parse_value

    assert parse_value("[" * 100_000) == "[" * 100_000


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "template:upscale", "--input", "image"], ["Expected NAME=VALUE, got 'image'"]),
        (["run", "template:upscale", "--input", "a=1", "--input", "a=2"], ["'a' is given twice"]),
        (["run", "template:canon_2.0", "--steps", "-1"], ["num_steps must be an integer of at least 0"]),
        (["run", "template:canon_2.0", "--input", "mood=calm"], ["Unknown state field 'mood'"]),
        (["run", "template:canon_2.0", "--input", "9=calm"], ["blocks 1, 2, 3, 4 and 5"]),
        (["run", "template:upscale", "--plugin", "plugin_that_fails"], ["plugin_that_fails", "NameError: a typo"]),
        (["run", "template:upscale", "--plugin", "plugin_with_syntax_error"], ["plugin_with_syntax_error", "SyntaxError"]),
        (["run", "FILES/list.yaml"], ["a config is a mapping"]),
        (["validate", "FILES/broken.json"], ["broken.json"]),
        (["validate", "FILES/latin.json"], ["latin.json", "UTF-8"]),
        (["validate", "template:upscale", "--param", "image=@FILES/text.png"], ["text.png"]),
        (["draw", "FILES/list.yaml"], ["a config is a mapping"]),
        (["draw", "template:upscale", "--endpoints", "FILES/missing.yaml"], ["missing.yaml"]),
        (["draw", "template:upscale", "--param", "a=@FILES/latin.txt"], ["latin.txt"]),
        (["demo", "--size", "1", "--out", "FILES/demo"], ["size"]),
        (["demo", "--steps", "-1", "--out", "FILES/demo"], ["steps"]),
        (["endpoints", "--file", "FILES/missing.yaml", "remove", "forge"], ["missing.yaml"]),
        (["endpoints", "--file", "FILES/new.yaml", "add", "forge", "not a url"], ["not a url"]),
        (["jobs", "--file", "FILES/missing.yaml", "list", "forge"], ["missing.yaml"]),
        (["place", "FILES/broken.json", "--file", "FILES/none.yaml"], ["broken.json"]),
        (["place", "FILES/missing.json", "--file", "FILES/none.yaml"], ["missing.json"]),
        (["place", "FILES/cut.png", "--file", "FILES/none.yaml"], ["cut.png"]),
        (["up", "--file", "FILES/none.yaml"], ["--gpus"]),
        (["up", "--gpus", "zero", "--file", "FILES/none.yaml"], ["zero"]),
        (["up", "--cpu", "1", "--comfy", "FILES/nowhere", "--file", "FILES/none.yaml"], ["nowhere"]),
        (["serve", "--graph", "FILES/missing.yaml", "--port", "0", "--data-dir", "FILES/data"], ["missing.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_user_error_of_any_command_is_one_line(
    arguments: list[str], words: list[str], files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(files))
    refused([word.replace("FILES", str(files)) for word in arguments], capsys, *words)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["run", "template:upscale", "--steps", "many"], ["jobs", "list"]])
def test_arguments_that_do_not_parse_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: yggdrasill" in capsys.readouterr().err


def test_with_json_a_user_error_is_a_document(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "template:upscale", "--input", f"image=@{files / 'text.png'}", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "InvalidArgument"
