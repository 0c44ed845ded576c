"""``yggdrasill jobs``: list, show and cancel the jobs of an endpoint."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from yggdrasill.cli.console import Console, table
from yggdrasill.cli.endpoints import DEFAULT_FILE, open_registry

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--file", default=str(DEFAULT_FILE), metavar="FILE", help="the endpoints.yaml (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the newest jobs")
    listing.add_argument("endpoint", metavar="ENDPOINT")
    listing.add_argument("--status", metavar="STATUS", help="only jobs in this state")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="the number of jobs (default: %(default)s)")
    for name, summary in (("show", "show one job"), ("cancel", "cancel a job")):
        action = actions.add_parser(name, help=summary)
        action.add_argument("endpoint", metavar="ENDPOINT")
        action.add_argument("job_id", metavar="JOB")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the action and return the exit code."""
    from yggdrasill.remote.loop_thread import loop_thread

    client = open_registry(arguments.file).client(arguments.endpoint)
    if arguments.action == "list":
        rows: list[dict[str, Any]] = loop_thread().run(client.jobs(status=arguments.status, limit=arguments.limit))
        console.say(
            table(
                ["job", "graph", "principal", "status", "created"],
                [[r["job_id"], r["graph_id"], r.get("principal", "-"), r["status"], _time(r["created"])] for r in rows],
            )
        )
        console.result({"jobs": rows})
        return 0
    row = loop_thread().run(client.cancel(arguments.job_id) if arguments.action == "cancel" else client.job(arguments.job_id))
    console.say(table(["", ""], [[key, value] for key, value in row.items() if value is not None]))
    console.result(row)
    return 0


def _time(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return "-"
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
