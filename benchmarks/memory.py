"""Memory during a measurement: the use of a process, warming the machine's memory, and folders in memory."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Peak", "measurable", "memory_folder", "peak_of", "resident", "warm_memory"]

STATUS = Path("/proc/self/status")
EVERY_SECONDS = 0.001
SHARED_MEMORY = Path("/dev/shm")
WARM_BYTES = 768 << 20
PAGE_BYTES = 4096


class Peak:
    """``extra`` bytes above the start, sampled every millisecond."""

    extra = 0


def measurable() -> bool:
    """Return whether this system reports RssAnon."""
    return sys.platform == "linux" and _anonymous() is not None


def _anonymous() -> int | None:
    found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def resident(pid: int) -> int | None:
    """Return the resident memory of a process in bytes, or None if this system does not report it."""
    status = Path(f"/proc/{pid}/status")
    if sys.platform != "linux" or not status.exists():
        return None
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def warm_memory() -> None:
    """Allocate memory, touch it and free it.

    A virtual machine returns freed memory to its host, and the next allocation would pay for getting it back.
    """
    block = bytearray(WARM_BYTES)
    block[::PAGE_BYTES] = bytes(len(range(0, WARM_BYTES, PAGE_BYTES)))


def memory_folder(nbytes: int) -> str | None:
    """Return a folder in memory with room for ``nbytes``, or None: pending disk writes then do not affect the next measurement."""
    if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < nbytes:
        return None
    return str(SHARED_MEMORY)


@contextmanager
def peak_of() -> Iterator[Peak]:
    """Sample the memory of this process during the block."""
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
