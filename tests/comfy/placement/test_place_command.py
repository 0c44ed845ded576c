"""``yggdrasill place`` with two real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samples.comfy_graphs import Caller, load_image, node, token_of
from yggdrasill.cli import main

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]


@pytest.fixture
def command(a: Caller, b: Caller, tmp_path: Path) -> list[str]:
    """The start of a command line, with both servers in the registry and a workflow in ``prompt.json``."""
    picture = np.random.default_rng(91).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    prompt = {
        "1": load_image(a.server, "commanded.png", picture),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageBlur", image=("2", 0), blur_radius=2, sigma=1.5),
        "4": node("SaveImage", images=("3", 0), filename_prefix="commanded"),
    }
    workflow = {"nodes": [{"id": 2, "pos": [10, 50], "size": [10, 10]}], "groups": [{"title": "invert", "bounding": [0, 0, 99, 99]}]}
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    (tmp_path / "prompt.json").write_text(json.dumps(body), encoding="utf-8")
    registry = str(tmp_path / "endpoints.yaml")
    for name, caller in (("a", a), ("b", b)):
        assert main(["endpoints", "--file", registry, "add", name, caller.server.url, "--token", token_of(caller.server)]) == 0
    return ["place", str(tmp_path / "prompt.json"), "--file", registry]


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_workflow_is_partitioned_drawn_and_run(
    command: list[str], a: Caller, b: Caller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    whole = [*command, "--run", "--at", "a", "--out", str(tmp_path / "whole")]
    assert main([*whole, "--json"]) == 0
    assert said(capsys)["parts"] == []
    placed = [*command, "--run", "--at", "a", "--out", str(tmp_path / "placed"), "--on", "b", "--nodes", "2,3"]
    assert main([*placed, "--svg", str(tmp_path / "partitioned.svg")]) == 0
    told = capsys.readouterr().out
    assert "selection runs at b\n  nodes   2 ImageInvert, 3 ImageBlur\n  input   1.0 IMAGE\n  output  3.0 IMAGE\n" in told
    assert "<svg" in (tmp_path / "partitioned.svg").read_text(encoding="utf-8")
    assert b.jobs(graph_id="selection", limit=1)[0]["status"] == "COMPLETED"
    (one,), (other,) = (list((tmp_path / name).iterdir()) for name in ("whole", "placed"))
    with Image.open(one) as here, Image.open(other) as there:
        assert here.tobytes() == there.tobytes()


def test_a_part_is_selected_by_its_title(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*command, "--on", "b", "--part", "invert", "--json"]) == 0
    (part,) = said(capsys)["parts"]
    assert [call["nodes"] for call in part["calls"]] == [["2"]]
    assert main([*command, "--on", "b", "--part", "no such"]) == 2
    assert "Unknown part 'no such'" in capsys.readouterr().err


def test_a_refused_prompt_and_a_failing_node_name_the_node(
    command: list[str], a: Caller, b: Caller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"1": node("EmptyImage", width=-3, height=8, batch_size=1, color=0), "2": node("PreviewImage", images=("1", 0))}
    failing = {
        "1": node("TestSeveral", count=1),
        "2": node("TestFail", value=("1", 0), message="no oven"),
        "3": node("TestShow", value=("2", 0)),
    }
    for prompt, code, words in ((bad, 2, "node 1 (EmptyImage)"), (failing, 1, "node 2 (TestFail) failed: no oven")):
        Path(command[1]).write_text(json.dumps(prompt), encoding="utf-8")
        assert main([*command, "--run", "--at", a.server.url]) == code
        assert words in capsys.readouterr().err


def test_the_least_busy_server_runs_the_workflow(command: list[str], a: Caller, b: Caller, capsys: pytest.CaptureFixture[str]) -> None:
    slow = {
        "1": node("TestSeveral", count=1),
        "2": node("TestSlow", value=("1", 0), seconds=4.0, salt="busy"),
        "3": node("TestShow", value=("2", 0)),
    }
    a.start(slow)
    Path(command[1]).write_text(json.dumps({**slow, "2": node("TestDouble", value=("1", 0))}), encoding="utf-8")
    capsys.readouterr()
    assert main([*command, "--run", "--at", "a,b", "--json"]) == 0
    assert said(capsys)["run"] == {"server": "b", "outputs": {"3": {"text": ["0.0"]}}, "files": []}
    assert main([*command, "--run", "--at", "http://127.0.0.1:9,b", "--json"]) == 0
    assert said(capsys)["run"]["server"] == "b"
