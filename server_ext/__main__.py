"""``python -m yggdrasill.server_ext '{"port": 0, ...}'``: one endpoint with the settings given as JSON; it prints where it listens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from yggdrasill.server_ext.server import serve

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Serve with the JSON settings of the first argument."""
    serve(**json.loads(arguments[0]) if arguments else {}, ready=_announce)


def _announce(url: str, token_file: Path | None) -> None:
    sys.stdout.write(json.dumps({"url": url, "token_file": None if token_file is None else str(token_file)}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
