"""``python -m yggdrasill.gateway '{"port": 0, ...}'``: serve a gateway with settings given as JSON."""

from __future__ import annotations

import sys

from yggdrasill.gateway.app import serve
from yggdrasill.server_ext.__main__ import main as serve_with

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Serve with the settings in the first argument (JSON)."""
    serve_with(arguments, serve)


if __name__ == "__main__":
    main(sys.argv[1:])
