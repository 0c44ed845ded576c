"""Output of commands: text and tables, or one JSON document; progress bars and errors go to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from yggdrasill.errors import YggdrasillError

__all__ = ["Console", "table"]


class Console:
    """Standard output for results. With ``json_only`` it is exactly one JSON document."""

    def __init__(self, *, json_only: bool = False) -> None:
        self.json_only = json_only

    def say(self, text: str = "") -> None:
        """Print a line of text, unless the output is JSON."""
        if not self.json_only:
            print(text, flush=True)

    def result(self, document: Any) -> None:
        """Print the JSON document, if the output is JSON."""
        if self.json_only:
            print(json.dumps(document, ensure_ascii=False, indent=2, default=str), flush=True)

    def fail(self, error: YggdrasillError) -> None:
        """Print an error: text on standard error, or ``{"error": ...}``."""
        if self.json_only:
            self.result({"error": error.to_dict()})
        else:
            print(f"error: {error.message}", file=sys.stderr)

    def progress(self, total: int, what: str, unit: str = "it") -> tqdm[Any]:
        """Return a progress bar on standard error that appears after one second; ``B`` counts bytes."""
        return tqdm(
            total=total, desc=what, delay=1, disable=self.json_only, file=sys.stderr, leave=False, unit=unit, unit_scale=unit == "B"
        )


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a text table: left-aligned columns, numbers right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headings), *cells]) for column in range(len(headings))]
    right = [
        bool(cells) and all(line[column][:1].isdigit() or line[column] in ("", "-") for line in cells) for column in range(len(headings))
    ]

    def line(parts: Sequence[str]) -> str:
        return "  ".join(
            part.rjust(width) if end else part.ljust(width) for part, width, end in zip(parts, widths, right, strict=True)
        ).rstrip()

    return "\n".join([line(list(headings)), line(["-" * width for width in widths]), *map(line, cells)])
