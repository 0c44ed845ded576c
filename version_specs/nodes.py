"""Custom nodes in ComfyUI's folder: whether each is at its commit or version, and installing those that are not.

Only code is fetched. Requirements of a node are packages of the version, and its install scripts are not run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, StorageFailed, YggdrasillError
from yggdrasill.remote.public_hosts import check_resolved_host
from yggdrasill.values.files import failing
from yggdrasill.version_specs.git import GitRefused, head, is_checkout, resolve, run_git
from yggdrasill.version_specs.model import COMMIT, CustomNode
from yggdrasill.version_specs.sources import SourcePool

__all__ = ["REGISTRY_VARIABLE", "check_node", "install_node", "registry_version", "remote_commit"]

REGISTRY_VARIABLE = "COMFY_REGISTRY_URL"
_REGISTRY = "https://api.comfy.org"
_CLONE_S = 1800.0
_MAX_ANSWER = 1 << 20
_MAX_ARCHIVE = 1 << 30
_MAX_UNPACKED = 4 << 30
_MAX_FILES = 100_000
Result = TypeVar("Result")
_PROJECT_VERSION = re.compile(r"""^version\s*=\s*["']([^"'\n]+)["']""", re.MULTILINE)


def check_node(node: CustomNode, folder: Path) -> str | None:
    """Return None if a node's folder has the wanted code, else why not. Nothing is sent.

    Raises:
        UnsupportedFormat: git is not installed.
    """
    if not folder.exists():
        return "is not installed"
    if node.registry_version and not node.repository:
        found = registry_version(folder)
        return None if found == node.registry_version else f"has version {found or 'unknown'}, expected {node.registry_version}"
    if node.revision is None:
        return None
    if not is_checkout(folder):
        return "is not a git checkout, so its commit is unknown; remove the folder to install it again"
    try:
        present = head(folder)
    except GitRefused as error:
        return f"cannot be read by git: {error}"
    wanted = node.revision.lower() if COMMIT.fullmatch(node.revision.lower()) else resolve(folder, node.revision)
    return None if present == wanted else f"is at commit {present[:12]}, expected {node.revision[:40]}"


def registry_version(folder: Path) -> str | None:
    """Return the version in a node's pyproject.toml."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    _, _, project = text.partition("[project]")
    found = _PROJECT_VERSION.search(project.partition("\n[")[0])
    return found[1] if found else None


async def install_node(node: CustomNode, folder: Path, pool: SourcePool, environment: Mapping[str, str] = os.environ) -> None:
    """Install a node into ``folder``, or check out its revision there. After a failure the folder is as before.

    Raises:
        InvalidArgument: the node has no source, or its checkout has local changes. Otherwise errors of git, of the network and of the disk.
    """
    if node.repository:
        if not pool.allow_private:
            if not node.repository.startswith("https://"):
                raise InvalidArgument(f"The repository {node.repository!r} is not an https url.")
            await check_resolved_host(node.repository)
        await _in_thread(lambda: _check_out(node, folder, pool.allow_private))
    elif node.registry_version:
        await _install_from_registry(node, folder, pool, environment)
    else:
        raise InvalidArgument(
            f"Custom node {node.name!r} has no repository; it is only on the machine where the spec was made. Copy it to {str(folder)!r}."
        )


async def remote_commit(repository: str, revision: str | None, *, allow_private: bool) -> str:
    """Return the commit of a tag or branch of a repository, or of its default branch.

    Raises:
        InvalidArgument: the repository has no such tag or branch. Otherwise as `install_node`.
    """
    if not allow_private:
        await check_resolved_host(repository)
    names = ["HEAD"] if revision is None else [f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}"]
    text = await _in_thread(lambda: run_git("ls-remote", "--", repository, *names, allow_private=allow_private))
    found = {name: commit for commit, _, name in (line.partition("\t") for line in text.splitlines())}
    commit = next((found[name] for name in names if name in found), None)
    if commit is None:
        raise InvalidArgument(f"{repository} has no tag or branch {revision!r}.")
    return commit


async def _in_thread(act: Callable[[], Result]) -> Result:
    """Return ``act()`` of a thread, with git's refusals as errors of ours."""
    try:
        return await asyncio.to_thread(act)
    except GitRefused as error:
        raise InvalidArgument(f"git: {error}") from None


def _check_out(node: CustomNode, folder: Path, allow_private: bool) -> None:
    if folder.exists():
        _update(node, folder, allow_private)
        return
    new = _beside(folder)
    with failing(folder):
        new.mkdir(parents=True)
    try:
        run_git("init", "--quiet", folder=new)
        run_git("remote", "add", "--", "origin", _repository(node), folder=new)
        _fetch(node, new, allow_private)
        with failing(folder):
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _update(node: CustomNode, folder: Path, allow_private: bool) -> None:
    if not is_checkout(folder):
        raise InvalidArgument(f"{str(folder)!r} is not a git checkout. Remove or rename the folder to install the node there.")
    if run_git("status", "--porcelain", "--untracked-files=no", folder=folder):
        raise InvalidArgument(f"{str(folder)!r} has local changes, which are kept. Commit or discard them, then verify again.")
    _fetch(node, folder, allow_private)


def _fetch(node: CustomNode, folder: Path, allow_private: bool) -> None:
    """Check out the revision of a node, fetched from its repository: that revision alone if the server allows it."""
    revision = node.revision or "HEAD"
    options: dict[str, Any] = {"folder": folder, "allow_private": allow_private, "timeout": _CLONE_S}
    try:
        run_git("fetch", "--quiet", "--depth", "1", "--no-tags", _repository(node), revision, **options)
        commit = run_git("rev-parse", "--verify", "FETCH_HEAD^{commit}", folder=folder)
    except GitRefused:
        # a server that refuses single commits
        run_git("fetch", "--quiet", "--tags", "--force", _repository(node), "+refs/heads/*:refs/remotes/origin/*", **options)
        found = resolve(folder, revision)
        if found is None:
            raise GitRefused(f"{node.repository} has no revision {revision}") from None
        commit = found
    run_git("checkout", "--quiet", "--detach", commit, folder=folder)
    if (folder / ".gitmodules").exists():
        run_git("submodule", "update", "--quiet", "--init", "--recursive", "--depth", "1", **options)


async def _install_from_registry(node: CustomNode, folder: Path, pool: SourcePool, environment: Mapping[str, str]) -> None:
    if await asyncio.to_thread(folder.exists):
        raise InvalidArgument(
            f"{str(folder)!r} has another version. Remove or rename the folder to install version {node.registry_version}."
        )
    base = environment.get(REGISTRY_VARIABLE, _REGISTRY).rstrip("/")
    name, version = node.id or node.name, node.registry_version or ""
    facts = b"".join(
        [
            chunk
            async for chunk in _read(pool, f"{base}/nodes/{quote(name, safe='')}/install?version={quote(version, safe='')}", _MAX_ANSWER)
        ]
    )
    try:
        url = json.loads(facts)["downloadUrl"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise CorruptData(f"The registry did not answer with a 'downloadUrl' for {name} {version}. Use a repository and a commit.")
    new = _beside(folder)
    archive = new.with_suffix(".zip")
    try:
        with failing(archive):
            archive.parent.mkdir(parents=True, exist_ok=True)
            with archive.open("wb") as file:
                async for chunk in _read(pool, url, _MAX_ARCHIVE):
                    file.write(chunk)
        await asyncio.to_thread(_unpack, archive, new)
        with failing(folder):
            new.rename(folder)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(new, ignore_errors=True)


async def _read(pool: SourcePool, url: str, most: int) -> AsyncGenerator[bytes, None]:
    """Yield the bytes at a url; raise `LimitExceeded` above ``most`` bytes."""
    count = 0
    async with pool.open(url).open_range(0, None) as response:
        async for chunk in response.chunks():
            count += len(chunk)
            if count > most:
                raise LimitExceeded(f"The answer of the registry has more than {most} bytes.", bound=most)
            yield chunk


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of the registry with the list of its files that ComfyUI-Manager expects.

    Raises:
        CorruptData: it is not a zip file, or a name leaves the folder. LimitExceeded, StorageFailed
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            if len(entries) > _MAX_FILES or sum(entry.file_size for entry in entries) > _MAX_UNPACKED:
                raise LimitExceeded(f"The archive has {len(entries)} files or more bytes than {_MAX_UNPACKED}.", bound=_MAX_UNPACKED)
            for entry in entries:
                parts = PurePosixPath(entry.filename).parts
                is_link = stat.S_ISLNK(entry.external_attr >> 16)
                if not parts or entry.filename.startswith("/") or ".." in parts or re.search(r"[\\:\x00]", entry.filename) or is_link:
                    raise CorruptData(
                        f"The archive has the entry {entry.filename[:100]!r}, which is a link or leaves its folder. Nothing was installed."
                    )
            with failing(folder):
                file.extractall(folder)
                names = sorted(entry.filename for entry in entries if not entry.is_dir())
                (folder / ".tracking").write_text("\n".join(names), encoding="utf-8")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, YggdrasillError):
            raise
        raise CorruptData(f"The registry sent an archive that cannot be read ({type(error).__name__}). Nothing was installed.") from error
    except StorageFailed:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _repository(node: CustomNode) -> str:
    if node.repository is None:
        raise InvalidArgument(f"Custom node {node.name!r} has no repository.")
    return node.repository


def _beside(folder: Path) -> Path:
    """Return a new path in the same folder; ComfyUI ignores folders with this suffix."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.disabled")
