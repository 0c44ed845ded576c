"""``yggdrasill token``: show or replace the token of an endpoint's data folder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from yggdrasill.cli.console import Console
from yggdrasill.cli.serve import DEFAULT_DATA_DIR

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("show", "print the token; create it if there is none"),
        ("rotate", "replace the token; a running endpoint refuses the old one at once"),
    ):
        action = actions.add_parser(name, help=summary)
        action.add_argument(
            "--data-dir", default=str(DEFAULT_DATA_DIR), metavar="DIR", help="the data folder of the endpoint (default: %(default)s)"
        )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the action and return the exit code."""
    from yggdrasill.server_ext.auth import TOKEN_VARIABLE, resolve_token, rotate_token

    data_dir = Path(arguments.data_dir).expanduser()
    token = rotate_token(data_dir) if arguments.action == "rotate" else resolve_token(data_dir, environment={})
    console.say(token)
    if os.environ.get(TOKEN_VARIABLE):
        print(f"{TOKEN_VARIABLE} is set; an endpoint that is started with it uses that token and not this one", file=sys.stderr)
    console.result({"token": token, "token_file": str(data_dir / "token")})
    return 0
