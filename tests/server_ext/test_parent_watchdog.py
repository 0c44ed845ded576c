"""The parent watchdog: a process ends with its parent, and a wrong variable is ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from samples.http_client import until
from yggdrasill.server_ext.parent_watchdog import PARENT_PIPE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes cannot be inherited on Windows")

_PROGRAM = "import time; from yggdrasill.server_ext.parent_watchdog import exit_with_parent; exit_with_parent(); print('held', flush=True); time.sleep(600)"


def start(word: str, *given: int) -> subprocess.Popen[str]:
    """Start a process with this value of the variable; return it once the watchdog runs."""
    command, environment = [sys.executable, "-c", _PROGRAM], {**os.environ, PARENT_PIPE: word}
    process = subprocess.Popen(command, env=environment, pass_fds=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_process_ends_when_its_parent_pipe_closes() -> None:
    given, held = os.pipe()
    processes = [start(str(given), given) for _ in range(2)]
    os.close(given)
    assert [process.poll() for process in processes] == [None, None]
    os.close(held)
    until(lambda: all(process.poll() == -signal.SIGTERM for process in processes))


@pytest.mark.parametrize("word", ["", "no number", "0", "4095", "9" * 30])
def test_a_value_that_is_not_a_pipe_is_ignored(word: str) -> None:
    process = start(word)
    try:
        time.sleep(0.2)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)
