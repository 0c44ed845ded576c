"""``yggdrasill templates``: what ``template:NAME`` can name."""

from __future__ import annotations

import argparse

from yggdrasill.cli.console import Console, table
from yggdrasill.foundation.templates import TEMPLATE_FOLDER, FileTemplate, template_names

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """There are no arguments."""


def main(arguments: argparse.Namespace, console: Console) -> int:
    """List the shipped templates with their parameters."""
    found = []
    for level in ("graph", "pipeline", "stage", "world"):
        for name in template_names(level):
            template = FileTemplate(TEMPLATE_FOLDER / level / f"{name}.yaml")
            found.append({"level": level, "name": name, "parameters": list(template.parameters), "description": template.description})
    console.say(table(["level", "name", "parameters", "description"], [[t["level"], t["name"], ", ".join(t["parameters"]), t["description"]] for t in found]))
    console.result({"templates": found})
    return 0
