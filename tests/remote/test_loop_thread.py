"""Blocking calls over the background loop: from any thread, inside other loops, cancelled, closed, forked."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.context import CancelToken
from yggdrasill.remote.loop_thread import LoopThread, loop_thread


@pytest.fixture
def own() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.close()


async def later(value: int, seconds: float = 0.01) -> int:
    await asyncio.sleep(seconds)
    return value


def test_many_threads_wait_at_the_same_time(own: LoopThread) -> None:
    with ThreadPoolExecutor(16) as pool:
        start = time.perf_counter()
        assert list(pool.map(lambda number: own.run(later(number, 0.5)), range(16))) == list(range(16))
    assert time.perf_counter() - start < 6.0


async def test_a_blocking_call_works_inside_another_running_loop(own: LoopThread) -> None:
    assert own.run(later(3)) == 3


async def test_an_awaited_call_leaves_its_own_loop_free(own: LoopThread) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.005)

    heart = asyncio.create_task(beat())
    assert await own.run_async(later(4, 0.2)) == 4
    heart.cancel()
    assert beats > 10


def test_waiting_on_the_thread_that_serves_all_waiting_is_refused(own: LoopThread) -> None:
    async def inside() -> int:
        return own.run(later(1))

    with pytest.raises(InvalidArgument, match="await the asynchronous form"):
        own.run(inside())


def test_an_error_arrives_with_its_type(own: LoopThread) -> None:
    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        own.run(fail())


def test_a_token_ends_the_wait_after_the_coroutine_tidied_up(own: LoopThread) -> None:
    token, tidied = CancelToken(), threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)
            tidied.set()

    threading.Timer(0.1, token.cancel).start()
    start = time.perf_counter()
    with pytest.raises(CancelledError):
        own.run(work(), token=token)
    assert tidied.is_set()
    assert time.perf_counter() - start < 10


async def test_cancelling_the_task_that_awaits_cancels_the_coroutine(own: LoopThread) -> None:
    stopped = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()

    task = asyncio.create_task(own.run_async(work()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(stopped.wait, 2)


def test_messages_are_called_in_the_waiting_thread_and_in_order(own: LoopThread) -> None:
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    seen: list[tuple[int, str]] = []

    async def work() -> None:
        for number in range(20):
            inbox.put(lambda number=number: seen.append((number, threading.current_thread().name)))
            await asyncio.sleep(0)

    own.run(work(), inbox=inbox)  # type: ignore[arg-type]  # a queue of functions
    assert seen == [(number, threading.current_thread().name) for number in range(20)]


def test_what_a_message_raises_cancels_the_coroutine_and_arrives(own: LoopThread) -> None:
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    stopped = threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def work() -> None:
        inbox.put(interrupt)
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()

    with pytest.raises(KeyboardInterrupt):
        own.run(work(), inbox=inbox)  # type: ignore[arg-type]
    assert stopped.is_set()


def test_closing_ends_waiting_callers_and_the_next_call_starts_a_new_loop() -> None:
    made = LoopThread()
    threading.Timer(0.1, made.close).start()
    with pytest.raises(CancelledError):
        made.run(later(1, 30))
    assert made.run(later(2)) == 2
    made.close()
    made.close()


def test_shared_resources_are_created_once_and_closed_with_the_loop_thread() -> None:
    made, closed = LoopThread(), []

    class Thing:
        async def aclose(self) -> None:
            closed.append(self)

    made.run(later(1))
    thing = made.shared("thing", Thing)
    assert made.shared("thing", Thing) is thing
    made.close()
    assert closed == [thing]


def test_a_process_has_one_loop_thread() -> None:
    assert loop_thread() is loop_thread()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_its_own_loop() -> None:
    script = """
import asyncio, os, sys, warnings
from yggdrasill.remote.loop_thread import loop_thread
async def one(): return 1
assert loop_thread().run(one()) == 1
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if child == 0:
    os._exit(0 if loop_thread().run(one()) == 1 else 1)
_, status = os.waitpid(child, 0)
assert loop_thread().run(one()) == 1
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
