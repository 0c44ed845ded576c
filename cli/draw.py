"""``yggdrasill draw``: draw a project and its placement as SVG."""

from __future__ import annotations

import argparse
import sys

from yggdrasill.cli.console import Console
from yggdrasill.cli.inputs import parse_assignments
from yggdrasill.cli.projects import add_project_arguments, load_plugins, read_project
from yggdrasill.draw import draw_config
from yggdrasill.values.files import write_file

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_project_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="the SVG file to write (default: standard output)")
    parser.add_argument("--endpoints", metavar="FILE", help="mark placements from this endpoints.yaml")
    parser.add_argument("--title", metavar="TEXT", help="a heading")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Draw the config without building blocks or loading weights."""
    load_plugins(arguments.plugin)
    parameters = parse_assignments(arguments.param)
    config, _ = read_project(arguments.config, parameters)
    places = None
    if arguments.endpoints:
        from yggdrasill.remote import EndpointRegistry

        places = EndpointRegistry.from_yaml(arguments.endpoints).places(config)
    svg = draw_config(config, places=places, title=arguments.title)
    if arguments.out:
        write_file(arguments.out, svg.encode("utf-8"))
        console.say(f"wrote {arguments.out}")
        console.result({"file": arguments.out})
    elif console.json_only:
        console.result({"svg": svg})
    else:
        sys.stdout.write(svg)
    return 0
