"""``yggdrasill serve``: run a headless endpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from yggdrasill.cli.console import Console

__all__ = ["add", "main", "print_pairing"]

DEFAULT_DATA_DIR = Path("~/.yggdrasill")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8400, help="the port, or 0 for any free one (default: %(default)s)")
    parser.add_argument(
        "--data-dir",
        default=str(DEFAULT_DATA_DIR),
        metavar="DIR",
        help="the folder for graphs, jobs, token and artifacts (default: %(default)s)",
    )
    parser.add_argument("--artifacts", metavar="DIR", help="a folder for artifacts that several endpoints may share")
    parser.add_argument(
        "--artifact-quota",
        type=float,
        metavar="GIB",
        help="maximum size of the artifact folder; the least recently used artifacts are removed (default: half of the free disk, at most 64)",
    )
    parser.add_argument(
        "--share-folder",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let callers on this machine read and write the artifact folder directly",
    )
    parser.add_argument(
        "--graph",
        action="append",
        default=[],
        metavar="FILE",
        help="serve the graph, pipeline, stage or world in this config; may be repeated",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="import a module that registers blocks; may be repeated"
    )
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="number of jobs that run at the same time (default: %(default)s)")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="URL", help="an endpoint from which tensors may be fetched directly; may be repeated"
    )
    parser.add_argument(
        "--peer-url",
        metavar="URL",
        help="the URL at which other endpoints reach this one (default: the address it listens on; if it listens on all, the one that the caller used)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name under which this endpoint is reached; may be repeated",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="an address or network of a reverse proxy whose X-Forwarded headers are believed; may be repeated (default: none)",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="serve https with this certificate (PEM, with its chain); needs --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="the key of the certificate (PEM, without a password)")
    parser.add_argument("--max-queue", type=int, default=1000, metavar="N", help="number of jobs that may wait (default: %(default)s)")


def print_pairing(console: Console, url: str, token_file: Path | None, name: str = "NAME") -> None:
    """Print how another machine adds the endpoint. The token is shown on a terminal only, and is never an argument of a command."""
    from yggdrasill.remote.endpoint import pairing_line

    if token_file is None:
        console.say(f"on another machine: yggdrasill endpoints add {name} {url} --token-env VARIABLE")
    elif sys.stdout.isatty():
        console.say(f"on another machine run 'yggdrasill endpoints pair {name}', and enter this line when it asks for it:")
        console.say(pairing_line(url, token_file.read_text(encoding="utf-8").strip()))
    else:
        console.say(f"on another machine: yggdrasill endpoints add {name} {url} --token -   (reads the token, which is in {token_file})")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Serve until interrupted; return the exit code."""
    from yggdrasill.server_ext.server import serve

    def ready(url: str, token_file: Path | None) -> None:
        console.say(f"serving at {url}")
        print_pairing(console, url, token_file)
        console.result({"url": url, "token_file": None if token_file is None else str(token_file)})

    serve(
        host=arguments.host,
        port=arguments.port,
        data_dir=Path(arguments.data_dir).expanduser(),
        artifacts=arguments.artifacts,
        share_folder=arguments.share_folder,
        artifact_quota=None if arguments.artifact_quota is None else int(arguments.artifact_quota * 2**30),
        graphs=[Path(path) for path in arguments.graph],
        plugins=arguments.plugin,
        slots=arguments.slots,
        peers=arguments.peer,
        peer_url=arguments.peer_url,
        allow_hosts=arguments.allow_host,
        trusted_proxies=arguments.trusted_proxy,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        max_queue=arguments.max_queue,
        ready=ready,
    )
    return 0
