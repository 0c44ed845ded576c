"""The commands as a person types them, each in its own process where that is the point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samples.blocks import register_samples
from yggdrasill.cli import main
from yggdrasill.foundation import BlockRegistry, Edge, Graph


@pytest.fixture(autouse=True)
def sample_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples in the registry a command uses, for one test only."""
    registry = BlockRegistry()
    register_samples(registry)
    monkeypatch.setattr(BlockRegistry, "_global", registry)


@pytest.fixture
def adder(tmp_path: Path) -> Path:
    graph = Graph("adder")
    graph.add_node("first", "sample/add", config={"offset": 1})
    graph.add_node("second", "sample/double")
    graph.add_edge(Edge("first", "out", "second", "x"))
    for port in ("a", "b"):
        graph.expose_input("first", port, port)
    graph.expose_output("second", "y", "result")
    path = tmp_path / "adder.yaml"
    graph.save_config(path)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_run_prints_outputs_and_writes_them(adder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(adder), "--input", "a=2", "--input", "b=3", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert said(capsys)["outputs"] == {"result": "12"}
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == 12


def test_run_of_a_saved_folder_takes_its_weights_along(adder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph.from_yaml(adder)
    graph.load_state_dict({"first": {"offset": 10}}, strict=False)
    graph.save(tmp_path / "saved")
    assert main(["run", str(tmp_path / "saved"), "--input", "a=2", "--input", "b=3", "--json"]) == 0
    assert said(capsys)["outputs"] == {"result": "30"}


@pytest.mark.parametrize("name", ["config.yaml", "config.yml", "config.json"])
@pytest.mark.parametrize("command", [["run", "--input", "a=2", "--input", "b=3"], ["validate"], ["draw"]], ids=lambda words: words[0])
def test_a_command_opens_a_folder_with_any_config_that_load_opens(
    adder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: list[str]
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    Graph.from_yaml(adder).save_config(folder / name)
    assert Graph.load(folder).id == "adder"
    assert main([command[0], str(folder), *command[1:], "--json"]) == 0
    assert said(capsys)


def test_a_folder_without_a_config_is_an_error_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_config_of_no_kind_names_the_keys_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\n", encoding="utf-8")
    assert main(["validate", str(tmp_path / "x.yaml")]) == 2
    message = capsys.readouterr().err
    assert "its keys are 'a'" in message
    assert "pipeline ('graphs')" in message


def test_an_image_file_is_an_input_and_an_image_output_is_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (8, 4), (255, 0, 51)).save(tmp_path / "red.png")
    out = tmp_path / "out"
    code = main(["run", "template:upscale", "--input", f"image=@{tmp_path / 'red.png'}", "--out", str(out), "--json"])
    assert code == 0, capsys.readouterr()
    (file,) = said(capsys)["files"]
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.getpixel((0, 0)) == (255, 0, 51)
        assert image.width > 8


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["run", "missing.yaml"], 2, ["missing.yaml"]),
        (["run", "template:canon_3"], 2, ["canon_3", "canon_2.0"]),
        (["run", "template:canon_2.0", "--param", "sise=3"], 2, ["sise", "size"]),
        (["run", "ADDER", "--input", "a"], 2, ["NAME=VALUE"]),
        (["run", "ADDER", "--input", "c=1"], 2, ["'c'", "'a'", "'b'"]),
        (["run", "ADDER", "--action", "rain"], 2, ["--action"]),
        (["run", "ADDER", "--input", "a=1"], 1, ["first", "'b'"]),
        (["run", "ADDER", "--plugin", "no.such.module"], 2, ["no.such.module"]),
        (["run", "ADDER", "--endpoints", "nowhere.yaml"], 2, ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, words: list[str], adder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(adder) if word == "ADDER" else word for word in arguments]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words)


def test_a_mistake_is_a_document_if_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "missing.yaml", "--json"]) == 2
    assert said(capsys)["error"]["type"] == "MissingFile"


def test_validate_lists_what_is_wrong(adder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(adder), "--json"]) == 0
    assert said(capsys)["is_valid"] is True
    config = Graph.from_yaml(adder).to_config()
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**config, "exposed_inputs": []}), encoding="utf-8")
    assert main(["validate", str(broken), "--json"]) == 2
    assert any("'a'" in error for error in said(capsys)["errors"])


def test_validate_looks_inside_a_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "template:canon_2.0", "--json"]) == 0
    document = said(capsys)
    assert document["level"] == "world"
    assert document["errors"] == []


@pytest.mark.parametrize("name", ["text_to_image", "generate_and_upscale", "environment_stage", "canon_2.0"])
def test_draw_writes_an_svg_of_any_level(name: str, tmp_path: Path) -> None:
    target = tmp_path / "drawing.svg"
    assert main(["draw", f"template:{name}", "--out", str(target)]) == 0
    assert target.read_text(encoding="utf-8").startswith("<svg")


def test_draw_marks_where_parts_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = tmp_path / "endpoints.yaml"
    registry.write_text("endpoints:\n  forge: {url: 'http://127.0.0.1:8401'}\ngraphs:\n  creator: forge\n", encoding="utf-8")
    assert main(["draw", "template:canon_2.0", "--endpoints", str(registry), "--json"]) == 0
    assert ">forge<" in said(capsys)["svg"]


def test_a_world_leaves_pictures_and_a_chronicle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "template:canon_2.0", "--param", "size=64", "--steps", "2", "--seed", "5", "--action", "A flood comes", "--json"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    document = said(capsys)
    assert [stage["ran"] for stage in document["stages"]] == [False, False, True, True, True] + [True] * 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chronicle.html", "pass-01.png", "pass-02.png"]
    page = (tmp_path / "chronicle.html").read_text(encoding="utf-8")
    assert "A flood comes" in page
    assert "pass-02.png" in page


def test_templates_lists_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["templates", "--json"]) == 0
    found = said(capsys)["templates"]
    assert {entry["level"] for entry in found} == {"graph", "pipeline", "stage", "world"}
    assert {"text_to_image", "canon_2.0"} <= {entry["name"] for entry in found}


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "yggdrasill", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("yggdrasill ")
