"""The memory that a worker has free, and the number of jobs for which it is enough."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["free_memory", "job_slots"]

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int | None:
    """Return the bytes of memory that this machine, or its container, has free; None if that is unknown."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit.isdecimal():
            found.append(int(limit) - int((cgroup / "memory.current").read_text(encoding="ascii")))
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def job_slots(most: int, per_job: int, running: int, free: int | None) -> int:
    """Return how many jobs may run at the same time: those that run and those for which memory is free, at least 1 and at most ``most``."""
    return most if free is None else max(1, min(most, running + free // per_job))
