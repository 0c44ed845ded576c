"""Opening a project from what a person types: a config file, a saved folder or archive, or ``template:NAME``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options, unknown_name
from yggdrasill.foundation.archive import open_source
from yggdrasill.foundation.config import parse_document, read_document
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.templates import render_template, template_names
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage
from yggdrasill.world import World

__all__ = ["add_project_arguments", "level_of", "load_plugins", "open_project", "read_project"]

LEVELS: dict[str, Any] = {"graph": Graph, "pipeline": Pipeline, "stage": Stage, "world": World}
_MARKS = {"world": ("cycle", "stages"), "stage": ("pipelines",), "pipeline": ("graphs",), "graph": ("nodes",)}


def add_project_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a project."""
    parser.add_argument("config", metavar="CONFIG", help="a config (.yaml, .json), a saved folder or archive, or template:NAME")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a template's parameter; may be repeated")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="import a module that registers blocks")


def load_plugins(modules: list[str]) -> None:
    """Import the modules the command line names.

    Raises:
        InvalidConfig: one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InvalidConfig(f"plugin {module!r} cannot be imported: {error}; it must be a module on the Python path") from error
        except Exception as error:
            raise InvalidConfig(f"plugin {module!r} failed while it was imported: {type(error).__name__}: {error}") from error


def level_of(config: Mapping[str, Any]) -> str:
    """The level a config describes, told by its keys.

    Raises:
        InvalidConfig
    """
    for level, marks in _MARKS.items():
        if any(mark in config for mark in marks):
            return level
    raise InvalidConfig(
        f"this is no project: it has {format_options(map(str, config))}, but a graph has nodes, a pipeline graphs, a stage pipelines, a world stages and a cycle"
    )


def read_project(source: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The config a source holds and the folder its refs are relative to."""
    if source.startswith("template:"):
        name = source[len("template:") :]
        levels = [level for level in LEVELS if name in template_names(level)]
        if not levels:
            raise unknown_name(
                "template", name, [other for level in LEVELS for other in template_names(level)], "See: yggdrasill templates"
            )
        return render_template(levels[0], name, parameters), None
    path = Path(source)
    if path.is_dir() or path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        with open_source(path) as files:
            data = files.read("config.json")
            if data is not None:
                return parse_document(data.decode("utf-8"), files.describe("config.json"), yaml=False), path if path.is_dir() else None
    return read_document(path), path.parent


def open_project(source: str, parameters: Mapping[str, Any], *, endpoints: Any = None, validate: bool = False) -> Any:
    """The graph, pipeline, stage or world a source describes, with its states if it was saved with them."""
    config, base_dir = read_project(source, parameters)
    level = LEVELS[level_of(config)]
    path = Path(source)
    if not source.startswith("template:") and (path.is_dir() or (path.is_file() and path.suffix.lower() not in (".yaml", ".yml", ".json"))):
        project = level.load(path, endpoints=endpoints)
        if validate:
            project.validate(strict=True)
        return project
    return level.from_config(config, None, validate, base_dir=base_dir, endpoints=endpoints)
