"""The `yggdrasill` command: run, check, draw and serve projects of any level.

Exit codes: 0 done; 1 a run failed; 2 wrong arguments or an invalid project; 3 an endpoint could not be reached or
refused; 130 interrupted.
"""

from __future__ import annotations

from yggdrasill.cli.parser import build_parser, main

__all__ = ["build_parser", "main"]
