"""The parent watchdog: ends this process when its parent exits.

The parent holds the other end of an inherited pipe, which closes when the parent exits for any reason.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["PARENT_PIPE", "exit_with_parent"]

_LOG = logging.getLogger("yggdrasill.server")

PARENT_PIPE = "YGGDRASILL_PARENT_PIPE"
"""The environment variable with the file descriptor of the inherited pipe."""


def exit_with_parent(environment: Mapping[str, str] = os.environ) -> None:
    """Send SIGTERM to this process when the parent pipe closes. Do nothing if no pipe was inherited."""
    text = environment.get(PARENT_PIPE, "")
    if text.isdecimal() and _is_pipe(int(text)):
        threading.Thread(target=_wait_for_close, args=(int(text),), name="yggdrasill-parent-watchdog", daemon=True).start()


def _is_pipe(descriptor: int) -> bool:
    """Return whether the descriptor is a pipe. A process that inherited only the variable may use the number for another file."""
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (OSError, OverflowError):
        return False


def _wait_for_close(descriptor: int) -> None:
    with suppress(OSError):
        while os.read(descriptor, 1):
            pass
    _LOG.warning("Yggdrasill: the parent process exited; this server stops.")
    os.kill(os.getpid(), signal.SIGTERM)
