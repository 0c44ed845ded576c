"""Properties of the machine that figures depend on, without names, paths and addresses."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import version

__all__ = ["facts"]


def facts() -> dict[str, str]:
    """Return CPU count, memory, system, Python and torch versions, and the date (UTC)."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processors": str(_processors()),
        "memory": _memory(),
        "system": f"{platform.system()}, {platform.machine()}",
        "Python": platform.python_version(),
        "torch": version("torch"),
    }


def _processors() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    if sys.platform == "win32":
        return "not read on Windows"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB"
