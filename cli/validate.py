"""``yggdrasill validate``: build a project and report every error and warning."""

from __future__ import annotations

import argparse
from typing import Any

from yggdrasill.cli.console import Console
from yggdrasill.cli.inputs import parse_assignments
from yggdrasill.cli.projects import add_project_arguments, load_plugins, open_project, validation_of
from yggdrasill.foundation.kinds import kind_of

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_project_arguments(parser)


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Return exit code 0 without errors, 2 with errors."""
    load_plugins(arguments.plugin)
    project: Any = open_project(arguments.config, parse_assignments(arguments.param))
    found, kind = validation_of(project), kind_of(project.to_config(), "graph").name
    for message in found.errors:
        console.say(f"error: {message}")
    for message in found.warnings:
        console.say(f"warning: {message}")
    console.say(f"{kind} {project.id!r}: {len(found.errors)} errors, {len(found.warnings)} warnings")
    console.result({"level": kind, "id": project.id, "errors": found.errors, "warnings": found.warnings, "is_valid": found.is_valid})
    return 0 if found.is_valid else 2
