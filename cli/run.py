"""``yggdrasill run``: run a project of any level and keep its results."""

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
    parser.add_argument("--action", metavar="TEXT", help="what a person does at the start of a world's first pass")
    parser.add_argument("--seed", type=int, metavar="N", help="the seed of everything random; equal seeds give equal results")
    parser.add_argument("--out", metavar="DIR", help="where to write the results")
    parser.add_argument("--endpoints", metavar="FILE", help="the endpoints.yaml that says which graph runs where")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the project."""
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
    files = [str(path) for path in save_values(outputs, Path(arguments.out))] if arguments.out else []
    console.say(table(["output", "value"], [[name, describe(value)] for name, value in outputs.items()]))
    for file in files:
        console.say(f"wrote {file}")
    console.result({"outputs": {name: describe(value) for name, value in outputs.items()}, "files": files})
    return 0


def state_values(state: State) -> dict[str, Any]:
    """A state's filled blocks and fields by name."""
    return {**{f"block_{number}": value for number, value in state.blocks.items()}, **state.fields}
