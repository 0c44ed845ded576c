"""The guard between this extension and ComfyUI's own code.

Code of this extension that ComfyUI's executor, queue or message path calls runs inside `shielded` or `guarded`: an exception becomes a line in
ComfyUI's log, and ComfyUI continues as if the extension were not installed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

__all__ = ["LOG_INTERVAL", "guarded", "log_failure", "shielded"]

_LOG = logging.getLogger("yggdrasill.comfy")
_P = ParamSpec("_P")
_T = TypeVar("_T")

LOG_INTERVAL = 60.0
"""Seconds for which a failure is not logged again. The next line says how often it was repeated."""
_MAX_KINDS = 256


class _Log:
    """Logs each kind of failure at most once per `LOG_INTERVAL`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, type], tuple[float, int]] = {}

    def write(self, what: str, error: BaseException) -> None:
        """Log one line, or count the failure if the same kind was logged a moment ago."""
        key, now = (what, type(error)), time.monotonic()
        with self._lock:
            logged, repeated = self._seen.get(key, (float("-inf"), 0))
            if now - logged < LOG_INTERVAL:
                self._seen[key] = logged, repeated + 1
                return
            if len(self._seen) >= _MAX_KINDS:
                self._seen.clear()
            self._seen[key] = now, 0
        again = f" ({repeated} more since the last line)" if repeated else ""
        _LOG.error("Yggdrasill: %s: %s: %s%s", what, type(error).__name__, error, again)

    def forget(self) -> None:
        """Log every kind of failure again."""
        with self._lock:
            self._seen.clear()


_log = _Log()
log_failure = _log.write


@contextlib.contextmanager
def shielded(what: str) -> Iterator[None]:
    """Write an exception to ComfyUI's log as a line that starts with ``what``, so that it never reaches ComfyUI's own code."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - every exception is logged instead
        _log.write(what, error)


def guarded(what: str, default: Callable[_P, _T]) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorate a function that ComfyUI calls: after an exception, it returns what ``default`` returns for the same arguments.

    ``default`` is ComfyUI's own behavior without the extension.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def call(*arguments: _P.args, **named: _P.kwargs) -> _T:
            try:
                return function(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - ComfyUI continues with its own behavior
                _log.write(what, error)
                return default(*arguments, **named)

        return call

    return decorate
