"""``yggdrasill run``: run a project of any level and write its results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yggdrasill.cli.console import Console, table
from yggdrasill.cli.inputs import parse_assignments
from yggdrasill.cli.outputs import describe, save_values
from yggdrasill.cli.projects import add_project_arguments, load_plugins, open_project
from yggdrasill.cli.worlds import run_world
from yggdrasill.errors import InvalidArgument
from yggdrasill.executor import enter_run
from yggdrasill.foundation.kinds import kind_of
from yggdrasill.stage import Stage, State
from yggdrasill.world import World

__all__ = ["add", "main", "state_values"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_project_arguments(parser)
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="an input (or a state block, 1 to 5); @file reads a file"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="a world's passes, or how often a graph's cycles run")
    parser.add_argument("--action", metavar="TEXT", help="what the user does at the start of a world's first pass")
    parser.add_argument("--seed", type=int, metavar="N", help="the random seed; equal seeds give equal results")
    parser.add_argument("--out", metavar="DIR", help="the folder to write results to")
    parser.add_argument("--endpoints", metavar="FILE", help="the endpoints.yaml that places graphs on endpoints")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the project and return the exit code."""
    load_plugins(arguments.plugin)
    registry = None
    if arguments.endpoints:
        from yggdrasill.remote import EndpointRegistry

        registry = EndpointRegistry.from_yaml(arguments.endpoints)
    project = open_project(arguments.config, parse_assignments(arguments.param), endpoints=registry)
    inputs = parse_assignments(arguments.input)
    if isinstance(project, World):
        return run_world(project, inputs, arguments, console)
    if arguments.action is not None and not isinstance(project, Stage):
        raise InvalidArgument(f"--action is for worlds and stages; this is a {kind_of(project.to_config(), 'graph').name}")
    options: dict[str, Any] = {} if arguments.steps is None else {"num_loop_steps": arguments.steps}
    with console.progress(100, project.id) as bar:

        def show(place: str, done: float, total: float, text: str | None) -> None:
            bar.n = 100 * done / total if total else 0
            bar.set_postfix_str(f"{place} {text or ''}")

        with enter_run(seed=arguments.seed, progress=show):
            if isinstance(project, Stage):
                outputs = state_values(project.run(State.of(inputs), action=arguments.action, **options))
            else:
                outputs = project.run(inputs, **options)
    saved = save_values(outputs, Path(arguments.out)) if arguments.out else {}
    console.say(table(["output", "value"], [[name, describe(value)] for name, value in outputs.items()]))
    for name, paths in saved.items():
        for path in paths:
            console.say(f"wrote {path}" + ("" if path.name.startswith(name) else f" (output {name!r})"))
    output_files = {name: [str(path) for path in paths] for name, paths in saved.items()}
    files = [path for paths in output_files.values() for path in paths]
    console.result({"outputs": {name: describe(value) for name, value in outputs.items()}, "files": files, "output_files": output_files})
    return 0


def state_values(state: State) -> dict[str, Any]:
    """Return a state's blocks and fields by name."""
    return {**{f"block_{number}": value for number, value in state.blocks.items()}, **state.fields}
