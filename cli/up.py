"""``yggdrasill up``: start one local ComfyUI endpoint per device from an existing installation."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from yggdrasill.cli.comfy_processes import ComfyProcess, comfy_processes, devices_of
from yggdrasill.cli.console import Console
from yggdrasill.cli.endpoints import DEFAULT_FILE, open_registry
from yggdrasill.cli.installation import find_installation
from yggdrasill.cli.serve import print_pairing
from yggdrasill.errors import InvalidArgument, RemoteError

__all__ = ["add", "main"]

_DATA_DIR = Path("~/.yggdrasill/up")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--gpus", metavar="LIST", help="GPU numbers, such as 0,1; 'cpu' is a server without a GPU")
    parser.add_argument("--cpu", type=int, default=0, metavar="N", help="number of servers without a GPU")
    parser.add_argument(
        "--comfy", metavar="PATH", help="the folder with ComfyUI's main.py (default: COMFYUI_PATH, or the one that contains this package)"
    )
    parser.add_argument("--python", metavar="FILE", help="the Python that runs it (default: COMFYUI_PYTHON, or that of its environment)")
    parser.add_argument(
        "--port",
        type=int,
        default=8188,
        help="the port of the first server, the next server uses the next port; 0 for free ports (default: %(default)s)",
    )
    parser.add_argument("--data-dir", default=str(_DATA_DIR), metavar="DIR", help="a folder for each server (default: %(default)s)")
    parser.add_argument(
        "--file", default=str(DEFAULT_FILE), metavar="FILE", help="the endpoints.yaml to register them in (default: %(default)s)"
    )
    parser.add_argument("--patience", type=float, default=300.0, metavar="SECONDS", help="time limit for a start (default: %(default)g)")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after '--': further flags for ComfyUI, such as -- --cache-lru 50")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Start the servers and keep them running until interrupted; return the exit code."""
    from yggdrasill.server_ext.auth import load_or_create_secret

    devices = devices_of(arguments.gpus, arguments.cpu)
    installation = find_installation(arguments.comfy, arguments.python)
    registry_file, folder = Path(arguments.file).expanduser(), Path(arguments.data_dir).expanduser().resolve()
    _check_names(registry_file, [device.name for device in devices])
    with _interrupted_by_signals(), comfy_processes(installation, devices, folder, port=arguments.port, flags=arguments.flags) as servers:
        tokens = {server.name: load_or_create_secret(server.data_dir / "token") for server in servers}
        for file in (registry_file, *(server.data_dir / "endpoints.yaml" for server in servers)):
            _register(file, servers, tokens)
        _wait(servers, tokens, arguments.patience, console)
        for server in servers:
            print_pairing(console, server.url, server.data_dir / "token", server.name)
        facts = [{"name": each.name, "url": each.url, "token_file": str(each.data_dir / "token")} for each in servers]
        console.result({"servers": facts, "endpoints": str(registry_file)})
        console.say("Ctrl-C stops them")
        return _keep(servers)


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Turn signals that end this process into an interrupt, so that the servers are stopped too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if name in signal.Signals.__members__]
    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _check_names(file: Path, names: Sequence[str]) -> None:
    """Raise `InvalidArgument` for a name that the registry uses for an endpoint on another machine."""
    known = open_registry(str(file), must_exist=False).endpoints
    for name in names:
        if name in known and urlsplit(known[name].url).hostname not in _LOOPBACK:
            raise InvalidArgument(
                f"{file} has another endpoint {name!r} at {known[name].url}; remove it with 'yggdrasill endpoints remove {name}', "
                "or register these in another file with --file"
            )


def _register(file: Path, servers: Sequence[ComfyProcess], tokens: dict[str, str]) -> None:
    """Add the servers to an endpoints.yaml, and their tokens to the secrets.yaml beside it."""
    from yggdrasill.remote.endpoint import Endpoint

    registry = open_registry(str(file), must_exist=False)
    for server in servers:
        registry.endpoints[server.name] = Endpoint(server.name, server.url, secret=tokens[server.name])
    registry.to_yaml()


def _wait(servers: Sequence[ComfyProcess], tokens: dict[str, str], seconds: float, console: Console) -> None:
    from yggdrasill.remote.client import EndpointClient
    from yggdrasill.remote.loop_thread import loop_thread

    def answers(client: EndpointClient) -> bool:
        try:
            loop_thread().run(client.health())
        except RemoteError:
            return False
        return True

    with console.progress(len(servers), "starting") as bar:
        for server in servers:
            bar.set_postfix_str(server.name)
            client = EndpointClient(server.url, token=tokens[server.name], name=server.name)
            took = server.wait_until(lambda client=client: answers(client), seconds=seconds)  # type: ignore[misc]
            bar.update()
            console.say(f"{server.name} is ready at {server.url} ({took:.0f} s)")


def _keep(servers: Sequence[ComfyProcess]) -> int:
    """Wait until all servers have ended, and report each; return exit code 3."""
    reported: set[str] = set()
    while len(reported) < len(servers):
        for server in servers:
            if not server.alive and server.name not in reported:
                reported.add(server.name)
                print(f"server {server.name!r} ended (return code {server.process.returncode}):\n{server.last_lines()}", file=sys.stderr)
        time.sleep(0.5)
    return 3
