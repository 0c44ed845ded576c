"""The spec of an existing installation: what a ComfyUI folder contains."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import MissingFile, YggdrasillError
from yggdrasill.remote.model_names import is_model_file, is_plain_path
from yggdrasill.version_specs.cache import HashMemory
from yggdrasill.version_specs.git import GitRefused, head, is_checkout, run_git
from yggdrasill.version_specs.installation import base_version, comfy_python, run_python
from yggdrasill.version_specs.model import DEFINITION_SCHEMA, SCHEMA, CustomNode, VersionSpec, spec_from_document
from yggdrasill.version_specs.nodes import registry_version

__all__ = ["Scan", "scan_installation"]

_HASHING = 2
"""Files that are hashed at the same time."""
_FACTS = "import json, platform; print(json.dumps({'os': platform.system(), 'arch': platform.machine(), 'pythonVersion': platform.python_version()}))"
_TORCH = re.compile(r"^torch==(\S+)", re.MULTILINE)
_LOCAL_LINE = re.compile(r"^(-e |.* @ file:)")
_PROJECT_NAME = re.compile(r"""^name\s*=\s*["']([^"'\n]+)["']""", re.MULTILINE)


@dataclass(frozen=True)
class Scan:
    """A spec that was made, and what could not be taken into it."""

    spec: VersionSpec
    notes: tuple[str, ...] = ()


def scan_installation(
    home: Path,
    name: str,
    *,
    python: Path | None = None,
    hashes: HashMemory | None = None,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Callable[[int, int, str], object] | None = None,
) -> Scan:
    """Return the spec of a ComfyUI folder: its models hashed, custom nodes with their commits, the packages of its Python.

    ``hashes`` are those that are known from earlier; ``sources`` are urls of models by file name, see `yggdrasill.remote.model_names.model_sources`.

    Raises:
        MissingFile: the folder is not ComfyUI's. StorageFailed: a file cannot be read.
    """
    if not (home / "main.py").is_file():
        raise MissingFile(f"{str(home)!r} has no main.py; name the folder of ComfyUI.", path=str(home))
    notes: list[str] = []
    models = _scan_models(home / "models", hashes, sources or {}, progress, notes)
    definition: dict[str, Any] = {
        "schema": DEFINITION_SCHEMA,
        "models": models,
        "customNodes": list(_scan_nodes(home / "custom_nodes", notes)),
    }
    version = base_version(home)
    if version is not None:
        definition["baseComfyVersion"] = version
    chosen = python or comfy_python(home)
    if chosen is None:
        notes.append(f"packages were not listed: {home} has no Python environment; name it with --python FILE")
    else:
        definition |= _scan_packages(chosen, notes)
    document = {"schema": SCHEMA, "id": None, "name": name, "description": "", "syncedRevision": None, "definition": definition}
    return Scan(spec_from_document(document, str(home)), tuple(notes))


def _model_paths(models: Path) -> Iterator[Path]:
    """Yield the model files below a folder, with links followed, each folder once."""
    seen: set[str] = set()
    for folder, below, names in os.walk(models, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(each for each in below if not each.startswith("."))
        yield from (
            Path(folder, each) for each in sorted(names) if is_model_file(each) and not each.startswith(".") and Path(folder) != models
        )


def _scan_models(
    models: Path,
    hashes: HashMemory | None,
    sources: Mapping[str, Mapping[str, Any]],
    progress: Callable[[int, int, str], object] | None,
    notes: list[str],
) -> list[dict[str, Any]]:
    memory = hashes or HashMemory(Path(os.devnull) / "none")
    files = [path for path in _model_paths(models) if path.is_file()]
    total, done = sum(path.stat().st_size for path in files), 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total, "hashing")

    with ThreadPoolExecutor(_HASHING, "yggdrasill-scan") as threads:
        digests = list(threads.map(lambda path: memory.hash(path, add), files))
    memory.save()
    found = []
    for path, digest in zip(files, digests, strict=True):
        target = path.relative_to(models).as_posix()
        if not is_plain_path(target):
            notes.append(f"the model {target!r} was left out: its name is not valid on every system")
            continue
        source = sources.get(path.name, {})
        url = source.get("url") if str(source.get("sha256") or digest).lower() == digest else None
        entry = {"type": target.rpartition("/")[0], "filename": path.name, "sha256": digest, "sizeBytes": path.stat().st_size}
        found.append({**entry, "sourceUri": url} if url else {**entry, "source": "local", "localPath": target})
    local = sum("sourceUri" not in entry for entry in found)
    if local:
        notes.append(f"{local} of {len(found)} models have no url; add 'sourceUri', or urls by sha256 to x-yggdrasill.sources")
    return found


def _scan_nodes(folder: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the custom nodes that are enabled: of a repository, else of the registry, else local ones."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name
        if name.startswith((".", "__")) or name.endswith(".disabled") or not path.is_dir():
            if path.suffix == ".py":
                notes.append(f"the custom node {name!r} is a single file and was left out; put it into a repository")
            continue
        if not is_plain_path(name):
            notes.append(f"the custom node {name!r} was left out: its name is not valid on every system")
            continue
        yield _scan_node(path, notes)


def _scan_node(path: Path, notes: list[str]) -> dict[str, Any]:
    if is_checkout(path):
        try:
            commit = head(path)
            repository = run_git("remote", "get-url", "origin", folder=path)
            entry = {"name": path.name, "repository": re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", repository), "gitRef": commit}
            CustomNode.model_validate(entry)
            if run_git("status", "--porcelain", "--untracked-files=no", folder=path):
                notes.append(f"the custom node {path.name!r} has local changes, which are not in the spec")
        except (GitRefused, YggdrasillError, ValueError):
            notes.append(f"the custom node {path.name!r} has no commit or no https repository that others can fetch")
        else:
            return entry
    version = registry_version(path)
    if version is not None and (path / ".tracking").exists():
        text = (path / "pyproject.toml").read_text(encoding="utf-8", errors="replace")
        named = _PROJECT_NAME.search(text.partition("[project]")[2])
        return {"name": path.name, "id": named[1] if named else path.name, "registryVersion": version}
    return {"name": path.name, "source": "local", "localPath": path.name}


def _scan_packages(python: Path, notes: list[str]) -> dict[str, Any]:
    lines = run_python(python, "-m", "pip", "freeze", "--disable-pip-version-check").splitlines()
    local = [line for line in lines if _LOCAL_LINE.match(line)]
    if local:
        notes.append(f"packages that were installed from this machine were left out: {', '.join(local)}")
    text = "".join(f"{line}\n" for line in lines if line not in local)
    torch = _TORCH.search(text)
    environment = {**json.loads(run_python(python, "-c", _FACTS)), "torch": torch[1] if torch else None}
    return {"pipDependencies": text, "environment": environment}
