"""Signals that end ComfyUI: the endpoint is closed first, once, and the signal then acts as it did before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself these signals on Windows")

_SCRIPT = """
import asyncio, signal, sys
sys.path[:0] = {tests!r}, {tests!r} + "/../.link"
from yggdrasill.server_ext.comfy import orderly_stop

orderly_stop.LONGEST_CLOSE = 0.5

async def close():
    print("closing", flush=True)
    {close}
    print("closed", flush=True)

async def main():
    stop = orderly_stop.OrderlyStop(close)
    stop.install()
    {act}
    await asyncio.sleep(20)

signal.signal(signal.SIGINT, signal.default_int_handler)
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
_RAISE = "loop.call_later(0.05, signal.raise_signal, signal.{name})"


def run(close: str, *acts: str) -> tuple[int, list[str]]:
    """Run a process with an event loop, and return its return code and what it printed."""
    root = Path(__file__).resolve().parents[2]
    script = _SCRIPT.format(tests=str(root / "tests"), close=close, act="; ".join(acts))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root / ".link")},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.split()


def test_sigterm_closes_the_endpoint_and_then_ends_the_process_as_before() -> None:
    assert run("await asyncio.sleep(0.1)", _RAISE.format(name="SIGTERM")) == (-signal.SIGTERM, ["closing", "closed"])


def test_sigint_closes_the_endpoint_and_then_interrupts_the_loop() -> None:
    assert run("await asyncio.sleep(0.1)", _RAISE.format(name="SIGINT")) == (0, ["closing", "closed", "interrupted"])


def test_a_second_signal_ends_the_process_at_once() -> None:
    again = "loop.call_later(0.2, signal.raise_signal, signal.SIGTERM)"
    assert run("await asyncio.sleep(15)", "orderly_stop.LONGEST_CLOSE = 15", _RAISE.format(name="SIGTERM"), again) == (
        -signal.SIGTERM,
        ["closing"],
    )


@pytest.mark.parametrize("close", ["await asyncio.sleep(15)", "raise ValueError('no')"])
def test_an_endpoint_that_cannot_be_closed_does_not_keep_the_process(close: str) -> None:
    assert run(close, _RAISE.format(name="SIGTERM")) == (-signal.SIGTERM, ["closing"])


def test_after_the_shutdown_handlers_signals_act_as_before() -> None:
    assert run("pass", "await stop.close()", "await stop.close()", _RAISE.format(name="SIGTERM")) == (
        -signal.SIGTERM,
        ["closing", "closed"],
    )


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN); stop.install()"
    acts = (ignored, _RAISE.format(name="SIGINT"), "await asyncio.sleep(0.3)", "raise KeyboardInterrupt")
    assert run("pass", "await stop.close()", *acts) == (0, ["closing", "closed", "interrupted"])


def test_a_handler_of_another_pack_that_calls_ours_is_called_once() -> None:
    wrap = (
        "ours = signal.getsignal(signal.SIGTERM); signal.signal(signal.SIGTERM, lambda *facts: (print('other', flush=True), ours(*facts)))"
    )
    assert run("pass", wrap, _RAISE.format(name="SIGTERM")) == (-signal.SIGTERM, ["other", "closing", "closed"])
