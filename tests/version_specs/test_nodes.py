"""Custom nodes at their commits, from real repositories, and of the registry."""

from __future__ import annotations

import asyncio
import io
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from samples.file_server import FileServer
from samples.git_repositories import GitRepository
from yggdrasill.errors import AccessDenied, CorruptData, InvalidArgument, MissingFile, YggdrasillError
from yggdrasill.version_specs.git import GitRefused, head, run_git
from yggdrasill.version_specs.model import CustomNode
from yggdrasill.version_specs.nodes import check_node, install_node, remote_commit
from yggdrasill.version_specs.sources import SourcePool


@pytest.fixture
def repository(tmp_path: Path) -> GitRepository:
    return GitRepository(tmp_path / "upstream" / "pack")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "custom_nodes").mkdir()
    return tmp_path / "custom_nodes" / "pack"


def node(repository: GitRepository, **facts: Any) -> CustomNode:
    return CustomNode(name="pack", repository=repository.url, **facts)


def install(wanted: CustomNode, folder: Path, *, allow_private: bool = True, **environment: str) -> None:
    async def run() -> None:
        async with SourcePool(allow_private=allow_private, environment=environment) as pool:
            await install_node(wanted, folder, pool, environment)

    asyncio.run(run())


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_a_node_is_installed_at_its_commit(repository: GitRepository, folder: Path) -> None:
    first, second = repository.commit(text="a = 1\n"), repository.commit(text="a = 2\n")
    wanted = node(repository, commit=first)
    assert check_node(wanted, folder) == "is not installed"
    install(wanted, folder)
    assert check_node(wanted, folder) is None
    assert (folder / "__init__.py").read_text(encoding="utf-8") == "a = 1\n"
    assert check_node(node(repository, commit=second), folder) == f"is at commit {first[:12]}, expected {second}"
    assert entries(folder) == ["pack"]


def test_another_commit_is_checked_out_in_place(repository: GitRepository, folder: Path) -> None:
    first = repository.commit(text="a = 1\n")
    install(node(repository, commit=first), folder)
    (folder / "settings.json").write_text("{}", encoding="utf-8")
    second = repository.commit(text="a = 2\n")
    install(node(repository, commit=second), folder)
    assert head(folder) == second
    assert (folder / "settings.json").exists()


def test_local_changes_are_kept(repository: GitRepository, folder: Path) -> None:
    first, second = repository.commit(text="a = 1\n"), repository.commit(text="a = 2\n")
    install(node(repository, commit=first), folder)
    (folder / "__init__.py").write_text("mine\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"has local changes, which are kept\. Commit or discard them, then verify again"):
        install(node(repository, commit=second), folder)
    assert (folder / "__init__.py").read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("ref", ["v1.0", "main", "feature/x"])
def test_tags_and_branches_are_resolved(repository: GitRepository, folder: Path, ref: str) -> None:
    repository.commit()
    repository.git("tag", "-a", "v1.0", "-m", "one")
    repository.git("branch", "feature/x")
    commit = asyncio.run(remote_commit(repository.url, ref, allow_private=True))
    assert commit == repository.git("rev-parse", "HEAD")
    install(node(repository, gitRef=ref), folder)
    assert head(folder) == commit


def test_the_default_branch_is_taken_without_a_revision(repository: GitRepository, folder: Path) -> None:
    commit = repository.commit()
    install(node(repository), folder)
    assert head(folder) == commit
    assert check_node(node(repository), folder) is None
    assert asyncio.run(remote_commit(repository.url, None, allow_private=True)) == commit


def test_an_unknown_revision_leaves_nothing(repository: GitRepository, folder: Path) -> None:
    repository.commit()
    with pytest.raises(InvalidArgument, match=rf"git: .* has no revision {'c' * 40}"):
        install(node(repository, commit="c" * 40), folder)
    assert entries(folder) == []
    with pytest.raises(InvalidArgument, match="has no tag or branch 'none'"):
        asyncio.run(remote_commit(repository.url, "none", allow_private=True))


def test_a_repository_that_does_not_exist_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="git: fatal: "):
        install(CustomNode(name="pack", repository=(tmp_path / "none").as_uri(), commit="c" * 40), folder)
    assert entries(folder) == []


def test_a_folder_without_git_is_not_touched(repository: GitRepository, folder: Path) -> None:
    commit = repository.commit()
    folder.mkdir()
    (folder / "mine.py").write_text("", encoding="utf-8")
    assert check_node(node(repository, commit=commit), folder) == (
        "is not a git checkout, so its commit is unknown; remove the folder to install it again"
    )
    with pytest.raises(InvalidArgument, match=r"is not a git checkout\. Remove or rename the folder"):
        install(node(repository, commit=commit), folder)
    assert [path.name for path in folder.iterdir()] == ["mine.py"]


def test_a_folder_inside_the_checkout_of_comfyui_is_no_checkout(repository: GitRepository) -> None:
    """git itself would report ComfyUI's commit."""
    commit = repository.commit()
    inside = repository.folder / "custom_nodes" / "pack"
    inside.mkdir(parents=True)
    assert "is not a git checkout" in str(check_node(node(repository, commit=commit), inside))


def test_submodules_come_with_their_node(repository: GitRepository, folder: Path, tmp_path: Path) -> None:
    inner = GitRepository(tmp_path / "upstream" / "inner")
    inner.commit("inner.py", "x = 1\n")
    repository.git("submodule", "--quiet", "add", inner.url, "lib")
    install(node(repository, commit=repository.commit()), folder)
    assert (folder / "lib" / "inner.py").exists()


def test_hooks_of_a_repository_do_not_run(repository: GitRepository, folder: Path, tmp_path: Path) -> None:
    first, second = repository.commit(text="1\n"), repository.commit(text="2\n")
    install(node(repository, commit=first), folder)
    hook = folder / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n", encoding="utf-8")
    hook.chmod(hook.stat().st_mode | stat.S_IEXEC)
    install(node(repository, commit=second), folder)
    assert head(folder) == second
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "url, error",
    [("https://127.0.0.1/a/b", AccessDenied), ("https://localhost/a/b", AccessDenied), ("http://github.com/a/b", InvalidArgument)],
)
def test_a_private_repository_is_refused_unless_it_is_allowed(folder: Path, url: str, error: type[YggdrasillError]) -> None:
    with pytest.raises(error):
        install(CustomNode(name="pack", repository=url, commit="c" * 40), folder, allow_private=False)


def test_a_folder_of_this_machine_is_a_repository_only_if_it_is_allowed(repository: GitRepository, tmp_path: Path) -> None:
    with pytest.raises(GitRefused, match="transport 'file' not allowed"):
        run_git("ls-remote", "--", repository.url)


def test_a_node_that_is_only_local_is_named(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="Custom node 'pack' has no repository; it is only on the machine where the spec was made"):
        install(CustomNode(name="pack", source="local"), folder)


def test_a_version_of_the_registry_is_installed(server: FileServer, folder: Path) -> None:
    server.add_node("comfyui-kj", "1.2.3", {"__init__.py": "x = 1\n", "web/a.js": ""})
    wanted = CustomNode(name="pack", id="comfyui-kj", registryVersion="1.2.3")
    assert check_node(wanted, folder) == "is not installed"
    install(wanted, folder, COMFY_REGISTRY_URL=server.url)
    assert check_node(wanted, folder) is None
    assert (folder / ".tracking").read_text(encoding="utf-8").splitlines() == ["__init__.py", "pyproject.toml", "web/a.js"]
    assert entries(folder) == ["pack"]
    assert check_node(CustomNode(name="pack", id="comfyui-kj", registryVersion="2.0"), folder) == "has version 1.2.3, expected 2.0"


def test_a_version_that_the_registry_does_not_have_is_named(server: FileServer, folder: Path) -> None:
    with pytest.raises(MissingFile, match=r"/nodes/kj/install does not exist \(status 404\)"):
        install(CustomNode(name="pack", id="kj", registryVersion="1.0"), folder, COMFY_REGISTRY_URL=server.url)
    assert entries(folder) == []


def archive(*names: str, link: bool = False) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in names:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc")
    return packed.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        archive("../out.py"),
        archive("/out.py"),
        archive("a/../../out.py"),
        archive("C:/out.py"),
        archive("a", link=True),
        b"no zip",
        b"PK\x03\x04",
    ],
    ids=["parent", "absolute", "inside", "drive", "link", "text", "cut"],
)
def test_an_archive_that_leaves_its_folder_or_is_damaged_installs_nothing(server: FileServer, folder: Path, data: bytes) -> None:
    server.archives["kj-1.0.zip"] = data
    with pytest.raises(CorruptData, match=r"Nothing was installed\."):
        install(CustomNode(name="pack", id="kj", registryVersion="1.0"), folder, COMFY_REGISTRY_URL=server.url)
    assert entries(folder) == []
    assert not (folder.parent.parent / "out.py").exists()
