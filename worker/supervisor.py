"""Runs a trainer as a process group that ends with the worker that started it, however that ended.

A script of its own that imports only the standard library: ``python -I supervisor.py DESCRIPTOR COMMAND...``. DESCRIPTOR is the read end of a
pipe whose other end the worker holds. When the pipe closes, or on SIGTERM, the group gets SIGTERM, and SIGKILL ten seconds later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["main"]

_GRACE = 10.0


def main(arguments: Sequence[str]) -> int:
    """Run the command of ``arguments`` and return its exit code; 128 plus the signal if a signal ended it."""
    child = subprocess.Popen(arguments[1:], start_new_session=True)  # noqa: S603 - the trainer of this worker's settings

    def send(number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, number)
            else:
                child.terminate()

    def stop(*_: object) -> None:
        send(signal.SIGTERM)
        timer = threading.Timer(_GRACE, send, [getattr(signal, "SIGKILL", signal.SIGTERM)])
        timer.daemon = True
        timer.start()

    def watch(descriptor: int) -> None:
        with suppress(OSError):
            while os.read(descriptor, 1):
                pass
        stop()

    signal.signal(signal.SIGTERM, stop)
    if arguments[0].isdecimal():
        threading.Thread(target=watch, args=(int(arguments[0]),), daemon=True).start()
    code = child.wait()
    # what the trainer started in its group, such as the loaders of its data
    send(getattr(signal, "SIGKILL", signal.SIGTERM))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
