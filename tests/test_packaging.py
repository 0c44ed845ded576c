"""The repository is the package, however it is brought in: built, installed, or loaded by ComfyUI from any folder."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import yggdrasill

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"benchmarks", "build", "dist", "docs", "node_modules", "out", "tests", "web", "workflows"}

#: Loads each folder named on the command line the way ComfyUI loads a custom node, then imports submodules.
COMFYUI_LOADER = """
import importlib, importlib.util, json, os, sys
for folder in sys.argv[1:]:
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
from yggdrasill.foundation import Port
from yggdrasill.foundation.ports import Port as same
import yggdrasill
ports = [key for key in sys.modules if key.endswith("ports") and "foundation" in key]
print(json.dumps({"file": yggdrasill.__file__, "one": Port is same, "module": Port.__module__, "ports": ports}))
"""


def project() -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    settings: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings


def folders_with_python() -> set[str]:
    found = {path.parent.relative_to(ROOT).parts for path in ROOT.rglob("*.py")}
    return {".".join(("yggdrasill", *parts)) for parts in found if not parts or (parts[0] not in OUTSIDE and not parts[0].startswith("."))}


def copy_of_the_checkout(folder: Path) -> Path:
    outside = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "benchmarks", "build", "dist", "node_modules", "out", "tests")
    return Path(shutil.copytree(ROOT, folder, ignore=outside))


def load_like_comfyui(*folders: Path) -> subprocess.CompletedProcess[str]:
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", COMFYUI_LOADER, *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, env=bare, cwd=folders[0].parent)


def test_the_package_list_is_the_folders_that_hold_python() -> None:
    listed = project()["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == folders_with_python()


def test_every_package_is_a_regular_one() -> None:
    missing = [name for name in folders_with_python() if not ROOT.joinpath(*name.split(".")[1:], "__init__.py").is_file()]
    assert not missing


def test_requirements_txt_installs_nothing_into_comfyui() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("#")]


def test_every_dependency_has_a_pin() -> None:
    meta = project()["project"]
    asked = {
        requirement.split(">=")[0].partition("[")[0]
        for requirement in [*meta["dependencies"], *(r for extra in meta["optional-dependencies"].values() for r in extra)]
    }
    lines = [
        line for name in ("constraints.txt", "constraints-bench.txt") for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    ]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert asked <= pinned


def test_a_built_wheel_holds_the_package_with_its_version(tmp_path: Path) -> None:
    source = copy_of_the_checkout(tmp_path / "source")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in folders_with_python()
        for path in ROOT.joinpath(*package.split(".")[1:]).glob("*.py")
    }
    assert wheel.name.startswith(f"yggdrasill-{yggdrasill.__version__}-")
    assert {name for name in names if name.endswith(".py")} == {f"yggdrasill/{module}" for module in modules}
    assert "yggdrasill/py.typed" in names
    workflows = {path.relative_to(ROOT).as_posix() for path in ROOT.joinpath("workflows").rglob("*") if path.suffix in {".yaml", ".json"}}
    assert {f"yggdrasill/{file}" for file in workflows} <= names
    assert {f"yggdrasill/gateway/page/{file.name}" for file in ROOT.joinpath("gateway", "page").iterdir()} <= names


@pytest.mark.parametrize("name", ["ComfyUI-Yggdrasill", "yggdrasill", "my.nodes"])
def test_comfyui_loads_the_folder_under_any_name_with_one_identity_for_each_module(tmp_path: Path, name: str) -> None:
    folder = copy_of_the_checkout(tmp_path / "custom_nodes" / name)
    done = load_like_comfyui(folder)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert Path(loaded["file"]) == folder / "__init__.py"
    assert loaded["one"]
    assert loaded["module"] == "yggdrasill.foundation.ports"
    assert loaded["ports"] == ["yggdrasill.foundation.ports"]


def test_two_copies_refuse_each_other_by_name(tmp_path: Path) -> None:
    first = copy_of_the_checkout(tmp_path / "custom_nodes" / "ComfyUI-Yggdrasill")
    second = copy_of_the_checkout(tmp_path / "custom_nodes" / "yggdrasill")
    done = load_like_comfyui(first, second)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: two copies of yggdrasill")
    assert str(first / "__init__.py") in message
    assert str(second / "__init__.py") in message


def test_one_copy_reached_by_two_paths_is_no_second_copy(tmp_path: Path) -> None:
    folder = copy_of_the_checkout(tmp_path / "custom_nodes" / "ComfyUI-Yggdrasill")
    link = tmp_path / "custom_nodes" / "yggdrasill"
    link.symlink_to(folder, target_is_directory=True)
    done = load_like_comfyui(folder, link)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ports"] == ["yggdrasill.foundation.ports"]
