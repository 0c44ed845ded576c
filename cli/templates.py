"""``yggdrasill templates``: the names that ``template:NAME`` accepts."""

from __future__ import annotations

import argparse

from yggdrasill.cli.console import Console, table
from yggdrasill.foundation.kinds import kind_names
from yggdrasill.foundation.templates import TEMPLATE_FOLDER, FileTemplate, template_names

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def main(arguments: argparse.Namespace, console: Console) -> int:
    """List the templates; the shipped ones with parameters and description."""
    found = []
    for level in kind_names():
        for name in template_names(level):
            file = TEMPLATE_FOLDER / level / f"{name}.yaml"
            template = FileTemplate(file) if file.exists() else None
            parameters = list(template.parameters) if template else []
            found.append({"level": level, "name": name, "parameters": parameters, "description": template.description if template else ""})
    console.say(table(["level", "name", "description"], [[entry["level"], entry["name"], entry["description"]] for entry in found]))
    console.result({"templates": found})
    return 0
