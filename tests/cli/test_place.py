"""Workflow files, and a partition in words; what runs on servers is in tests/comfy/placement/test_place_command.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from samples.comfy_graphs import node
from samples.comfy_schemas import comfy_schemas
from yggdrasill.cli import main
from yggdrasill.cli.place import partition_picture, partition_text
from yggdrasill.cli.workflows import read_workflow
from yggdrasill.draw import draw_partition
from yggdrasill.errors import InvalidConfig, MissingFile
from yggdrasill.remote.partition import Part, partition_prompt

PROMPT: dict[str, Any] = {
    "1": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
    "2": node("CLIPTextEncode", text="a hill", clip=("1", 1)),
    "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "5": node("KSampler", model=("1", 0), positive=("2", 0), negative=("2", 0), latent_image=("4", 0), seed=1, steps=2),
    "6": node("VAEDecode", samples=("5", 0), vae=("1", 2)),
    "7": node("SaveImage", images=("6", 0), filename_prefix="x"),
}


def write(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def test_a_prompt_is_read_from_each_form_of_file(tmp_path: Path) -> None:
    extra: dict[str, Any] = {"extra_pnginfo": {"workflow": {"nodes": [], "groups": []}}}
    picture = PngInfo()
    picture.add_text("prompt", json.dumps(PROMPT))
    picture.add_text("workflow", json.dumps(extra["extra_pnginfo"]["workflow"]))
    Image.new("RGB", (4, 4)).save(tmp_path / "saved.png", pnginfo=picture)
    exported = read_workflow(write(tmp_path / "exported.json", PROMPT))
    posted = read_workflow(write(tmp_path / "posted.json", {"prompt": PROMPT, "extra_data": extra}))
    saved = read_workflow(tmp_path / "saved.png")
    assert exported.prompt == posted.prompt == saved.prompt == PROMPT
    assert (exported.name, exported.extra_data) == ("exported", {})
    assert posted.extra_data == saved.extra_data == extra


def test_a_workflow_of_the_editor_is_refused_with_the_way_to_export_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"Export \(API\)"):
        read_workflow(write(tmp_path / "workflow.json", {"nodes": [{"id": 1}], "links": [], "version": 0.4}))


@pytest.mark.parametrize("wrong", [[], {}, 3, {"prompt": {}}, {"1": {"inputs": {}}}, {"prompt": PROMPT, "extra_data": 3}])
def test_what_is_no_workflow_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InvalidConfig):
        read_workflow(write(tmp_path / "wrong.json", wrong))


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        read_workflow(tmp_path / "none.json")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    for name, said in (("plain.png", "an image without a prompt"), ("torn.png", "cannot be read"), ("text.json", "is not JSON")):
        with pytest.raises(InvalidConfig, match=said):
            read_workflow(tmp_path / name)


def test_a_partition_is_told_and_drawn() -> None:
    places = {"paint": "forge"}
    partition = partition_prompt(PROMPT, [Part("paint", frozenset(["4", "5", "6", "7"]))], comfy_schemas())
    told = partition_text(partition, PROMPT, places)
    assert told.splitlines()[0] == "paint runs at forge"
    assert "  nodes   4 EmptyLatentImage, 5 KSampler, 6 VAEDecode" in told
    assert "  copies  1 CheckpointLoaderSimple" in told
    assert "  input   2.0 CONDITIONING" in told
    assert "  output  6.0 IMAGE" in told
    assert "stays     7 SaveImage: it is an output node" in told
    picture = partition_picture(partition, PROMPT, places, comfy_schemas())
    (call,) = (each for each in picture["nodes"] if "place" in each)
    assert {inner["title"] for inner in call["inside"]["nodes"] if inner["copy"]} == {"1 CheckpointLoaderSimple"}
    assert {(each["source_port"], each["target_port"]) for each in picture["edges"]} >= {
        ("CONDITIONING", "CONDITIONING 2.0"),
        ("IMAGE 6.0", "images"),
    }
    assert "5 KSampler" in draw_partition(picture)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--nodes", "5"], "--on ENDPOINT"),
        (["--run"], "--at URL"),
        (["--on", "forge"], "Unknown endpoint 'forge'"),
        (["--at", "forge", "--run"], "Unknown endpoint 'forge'"),
    ],
)
def test_what_is_left_out_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str) -> None:
    file = write(tmp_path / "prompt.json", PROMPT)
    assert main(["place", file, "--file", str(tmp_path / "endpoints.yaml"), *given]) == 2
    assert said in capsys.readouterr().err


def test_an_endpoint_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, registry = write(tmp_path / "prompt.json", PROMPT), str(tmp_path / "endpoints.yaml")
    main(["endpoints", "--file", registry, "add", "gone", "http://127.0.0.1:9"])
    assert main(["place", file, "--file", registry, "--on", "gone"]) == 3
    assert main(["place", file, "--file", registry, "--run", "--at", "http://127.0.0.1:9"]) == 3
    assert "no ComfyUI answers" in capsys.readouterr().err
