"""Files of other tools: ComfyUI-Manager snapshots of both ages, comfy-lock.yaml and comfy-pack archives, read as specs and written from them.

What one format has and the other has not is not carried over; `Imported.notes` lists it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from yggdrasill.errors import InvalidConfig, MissingFile, StorageFailed, format_options, unknown_name
from yggdrasill.foundation.config import MAX_DOCUMENT_BYTES, parse_document, read_document
from yggdrasill.values.files import write_file
from yggdrasill.version_specs.model import DEFINITION_SCHEMA, SCHEMA, CustomNode, ModelFile, VersionSpec, spec_from_document
from yggdrasill.version_specs.store import spec_text

__all__ = ["WRITERS", "Imported", "import_spec", "pack_bytes", "write_format"]

_FILE_MODELS = "models"
_PACK_SNAPSHOT, _PACK_REQUIREMENTS, _PACK_PROMPT = "snapshot.json", "requirements.txt", "workflow_api.json"


@dataclass(frozen=True)
class Imported:
    """A spec that was made from a file of another tool, and what the file has that the spec has not."""

    spec: VersionSpec
    notes: tuple[str, ...] = ()


def import_spec(path: str | Path, name: str | None = None) -> Imported:
    """Return the spec of a file: a version spec itself, a Manager snapshot, comfy-lock.yaml, or a comfy-pack archive or snapshot.

    ``name`` is the name of the spec, by default the stem of the file.

    Raises:
        MissingFile, InvalidConfig (with the place of a mistake), StorageFailed
    """
    file = Path(path)
    called = name or file.name.removesuffix(".cpack.zip").partition(".")[0]
    if file.suffix.lower() == ".zip":
        return _from_pack(file, called)
    document = read_document(file)
    where = str(file)
    if document.get("schema") == SCHEMA:
        spec = spec_from_document(document if name is None else {**document, "name": name}, where, file)
        return Imported(spec)
    if isinstance(document.get("custom_nodes"), list):
        return _from_pack_snapshot(document, "", None, called, where)
    if "models" in document or "custom_nodes" in document:
        return _from_lock(document, called, where)
    if "git_custom_nodes" in document:
        return _from_snapshot(document, called, where)
    known = f"a version spec ('schema': {SCHEMA!r}), a ComfyUI-Manager snapshot ('git_custom_nodes'), comfy-lock.yaml ('models'), comfy-pack (.cpack.zip)"
    raise InvalidConfig(f"{where}: unknown format; its keys are {format_options(map(str, document))}. Available: {known}.")


def write_format(spec: VersionSpec, path: str | Path, form: str) -> None:
    """Write a spec in the format of another tool, named as in `WRITERS`.

    Raises:
        UnknownName, StorageFailed
    """
    if form not in WRITERS:
        raise unknown_name("format", form, WRITERS)
    write_file(Path(path), WRITERS[form](spec, Path(path)), durable=True)


# -- ComfyUI-Manager ------------------------------------------------------------------------------------------------


def _from_snapshot(document: Mapping[str, Any], name: str, where: str) -> Imported:
    definition, notes = _snapshot_definition(document, where)
    return Imported(_spec(name, definition, where), tuple(notes))


def _snapshot_definition(document: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the definition in a snapshot. Older snapshots have neither ``cnr_custom_nodes`` nor ``pips``."""
    nodes: list[dict[str, Any]] = []
    notes: list[str] = []
    for url, facts in _mapping(document, "git_custom_nodes", where).items():
        entry = facts if isinstance(facts, Mapping) else {"hash": facts}
        if entry.get("disabled"):
            notes.append(f"the custom node {url} is disabled and was left out")
            continue
        nodes.append(_git_node(str(url), entry.get("hash")))
    for id_, version in _mapping(document, "cnr_custom_nodes", where).items():
        nodes.append({"name": id_, "id": id_, "registryVersion": version})
    files = document.get("file_custom_nodes") or []
    if not isinstance(files, list):
        raise InvalidConfig(f"{where}: 'file_custom_nodes' must be a list, got {type(files).__name__}")
    for entry in files:
        file = entry.get("filename") if isinstance(entry, Mapping) else entry
        notes.append(f"the custom node {file!r} is a single file and was left out; put it into a repository")
    definition: dict[str, Any] = {"schema": DEFINITION_SCHEMA, "models": [], "customNodes": nodes}
    if document.get("comfyui"):
        definition["baseComfyVersion"] = document["comfyui"]
    pips = _mapping(document, "pips", where)
    if pips:
        definition["pipDependencies"] = "".join(f"{requirement}\n" for requirement in pips)
    return definition, notes


def _git_node(url: str, commit: Any) -> dict[str, Any]:
    node = {"name": PurePosixPath(urlsplit(url).path).name.removesuffix(".git") or url, "repository": url}
    return {**node, **({"gitRef": commit} if commit else {})}


def _to_snapshot(spec: VersionSpec) -> dict[str, Any]:
    """Return the snapshot of a spec: nodes of repositories and of the registry, ComfyUI's revision, packages."""
    definition = spec.definition
    lines = [line.strip() for line in (definition.pip_dependencies or "").splitlines()]
    return {
        "comfyui": definition.base_comfy_version or "",
        "git_custom_nodes": {
            node.repository: {"hash": node.revision or "", "disabled": False} for node in definition.custom_nodes if node.repository
        },
        "cnr_custom_nodes": {
            node.id or node.name: node.registry_version for node in definition.custom_nodes if node.registry_version and not node.repository
        },
        "file_custom_nodes": [],
        "pips": {line: "" for line in lines if line and not line.startswith(("#", "-"))},
    }


# -- comfy-lock.yaml ------------------------------------------------------------------------------------------------


def _from_lock(document: Mapping[str, Any], name: str, where: str) -> Imported:
    definition, notes = _snapshot_definition(_mapping(document, "custom_nodes", where), where)
    entries = document.get("models") or []
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InvalidConfig(f"{where}: 'models' must be a list of mappings")
    for index, entry in enumerate(entries):
        hashes = [each for each in entry.get("hashes") or [] if isinstance(each, Mapping)]
        digest = next((each.get("hash") for each in hashes if str(each.get("type", "")).upper() == "SHA256"), None)
        paths = [each.get("path") for each in entry.get("paths") or [] if isinstance(each, Mapping) and each.get("path")]
        if not paths and not entry.get("type"):
            raise InvalidConfig(f"{where}: models[{index}] has neither 'paths' nor 'type'; it must have a folder")
        if digest is None:
            notes.append(f"models[{index}] ({entry.get('model')}) has no sha256; run: yggdrasill version lock")
        for path in paths or [f"{entry['type']}/{entry.get('model')}"]:
            definition["models"].append(_model(str(path), digest, None, entry.get("url")))
    return Imported(_spec(name, definition, where), tuple(notes))


def _model(path: str, digest: Any, size: Any, url: Any) -> dict[str, Any]:
    """Return the entry of a model whose path is below ComfyUI's folder or its folder of models."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    below = parts[parts.index(_FILE_MODELS) + 1 :] if _FILE_MODELS in parts[:-1] else parts
    entry: dict[str, Any] = {"type": "/".join(below[:-1]), "filename": below[-1] if below else ""}
    entry |= {key: value for key, value in (("sha256", digest), ("sizeBytes", size), ("sourceUri", url)) if value is not None}
    return entry if url else {**entry, "source": "local", "localPath": "/".join(below)}


def _to_lock(spec: VersionSpec) -> dict[str, Any]:
    models = [
        {
            "model": model.name,
            **({"url": model.source_uri} if model.source_uri else {}),
            "paths": [{"path": f"{_FILE_MODELS}/{model.target}"}],
            "hashes": [{"hash": model.sha256, "type": "SHA256"}] if model.sha256 else [],
            "type": model.type,
        }
        for model in spec.definition.models
    ]
    return {"basic": None, "models": models, "custom_nodes": _to_snapshot(spec)}


# -- comfy-pack -----------------------------------------------------------------------------------------------------


def _from_pack(file: Path, name: str) -> Imported:
    try:
        with zipfile.ZipFile(file) as archive:
            snapshot = parse_document(_entry(archive, _PACK_SNAPSHOT, file) or "{}", f"{file}/{_PACK_SNAPSHOT}", yaml=False)
            requirements = _entry(archive, _PACK_REQUIREMENTS, file)
            text = _entry(archive, _PACK_PROMPT, file)
            prompt = None if text is None else parse_document(text, f"{file}/{_PACK_PROMPT}", yaml=False)
    except FileNotFoundError:
        raise MissingFile(f"{str(file)!r} does not exist; check the path", path=str(file)) from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InvalidConfig(f"{str(file)!r} is not a zip archive that can be read: {error}") from error
    except OSError as error:
        raise StorageFailed(f"cannot read {str(file)!r}: {error.strerror or error}", path=str(file)) from error
    return _from_pack_snapshot(snapshot, requirements or "", prompt, name, str(file))


def _entry(archive: zipfile.ZipFile, name: str, file: Path) -> str | None:
    """Return the text of an entry, None without it."""
    try:
        facts = archive.getinfo(name)
    except KeyError:
        return None
    if facts.file_size > MAX_DOCUMENT_BYTES:
        raise InvalidConfig(f"{str(file)!r}: {name} has {facts.file_size} bytes, the limit is {MAX_DOCUMENT_BYTES}")
    with archive.open(facts) as entry:
        data = entry.read(MAX_DOCUMENT_BYTES + 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{str(file)!r}: {name} is not UTF-8 text: {error}") from error


def _from_pack_snapshot(document: Mapping[str, Any], requirements: str, prompt: dict[str, Any] | None, name: str, where: str) -> Imported:
    notes: list[str] = []
    definition: dict[str, Any] = {"schema": DEFINITION_SCHEMA, "models": [], "customNodes": []}
    if document.get("comfyui"):
        definition["baseComfyVersion"] = document["comfyui"]
    for key in ("models", "custom_nodes"):
        entries = document.get(key) or []
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InvalidConfig(f"{where}: {key!r} must be a list of mappings")
        for entry in entries:
            label = entry.get("filename") or entry.get("url")
            if entry.get("disabled"):
                notes.append(f"{label} is disabled and was left out")
            elif key == "models":
                source = entry.get("source")
                url = source.get("download_url") if isinstance(source, Mapping) else None
                definition["models"].append(_model(str(label), entry.get("sha256"), entry.get("size"), url))
            else:
                definition["customNodes"].append(_git_node(str(label), entry.get("commit_hash")))
    if requirements.strip():
        definition["pipDependencies"] = requirements
    if document.get("python"):
        definition["environment"] = {"pythonVersion": str(document["python"])}
    return Imported(_spec(name, definition, where, {} if prompt is None else {"workflow": prompt}), tuple(notes))


def pack_bytes(spec: VersionSpec) -> bytes:
    """Return the archive of comfy-pack for a spec: its snapshot, requirements and prompt, without model files; equal for equal specs."""
    snapshot = {
        "python": str((spec.definition.environment or {}).get("pythonVersion", "")),
        "comfyui": spec.definition.base_comfy_version or "",
        "models": [_pack_model(model) for model in spec.definition.models],
        "custom_nodes": [_pack_node(node) for node in spec.definition.custom_nodes if node.repository],
    }
    entries = {
        _PACK_SNAPSHOT: json.dumps(snapshot, indent=2, ensure_ascii=False),
        _PACK_REQUIREMENTS: spec.definition.pip_dependencies or "",
    }
    prompt = spec.read_prompt()
    if prompt is not None:
        entries[_PACK_PROMPT] = json.dumps(prompt, indent=2, ensure_ascii=False)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries.items():
            archive.writestr(zipfile.ZipInfo(name), text.encode("utf-8"), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _pack_model(model: ModelFile) -> dict[str, Any]:
    facts: dict[str, Any] = {"filename": f"{_FILE_MODELS}/{model.target}", "disabled": False}
    facts |= {key: value for key, value in (("size", model.size_bytes), ("sha256", model.sha256)) if value is not None}
    return {**facts, "source": {"download_url": model.source_uri} if model.source_uri else {}}


def _pack_node(node: CustomNode) -> dict[str, Any]:
    return {"url": node.repository, "commit_hash": node.revision or "", "disabled": False}


# -- all ------------------------------------------------------------------------------------------------------------


def _spec(name: str, definition: dict[str, Any], where: str, part: dict[str, Any] | None = None) -> VersionSpec:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "id": None,
        "name": name,
        "description": "",
        "syncedRevision": None,
        "definition": definition,
    }
    definition["customNodes"] = _distinct(definition["customNodes"])
    return spec_from_document({**document, **({"x-yggdrasill": part} if part else {})}, where)


def _distinct(nodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give nodes of equal names other names, by the owner of their repositories."""
    seen: set[str] = set()
    found = []
    for node in nodes:
        name = str(node["name"])
        if name.casefold() in seen and node.get("repository"):
            owner = PurePosixPath(urlsplit(node["repository"]).path).parent.name
            name = f"{name}-{re.sub(r'[^A-Za-z0-9._-]', '-', owner)}"
        seen.add(name.casefold())
        found.append({**node, "name": name})
    return found


def _mapping(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, Mapping):
        raise InvalidConfig(f"{where}: {key!r} must be a mapping, got {type(value).__name__}")
    return value


def _text(document: Mapping[str, Any], path: Path) -> bytes:
    if path.suffix.lower() not in (".yaml", ".yml"):
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
    import yaml

    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True).encode("utf-8")


WRITERS: dict[str, Callable[[VersionSpec, Path], bytes]] = {
    "build": lambda spec, path: spec_text(spec, yaml=path.suffix.lower() in (".yaml", ".yml")).encode("utf-8"),
    "snapshot": lambda spec, path: _text(_to_snapshot(spec), path),
    "lock": lambda spec, path: _text(_to_lock(spec), path),
    "pack": lambda spec, path: pack_bytes(spec),
}
"""Formats by name; each writer returns the bytes for a spec and a path."""
