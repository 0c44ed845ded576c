"""Opening the project named on a command line: a config file, a saved folder or archive, or ``template:NAME``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options, unknown_name
from yggdrasill.foundation.archive import open_source
from yggdrasill.foundation.config import BuildOptions, read_document
from yggdrasill.foundation.kinds import Kind, build_project, detect_kind, kind_names, kinds
from yggdrasill.foundation.saving import read_config
from yggdrasill.foundation.templates import render_template, template_names
from yggdrasill.foundation.validation import ValidationResult

__all__ = ["add_project_arguments", "load_plugins", "open_project", "project_kind", "read_project", "validation_of"]


def add_project_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that name a project."""
    parser.add_argument("config", metavar="CONFIG", help="a config (.yaml, .json), a saved folder or archive, or template:NAME")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a template's parameter; may be repeated")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="import a module that registers blocks or kinds")


def load_plugins(modules: list[str]) -> None:
    """Import the modules named on the command line.

    Raises:
        InvalidConfig: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InvalidConfig(f"plugin {module!r} cannot be imported: {error}; it must be a module on the Python path") from error
        except Exception as error:
            raise InvalidConfig(f"plugin {module!r} failed while it was imported: {type(error).__name__}: {error}") from error


def project_kind(config: Mapping[str, Any]) -> Kind:
    """Return the kind of project that a config describes.

    Raises:
        InvalidConfig: it describes none, or an unknown one.
    """
    kind = detect_kind(config)
    if kind is None:
        marks = ", ".join(f"{kind.name} ({' or '.join(map(repr, kind.marks))})" for kind in kinds() if kind.marks)
        raise InvalidConfig(
            f"This config describes no project: its keys are {format_options(map(str, config))}. Available kinds, by their keys: {marks}."
        )
    return kind


def read_project(source: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Return the config in a source, and the folder that its ``ref`` paths are relative to.

    Raises:
        MissingFile, InvalidConfig; UnknownName: no template of that name.
    """
    if source.startswith("template:"):
        name = source[len("template:") :]
        names = {kind: template_names(kind) for kind in kind_names()}
        for kind, templates in names.items():
            if name in templates:
                return render_template(kind, name, parameters), None
        raise unknown_name("template", name, [other for templates in names.values() for other in templates], "See: yggdrasill templates")
    path = Path(source)
    if _is_save(path):
        with open_source(path) as files:
            return read_config(files), path if path.is_dir() else None
    return read_document(path), path.parent


def open_project(source: str, parameters: Mapping[str, Any], *, endpoints: Any = None, validate: bool = False) -> Any:
    """Return the runnable that a source describes, with its states if it is a save.

    Raises:
        MissingFile, InvalidConfig, UnknownBlockType; InvalidStructure if ``validate``.
    """
    config, base_dir = read_project(source, parameters)
    kind = project_kind(config)
    load = getattr(kind.load_class(), "load", None)
    if load is not None and not source.startswith("template:") and _is_save(Path(source)):
        project = load(Path(source), endpoints=endpoints)
    else:
        project = build_project(config, BuildOptions(base_dir=base_dir, endpoints=endpoints))
    if validate:
        validation_of(project).raise_if_invalid(f"{kind.name} {project.id!r}")
    return project


def validation_of(project: Any) -> ValidationResult:
    """Return the errors and warnings of a project and everything in it; none for a kind that is checked when it is built."""
    check = getattr(project, "validate", None)
    result: ValidationResult = ValidationResult() if check is None else check(strict=False, deep=True)
    return result


def _is_save(path: Path) -> bool:
    """Whether ``path`` is a folder or an archive that ``save`` can have written."""
    return path.is_dir() or (path.is_file() and path.suffix.lower() not in (".yaml", ".yml", ".json"))
