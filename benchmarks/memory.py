"""How much anonymous memory a process takes beyond what it had, while it does something. Linux only."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Peak", "measurable", "peak_of"]

STATUS = Path("/proc/self/status")
EVERY_SECONDS = 0.001


class Peak:
    """``extra`` bytes over the start, as far as looking every millisecond shows."""

    extra = 0


def measurable() -> bool:
    """Whether this system tells RssAnon."""
    return sys.platform == "linux" and _anonymous() is not None


def _anonymous() -> int | None:
    found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return int(found[1]) << 10 if found else None


@contextmanager
def peak_of() -> Iterator[Peak]:
    """Watch this process during the block."""
    peak, start, done = Peak(), _anonymous() or 0, threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.extra = max(peak.extra, (_anonymous() or 0) - start)
            time.sleep(EVERY_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.extra = max(peak.extra, (_anonymous() or 0) - start)
