"""``yggdrasill worker``: run as a RunPod worker, or run one of its jobs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yggdrasill.cli.console import Console
from yggdrasill.errors import InvalidArgument, MissingFile

__all__ = ["add", "main"]

_MODES = ("serverless", "cli")
_TRUE = ("1", "true", "yes")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "mode",
        nargs="?",
        choices=_MODES,
        help="serverless: take jobs with the RunPod SDK; cli: run one job (default: serverless if RUNPOD_SERVERLESS=1, else cli)",
    )
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="serverless: those of the SDK, such as --rp_serve_api; cli: --input JSON, @FILE or -, and --no-wait",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the worker and return the exit code."""
    mode = arguments.mode or ("serverless" if os.environ.get("RUNPOD_SERVERLESS", "").lower() in _TRUE else "cli")
    if mode == "serverless":
        from yggdrasill.worker.handler import run_serverless

        return run_serverless(arguments.arguments)
    return _run_job(arguments.arguments, console)


def _run_job(words: Sequence[str], console: Console) -> int:
    """Run one job in this process and print its result."""
    from yggdrasill.worker.handler import WorkerHost
    from yggdrasill.worker.settings import Settings

    parser = argparse.ArgumentParser(prog="yggdrasill worker cli", description="Run one job of a worker and print its result.")
    parser.add_argument("--input", required=True, metavar="JSON", help="the input of the job: JSON, @FILE, or - for standard input")
    parser.add_argument("--id", default="cli", metavar="ID", help="the id of the job (default: %(default)s)")
    parser.add_argument(
        "--no-wait", action="store_true", help="do not wait for trainings that the job started; another worker continues them"
    )
    chosen = parser.parse_args(list(words))
    given = _read(chosen.input)
    job = given if isinstance(given, dict) and isinstance(given.get("input"), dict) else {"input": given}
    host = WorkerHost(Settings.from_environment())
    try:
        result = host.run(host.service.handle({"id": chosen.id, **job}, lambda message: print(json.dumps(message), file=sys.stderr)))
        text = json.dumps(result, ensure_ascii=False, indent=2, default=str)
        console.say(text)
        console.result(result)
        if not chosen.no_wait and "error" not in result:
            host.run(host.service.runner.wait_idle())
    finally:
        host.close()
    return 1 if "error" in result else 0


def _read(text: str) -> Any:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        file = Path(text[1:])
        if not file.is_file():
            raise MissingFile(f"Cannot read the job from {str(file)!r}: no such file.", path=str(file))
        text = file.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"The job is not JSON: {error}. Pass it as --input JSON, @FILE or -.") from None
