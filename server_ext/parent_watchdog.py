"""Ending with the process that started this one: it holds the other end of a pipe, which closes when it is gone, however it ended."""

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
"""The environment variable with the number of the pipe's end that this process was given."""


def exit_with_parent(environment: Mapping[str, str] = os.environ) -> None:
    """If there is a parent_pipe, end this process, as a terminating signal does, as soon as nobody holds its other end."""
    word = environment.get(PARENT_PIPE, "")
    if word.isdecimal() and _is_pipe(int(word)):
        threading.Thread(target=_wait, args=(int(word),), name="yggdrasill-parent-watchdog", daemon=True).start()


def _is_pipe(descriptor: int) -> bool:
    """Whether it is what the variable says, and not the number of something else in a process that inherited the variable alone."""
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (OSError, OverflowError):
        return False


def _wait(descriptor: int) -> None:
    with suppress(OSError):
        while os.read(descriptor, 1):
            pass
    _LOG.warning("Yggdrasill: what started this server is gone, so it ends")
    os.kill(os.getpid(), signal.SIGTERM)
