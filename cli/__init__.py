"""The `yggdrasill` command: run, check, draw and serve projects of any level.

Exit codes: 0 success; 1 a run or a write failed; 2 invalid arguments or an invalid project; 3 an endpoint that could not
be reached or refused the call; 130 interrupted. README.md in this folder lists the commands.
"""

from __future__ import annotations

from yggdrasill.cli.parser import build_parser, main

__all__ = ["build_parser", "main"]
