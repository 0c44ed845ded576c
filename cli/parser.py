"""The argument parser, and the mapping of errors to exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from yggdrasill import __version__
from yggdrasill.cli.console import Console
from yggdrasill.errors import RemoteError, RunError, StorageFailed, VersionIncomplete, YggdrasillError

__all__ = ["build_parser", "main"]

#: Each command's module has ``add(parser)`` and ``main(arguments, console) -> exit code``.
_COMMANDS = {
    "run": "run a graph, pipeline, stage or world",
    "validate": "check a project without running it",
    "draw": "draw a project as SVG",
    "demo": "run a small world on several processes and compare the result with one process",
    "serve": "serve graphs to other machines",
    "gateway": "one address for many endpoints, with durable jobs",
    "endpoints": "list, add, pair, remove endpoints and check their health",
    "token": "show, add, rotate or revoke the tokens of an endpoint",
    "jobs": "list, show and cancel an endpoint's jobs",
    "place": "run parts of a ComfyUI workflow on other servers",
    "up": "start one ComfyUI endpoint per GPU from an existing installation",
    "version": "make, check and install version specs of ComfyUI",
    "worker": "run jobs of a RunPod endpoint: workflows, training, files",
    "templates": "list the templates of every level",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="yggdrasill", description="Run graphs, pipelines, stages and worlds on this machine and others.")
    parser.add_argument("--version", action="version", version=f"yggdrasill {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        command.add_argument("--json", action="store_true", help="print one JSON document only")
        importlib.import_module(f"yggdrasill.cli.{name}").add(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    console = Console(json_only=arguments.json)
    try:
        code: int = importlib.import_module(f"yggdrasill.cli.{arguments.command}").main(arguments, console)
    except YggdrasillError as error:
        console.fail(error)
        return 3 if isinstance(error, RemoteError) else 1 if isinstance(error, (RunError, StorageFailed, VersionIncomplete)) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return code
