"""ComfyUI's revision and the packages of its Python."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from samples.git_repositories import GitRepository
from yggdrasill.errors import StorageFailed
from yggdrasill.version_specs import requirements_check
from yggdrasill.version_specs.installation import base_version, check_packages, check_revision, comfy_python
from yggdrasill.version_specs.requirements_check import unmet


@pytest.fixture
def checkout(tmp_path: Path) -> GitRepository:
    repository = GitRepository(tmp_path / "ComfyUI")
    (repository.folder / "main.py").write_text("", encoding="utf-8")
    repository.commit("comfyui_version.py", '__version__ = "0.33.0"\n')
    return repository


def test_a_tag_a_branch_and_a_commit_are_compared_with_the_checkout(checkout: GitRepository) -> None:
    first = checkout.git("rev-parse", "HEAD")
    checkout.git("tag", "v0.33.0")
    assert base_version(checkout.folder) == "v0.33.0"
    for wanted in ("v0.33.0", "0.33.0", "main", first, first.upper()):
        assert check_revision(checkout.folder, wanted) is None
    second = checkout.commit("nodes.py", "")
    assert base_version(checkout.folder) == second
    for wanted in ("v0.33.0", first):
        expected = f"is at commit {second[:12]} (version 0.33.0), expected {wanted}; run: git -C {checkout.folder} checkout {wanted}"
        assert check_revision(checkout.folder, wanted) == expected


def test_a_release_that_the_checkout_has_no_tag_of_is_compared_by_its_version(checkout: GitRepository) -> None:
    assert check_revision(checkout.folder, "v0.33.0") is None
    assert "expected v0.46.0" in str(check_revision(checkout.folder, "v0.46.0"))


def test_a_folder_without_git_is_compared_by_its_version(home: Path) -> None:
    assert base_version(home) == "v0.33.0"
    assert check_revision(home, "v0.33.0") is None
    assert check_revision(home, "0.46.0") == "is version 0.33.0, expected 0.46.0"
    assert "has no git checkout" in str(check_revision(home, "a" * 40))


def test_a_folder_without_comfyui_is_named(tmp_path: Path) -> None:
    assert check_revision(tmp_path, "v1") == f"is not installed in {str(tmp_path)!r}; clone it there, or name its folder with COMFY_HOME"
    assert base_version(tmp_path) is None


def test_the_python_of_an_environment_is_found(home: Path) -> None:
    assert comfy_python(home) is None
    (home.parent / ".venv" / "bin").mkdir(parents=True)
    (home.parent / ".venv" / "bin" / "python").symlink_to(sys.executable)
    found = comfy_python(home)
    assert found is not None
    assert found.name == "python"
    assert found.is_symlink()


REQUIREMENTS = """
# a comment
--extra-index-url https://example.com/simple
-r other.txt
pydantic>=2.0   # met
PyYAML
aiohttp[speedups]>=3.0,<9
numpy==0.0.1
no-such-package==1.0
other-missing @ file:///somewhere
only-elsewhere==1; python_version < "3.0"
pillow==999 --hash=sha256:00
./local
torch
"""


def test_packages_are_checked_in_the_python_of_comfyui() -> None:
    found = check_packages(Path(sys.executable), REQUIREMENTS)
    assert [requirement for requirement, _ in found] == [
        "numpy==0.0.1",
        "no-such-package==1.0",
        "other-missing @ file:///somewhere",
        "pillow==999",
    ]
    reasons = dict(found)
    assert reasons["no-such-package==1.0"] == "is not installed"
    assert reasons["numpy==0.0.1"].startswith("version ")
    assert check_packages(Path(sys.executable), " \n") == []


def test_a_local_version_meets_its_release() -> None:
    release = importlib.metadata.version("torch").partition("+")[0]
    assert unmet(f"torch=={release}\n") == []


def test_exact_versions_are_compared_without_the_package_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements_check, "_packaging", lambda: None)
    assert [requirement for requirement, _ in unmet("numpy==0.0.1\nnumpy>=0.1\nno-such-package\n")] == ["numpy==0.0.1", "no-such-package"]


@pytest.mark.parametrize("text", ["===", "a==b==c; ;", "name[", "@", "x" * 5000, "a;b;c"])
def test_a_line_that_is_no_requirement_is_no_crash(text: str) -> None:
    assert all(len(entry) == 2 for entry in unmet(text))


def test_a_python_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"Cannot run .*none.*Name the Python of ComfyUI with --python FILE"):
        check_packages(tmp_path / "none", "a")
    with pytest.raises(StorageFailed, match="failed"):
        check_packages(Path("/bin/false"), "a")
