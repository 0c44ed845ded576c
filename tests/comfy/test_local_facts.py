"""Which texts of a prompt name files of the user, and the tables of packs and of the user. ComfyUI's modules are replaced, the folders are real."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.partition import NodeTraits
from yggdrasill.server_ext.comfy.local_facts import PACK_FILE, USER_FILE, LocalFacts, names_user_file


class Lister:
    """A class whose combo lists what is in the input folder, and one that lists words."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {"chosen": (["frames", "clip.mp4"],)},
            "optional": {"word": ("COMBO", {"options": ["euler", "frames", "heun"]})},
        }


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI with a few files."""
    for name in ("input/frames", "input/sub/deep", "output", "temp", "models/loras", "custom_nodes/pack", "user/yggdrasill"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("input/clip.mp4", "output/done.png", "temp/look.png", "input/ink.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    folders = SimpleNamespace(
        base_path=str(tmp_path),
        folder_names_and_paths={"loras": None},
        get_filename_list=lambda name: ["ink.safetensors"],
        get_folder_paths=lambda name: [str(tmp_path / name)],
        get_input_directory=lambda: str(tmp_path / "input"),
        get_output_directory=lambda: str(tmp_path / "output"),
        get_temp_directory=lambda: str(tmp_path / "temp"),
        get_user_directory=lambda: str(tmp_path / "user"),
    )
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    monkeypatch.setitem(sys.modules, "nodes", SimpleNamespace(NODE_CLASS_MAPPINGS={"Lister": Lister}))
    return tmp_path


@pytest.mark.parametrize(
    "name, text",
    [
        ("video", "clip.mp4"),
        ("anything", "clip.mp4"),
        ("anything", "done.png [output]"),
        ("anything", "look.png [temp]"),
        ("anything", "sub/deep"),
        ("anything", "sub\\deep"),
        ("anything", "input/frames"),
        ("folder", "frames"),
        ("chosen", "frames"),
        ("image_path", " frames "),
    ],
)
def test_names_of_existing_files_count(name: str, text: str) -> None:
    assert names_user_file("Lister", name, text)


@pytest.mark.parametrize(
    "name, text",
    [
        ("video", "other.mp4"),
        ("text", "frames"),
        ("text", "a picture of frames.\nclip.mp4"),
        ("word", "frames"),
        ("filename_prefix", "sub/deep"),
        ("lora_name", "ink.safetensors"),
        ("path", ""),
        ("path", "  "),
        ("url", "https://example.org/clip.mp4"),
        ("path", "nul\0byte"),
        ("path", "x" * 900),
        ("path", "/nowhere/at/all"),
    ],
)
def test_other_texts_do_not_count(name: str, text: str) -> None:
    assert not names_user_file("Lister", name, text)


def test_absolute_paths_count(base: Path) -> None:
    assert names_user_file("Lister", "anything", str(base / "models"))


def test_tables_of_packs_and_of_the_user_extend_the_shipped_one(base: Path) -> None:
    (base / "custom_nodes" / "pack" / PACK_FILE).write_text(
        "nodes: {Mine: {saves: true}, Other: {stays: x}}\ntypes: {MINE: transferable}\n"
    )
    facts = LocalFacts()
    assert facts.facts().of("Mine").saves
    assert facts.facts().types["MINE"]
    assert facts.facts().of("VHS_LoadVideo").reads_files
    user = base / "user" / "yggdrasill" / USER_FILE
    user.write_text("nodes: {Mine: {}}\n")
    assert facts.facts().of("Mine") == NodeTraits()
    assert facts.facts().of("Other").stays == "x"


def test_a_wrong_table_of_a_pack_is_left_out_and_one_of_the_user_is_an_error(base: Path) -> None:
    (base / "custom_nodes" / "pack" / PACK_FILE).write_text("nodes: {Mine: {wrong: true}}\n")
    facts = LocalFacts()
    assert facts.facts().of("Mine") == NodeTraits()
    (base / "user" / "yggdrasill" / USER_FILE).write_text("nodes: {Mine: {wrong: true}}\n")
    with pytest.raises(InvalidConfig, match=r"node_traits\.yaml: node class 'Mine' has"):
        facts.facts()
