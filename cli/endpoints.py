"""``yggdrasill endpoints``: list, add, pair, remove and check the endpoints of an endpoints.yaml."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from pathlib import Path
from typing import Any

from yggdrasill.cli.console import Console, table
from yggdrasill.errors import InvalidArgument, InvalidConfig, RemoteError

__all__ = ["DEFAULT_FILE", "add", "main", "open_registry"]

DEFAULT_FILE = Path("~/.yggdrasill/endpoints.yaml")
STANDARD_INPUT = "-"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--file", default=str(DEFAULT_FILE), metavar="FILE", help="the endpoints.yaml (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="list endpoints and placements (default)")
    adding = actions.add_parser("add", help="add an endpoint")
    adding.add_argument("name", metavar="NAME")
    adding.add_argument("url", metavar="URL")
    adding.add_argument(
        "--token",
        metavar="TOKEN",
        help="'-' reads the endpoint's token from standard input; it is stored in secrets.yaml. A token given here is visible to other users of this machine",
    )
    adding.add_argument("--token-env", metavar="VARIABLE", help="the environment variable that holds the token")
    adding.add_argument("--ca", metavar="FILE", help="the certificate authority of an https endpoint")
    pairing = actions.add_parser("pair", help="add an endpoint with its pairing line, read from standard input")
    pairing.add_argument("name", nargs="?", metavar="NAME", help="its name (default: the name in the line)")
    pairing.add_argument("--ca", metavar="FILE", help="the certificate authority of an https endpoint")
    ping = actions.add_parser("ping", help="check endpoint health")
    ping.add_argument("names", nargs="*", metavar="NAME", help="the endpoints to check (default: all)")
    removing = actions.add_parser("remove", help="remove an endpoint")
    removing.add_argument("name", metavar="NAME")


def open_registry(path: str, *, must_exist: bool = True) -> Any:
    """Return the registry in a file; without ``must_exist`` an empty one for a missing file.

    Raises:
        MissingFile, InvalidConfig
    """
    from yggdrasill.remote import EndpointRegistry

    file = Path(path).expanduser()
    if not must_exist and not file.exists():
        return EndpointRegistry(path=file)
    return EndpointRegistry.from_yaml(file)


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the action and return the exit code: 3 if an endpoint does not answer a ping."""
    action = arguments.action or "list"
    registry = open_registry(arguments.file, must_exist=action in ("ping", "remove"))
    if action == "add":
        given = sys.stdin.readline().strip() if arguments.token == STANDARD_INPUT else arguments.token
        registry.add(arguments.name, arguments.url, token=given, token_env=arguments.token_env, ca=arguments.ca)
        registry.to_yaml()
        console.say(f"added {arguments.name} at {arguments.url}")
    elif action == "pair":
        _pair(registry, arguments.name, arguments.ca, console)
    elif action == "remove":
        registry.remove(arguments.name)
        registry.to_yaml()
        console.say(f"removed {arguments.name}")
    elif action == "ping":
        return _ping(registry, arguments.names or list(registry.endpoints), console)
    else:
        document = registry.to_dict()
        console.say(table(["endpoint", "url"], [[name, entry["url"]] for name, entry in document["endpoints"].items()]))
        console.say()
        console.say(table(["part", "runs on"], [*document["graphs"].items(), ["everything else", document["default"]]]))
    console.result(registry.to_dict())
    return 0


def _pair(registry: Any, name: str | None, ca: str | None, console: Console) -> None:
    from yggdrasill.remote.endpoint import read_pairing

    # not echoed: the line contains the token
    line = getpass.getpass("pairing line: ") if sys.stdin.isatty() else sys.stdin.readline()
    found = read_pairing(line)
    chosen = name or found.name
    if chosen is None:
        raise InvalidArgument("The pairing line has no name. Pass one: yggdrasill endpoints pair NAME")
    registry.add(chosen, found.url, token=found.token, ca=ca)
    registry.to_yaml()
    console.say(f"added {chosen} at {found.url}")


def _ping(registry: Any, names: list[str], console: Console) -> int:
    from yggdrasill.remote.loop_thread import loop_thread

    found: list[dict[str, Any]] = []
    for name in names:
        client = registry.client(name)
        start = time.perf_counter()
        try:
            health = loop_thread().run(client.health())
            found.append({"endpoint": name, "ok": True, "ms": round(1000 * (time.perf_counter() - start), 1), **health})
        except (RemoteError, InvalidConfig) as error:
            found.append({"endpoint": name, "ok": False, "error": error.to_dict()})
    rows = [
        [
            entry["endpoint"],
            f"{entry['ms']} ms",
            entry["version"] or "-",
            "{running} running, {queued} queued, {slots} slots".format(**entry["queue"]),
        ]
        if entry["ok"]
        else [entry["endpoint"], "-", "-", entry["error"]["message"]]
        for entry in found
    ]
    console.say(table(["endpoint", "answer", "version", "queue"], rows))
    console.result({"endpoints": found})
    return 0 if all(entry["ok"] for entry in found) else 3
