"""No path of a request leaves the workspace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yggdrasill.errors import AccessDenied, InvalidArgument, MissingFile, YggdrasillError
from yggdrasill.worker.files import list_files
from yggdrasill.worker.workspace import FOLDERS, Workspace, plain_name


def test_the_five_folders_are_made_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work")
    workspace.make()
    (workspace.output / "kept.txt").write_text("kept", encoding="utf-8")

    workspace.make()

    assert sorted(path.name for path in workspace.root.iterdir()) == sorted(FOLDERS)
    assert (workspace.output / "kept.txt").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "output/../../secret", "~/x/../../..", "output/link/secret", "C:/Windows", "..\\secret"]
)
def test_a_path_outside_is_refused(workspace: Workspace, path: str) -> None:
    (workspace.root.parent / "secret").write_text("secret", encoding="utf-8")
    (workspace.output / "link").symlink_to(workspace.root.parent, target_is_directory=True)
    (workspace.root / "~").mkdir()
    with pytest.raises((AccessDenied, MissingFile)) as caught:
        workspace.resolve(path)
    assert caught.value.details["code"] in ("path_outside_workspace", "unknown_file")
    assert str(workspace.root) not in caught.value.message


def test_rows_of_processes_have_no_path(workspace: Workspace) -> None:
    row = workspace.processes / "0193a5b2c4d6-1f2e3d4c" / "row.json"
    row.parent.mkdir(parents=True)
    row.write_text("{}", encoding="utf-8")
    (workspace.output / "row.json").symlink_to(row)
    for path in (
        "logs/.processes",
        "logs/.processes/0193a5b2c4d6-1f2e3d4c/row.json",
        str(row),
        "output/row.json",
        "logs/../logs/.processes",
    ):
        for must_exist in (True, False):
            with pytest.raises(MissingFile) as caught:
                workspace.resolve(path, must_exist=must_exist)
            assert caught.value.details["code"] == "unknown_file"
    assert list_files(workspace)["files"] == []


def test_a_link_to_a_file_outside_is_refused(workspace: Workspace) -> None:
    (workspace.root.parent / "secret").write_text("secret", encoding="utf-8")
    (workspace.output / "picture.png").symlink_to(workspace.root.parent / "secret")
    with pytest.raises(AccessDenied) as caught:
        workspace.resolve("output/picture.png")
    assert caught.value.details["code"] == "path_outside_workspace"


def test_a_path_is_bound_to_a_folder_of_the_workspace(workspace: Workspace) -> None:
    (workspace.logs / "x").write_text("x", encoding="utf-8")
    with pytest.raises(AccessDenied):
        workspace.resolve("../logs/x", below="output")


def test_relative_and_absolute_paths_inside_are_accepted(workspace: Workspace) -> None:
    file = workspace.output / "a b" / "ü.png"
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert workspace.resolve("output/a b/ü.png") == workspace.resolve(str(file)) == Path(os.path.realpath(file))
    assert workspace.name(file) == "output/a b/ü.png"
    assert workspace.resolve("output/new", must_exist=False).parent == Path(os.path.realpath(workspace.output))


@pytest.mark.parametrize("path", [None, 3, "", " ", "a\0b", "x" * 2000, ["output"]])
def test_what_is_not_a_path_is_an_invalid_argument(workspace: Workspace, path: object) -> None:
    with pytest.raises(InvalidArgument, match="A path must be a text"):
        workspace.resolve(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "output", "link", "a", "", "~", "/", "\\", "C:", "training_data", "\u202e"]), max_size=8))
def test_every_resolved_path_is_inside(workspace: Workspace, parts: list[str]) -> None:
    link = workspace.output / "link"
    if not link.is_symlink():
        link.symlink_to("/", target_is_directory=True)
    try:
        found = workspace.resolve("/".join(parts), must_exist=False)
    except YggdrasillError:
        return
    assert Path(os.path.realpath(found)).is_relative_to(os.path.realpath(workspace.root))


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "", " ", "CON", "nul.txt", "a:b", "a" * 300, "a.", None, "x\n"])
def test_names_that_are_not_plain_are_refused(name: object) -> None:
    with pytest.raises(InvalidArgument):
        plain_name(name)


def test_a_plain_name_is_returned() -> None:
    assert plain_name("My picture (1).PNG") == "My picture (1).PNG"
