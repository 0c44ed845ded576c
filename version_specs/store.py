"""Files of version specs: reading and writing one, and finding one by its version id."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, UnknownVersion, UnsupportedVersion, format_options, unknown_name
from yggdrasill.foundation.config import read_document
from yggdrasill.values.files import write_file
from yggdrasill.version_specs.model import SCHEMA, VersionSpec, spec_from_document

__all__ = [
    "SUFFIXES",
    "VERSIONS_VARIABLE",
    "available_versions",
    "check_schema",
    "check_version_id",
    "load_version",
    "read_spec",
    "spec_text",
    "version_folders",
    "write_spec",
]

SUFFIXES = (".json", ".yaml", ".yml")
VERSIONS_VARIABLE = "YGGDRASILL_VERSIONS"
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_SHIPPED = Path(__file__).resolve().parent.parent / "versions"


def version_folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the folders in which versions are looked up: those in ``YGGDRASILL_VERSIONS``, ``versions`` in the working folder, the shipped examples."""
    named = [Path(text).expanduser() for text in environment.get(VERSIONS_VARIABLE, "").split(os.pathsep) if text]
    return [*named, Path("versions"), _SHIPPED]


def check_version_id(version_id: object) -> str:
    """Return a valid version id.

    Raises:
        InvalidArgument
    """
    if not isinstance(version_id, str) or not _ID.fullmatch(version_id):
        shown = repr(version_id) if len(repr(version_id)) <= 100 else f"{repr(version_id)[:100]}..."
        raise InvalidArgument(
            f"{shown} is not a version id. Use 1 to 200 letters, digits, '.', '_' and '-', without a '.' at the beginning.",
            version_id=shown,
        )
    return version_id


def available_versions(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files of all versions by id; the first folder that has an id wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for suffix in SUFFIXES:
            for file in sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else ():
                if _ID.fullmatch(file.stem) and file.is_file() and _is_inside(file, folder):
                    found.setdefault(file.stem, file)
    return found


def load_version(version_id: str, folders: Sequence[Path]) -> VersionSpec:
    """Return the spec ``<version_id>.json`` (or .yaml, .yml) in one of the folders.

    Raises:
        InvalidArgument: the id has another form. UnknownVersion: no folder has it; the message lists the available versions.
        InvalidConfig: the spec is invalid. UnsupportedVersion: it has another schema.
    """
    check_version_id(version_id)
    for folder in folders:
        for suffix in SUFFIXES:
            file = folder / f"{version_id}{suffix}"
            if file.is_file() and _is_inside(file, folder):
                return read_spec(file)
    where = f"Add {version_id}.json to one of: {format_options(map(str, folders))}."
    raise unknown_name("version", version_id, available_versions(folders), where, UnknownVersion)


def read_spec(path: str | Path) -> VersionSpec:
    """Return the spec in a .json, .yaml or .yml file.

    Raises:
        MissingFile, InvalidConfig (with the place of every mistake), UnsupportedVersion, StorageFailed
    """
    file = Path(path)
    document = read_document(file)
    check_schema(document, str(file))
    return spec_from_document(document, str(file), file)


def check_schema(document: Mapping[str, Any], where: str) -> None:
    """Raise `InvalidConfig` for a document that is not a version spec, and `UnsupportedVersion` for one of another version."""
    schema = document.get("schema")
    if schema == SCHEMA:
        return
    if isinstance(schema, str) and schema.startswith("comfy-build/"):
        raise UnsupportedVersion(f"{where}: schema {schema!r} is not supported. Available: {SCHEMA!r}.")
    raise InvalidConfig(
        f"{where}: not a version spec: 'schema' is {schema!r}, expected {SCHEMA!r}. "
        "Snapshots and lock files of other tools are read by: yggdrasill version init --from FILE"
    )


def spec_text(spec: VersionSpec, *, yaml: bool) -> str:
    """Return the text of a spec as JSON or YAML, equal for equal specs."""
    document = spec.to_document()
    if not yaml:
        return json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    import yaml as pyyaml

    class Dumper(pyyaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def write_text(dumper: pyyaml.SafeDumper, text: str) -> pyyaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, write_text)
    text: str = pyyaml.dump(document, Dumper=Dumper, allow_unicode=True, default_flow_style=False, sort_keys=False, width=4096)
    return text


def write_spec(spec: VersionSpec, path: str | Path) -> None:
    """Write a spec as YAML to a .yaml or .yml file, else as JSON; whole or not at all.

    Raises:
        InvalidArgument: the file has another suffix. StorageFailed
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise InvalidArgument(f"{file.name!r} has no suffix of a version spec. Available: {format_options(SUFFIXES)}.")
    write_file(file, spec_text(spec, yaml=file.suffix.lower() != ".json").encode("utf-8"), durable=True)


def _is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file, with links followed, is in its folder."""
    return file.resolve().is_relative_to(folder.resolve())
