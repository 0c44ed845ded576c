"""Folders on pods and on serverless workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from yggdrasill.version_specs.cache import HashMemory
from yggdrasill.version_specs.model import spec_from_document
from yggdrasill.version_specs.places import cache_root, comfy_home, models_folder, on_this_machine, volume_path


def mounts(folder: Path, *present: str) -> tuple[Path, Path]:
    for name in present:
        (folder / name).mkdir()
    return folder / "runpod-volume", folder / "workspace"


@pytest.mark.parametrize("named, present", [("workspace", "runpod-volume"), ("runpod-volume", "workspace")])
def test_a_path_of_a_volume_is_valid_where_it_is_mounted_elsewhere(tmp_path: Path, named: str, present: str) -> None:
    volumes = mounts(tmp_path, present)
    assert on_this_machine(tmp_path / named / "ComfyUI" / "models", volumes) == tmp_path / present / "ComfyUI" / "models"
    assert on_this_machine(tmp_path / present / "x", volumes) == tmp_path / present / "x"


def test_with_both_mounts_the_path_that_exists_is_used(tmp_path: Path) -> None:
    volumes = mounts(tmp_path, "workspace", "runpod-volume")
    (tmp_path / "runpod-volume" / "ComfyUI").mkdir()
    assert on_this_machine(tmp_path / "workspace" / "ComfyUI", volumes) == tmp_path / "runpod-volume" / "ComfyUI"
    assert on_this_machine(tmp_path / "workspace" / "new", volumes) == tmp_path / "workspace" / "new"
    (tmp_path / "workspace" / "ComfyUI").mkdir()
    assert on_this_machine(tmp_path / "workspace" / "ComfyUI", volumes) == tmp_path / "workspace" / "ComfyUI"


def test_other_paths_and_machines_without_a_volume_are_left_alone(tmp_path: Path) -> None:
    volumes = mounts(tmp_path)
    assert on_this_machine("/data/models", volumes) == Path("/data/models")
    assert on_this_machine(tmp_path / "workspace" / "a", volumes) == tmp_path / "workspace" / "a"


def test_the_cache_is_named_or_on_the_volume_or_at_home(tmp_path: Path) -> None:
    volumes = mounts(tmp_path, "runpod-volume")
    assert cache_root({}, volumes) == tmp_path / "runpod-volume" / "comfy-cache"
    assert cache_root({"COMFY_CACHE_ROOT": str(tmp_path / "workspace" / "c")}, volumes) == tmp_path / "runpod-volume" / "c"
    assert cache_root({}, mounts(tmp_path / "none")) == Path("~/.cache/yggdrasill").expanduser()


def test_comfyui_and_its_models_are_found_by_the_environment(tmp_path: Path) -> None:
    volumes = mounts(tmp_path, "runpod-volume")
    assert comfy_home({"COMFY_HOME": str(tmp_path / "workspace" / "ComfyUI")}, volumes) == tmp_path / "runpod-volume" / "ComfyUI"
    assert comfy_home({}, mounts(tmp_path / "none")) == Path("/workspace/ComfyUI")
    plain = spec_from_document({"schema": "comfy-build/1", "name": "n", "definition": {}}, "x")
    home = tmp_path / "ComfyUI"
    assert models_folder(plain, home, environment={}) == home / "models"
    assert models_folder(plain, home, environment={"MODELS_DIR": "/data/m"}) == Path("/data/m")
    named = spec_from_document(
        {"schema": "comfy-build/1", "name": "n", "definition": {}, "x-yggdrasill": {"models_dir": str(tmp_path / "workspace" / "m")}}, "x"
    )
    assert models_folder(named, home, environment={"MODELS_DIR": "/data/m"}, volumes=volumes) == tmp_path / "runpod-volume" / "m"
    assert models_folder(named, home, "/given", volumes=volumes) == Path("/given")


def test_hashes_are_known_wherever_the_volume_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = mounts(tmp_path, "workspace")
    monkeypatch.setattr("yggdrasill.version_specs.cache.volume_path", lambda path: volume_path(path, volumes))
    (tmp_path / "workspace" / "a").write_bytes(b"a")
    memory = HashMemory(tmp_path / "workspace" / "hashes.json")
    digest = memory.hash(tmp_path / "workspace" / "a")
    memory.save()
    (tmp_path / "workspace").rename(tmp_path / "runpod-volume")
    assert HashMemory(tmp_path / "runpod-volume" / "hashes.json").known(tmp_path / "runpod-volume" / "a") == digest
