"""``python -m yggdrasill.server_ext '{"port": 0, ...}'``: serve one endpoint with settings given as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from yggdrasill.server_ext.server import serve

__all__ = ["main"]


def main(arguments: list[str], serve: Callable[..., None] = serve) -> None:
    """Call ``serve`` with the settings in the first argument (JSON).

    Prints one line of JSON with the url and the path of the token file when it listens.
    """
    serve(**json.loads(arguments[0]) if arguments else {}, ready=_announce)


def _announce(url: str, token_file: Path | None) -> None:
    sys.stdout.write(json.dumps({"url": url, "token_file": None if token_file is None else str(token_file)}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
