"""Failures of the extension inside ComfyUI's executor, queue and messages: ComfyUI continues, and the log has one line."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from samples.comfy_modules import Executor, FakeServer, Registry, install_comfy
from yggdrasill.errors import Cancelled, RunError
from yggdrasill.executor.context import RunContext
from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy import runner as runner_module
from yggdrasill.server_ext.comfy.compat import guard
from yggdrasill.server_ext.comfy.extension_context import ExtensionContext, extension_context, set_extension_context
from yggdrasill.server_ext.comfy.node_call import NodeCall
from yggdrasill.server_ext.comfy.placement import message_translation, patches
from yggdrasill.server_ext.comfy.placement import service as placement_service
from yggdrasill.server_ext.comfy.placement.inner_messages import InnerMessages
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.service import PlacementService
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.reentrant_slot import ReentrantSlot
from yggdrasill.server_ext.comfy.runner import QueueRunner

POSTED: dict[str, Any] = {node: {"class_type": f"Class{node[-1]}", "inputs": {}} for node in ("1", "5", "6", "4")}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    guard._log.forget()
    set_extension_context(ExtensionContext(QueueRunner()))
    yield install_comfy(monkeypatch, tmp_path)
    set_extension_context(None)


def partitioned_prompt() -> PartitionedPrompt:
    """Nodes 5 and 6 run remotely, in place of 7."""
    inside = {node: POSTED[node] for node in ("5", "6")}
    call = PartCall("soft", "7", 0, inside, (), (), ("5", "6"), (), False)
    prompt = {"1": POSTED["1"], "7": {"class_type": "YggdrasillPlacedPart", "inputs": {}}, "4": POSTED["4"]}
    return PartitionedPrompt(prompt, POSTED, {"7": call}, {"7": Placement(("b",))})


def progress_module() -> Any:
    return sys.modules["comfy_execution.progress"]


# -- the progress registry ---------------------------------------------------------------------------------------


def loop_messages() -> tuple[InnerMessages, Registry]:
    registry = Registry("p", None)
    progress_module().global_progress_registry = registry
    return InnerMessages("7", "p", partitioned_prompt()), registry


def test_a_loop_at_an_endpoint_adds_nothing_to_the_progress_registry(server: FakeServer) -> None:
    """ComfyUI's worker iterates over the registry without a lock; an entry that another thread adds ends the worker."""
    inner, registry = loop_messages()
    known = set(registry.nodes)
    for copy in range(3):
        for node in (f"5.0.0.{copy}", f"6.0.0.{copy}"):
            inner.watch("comfy", {"what": "executing", "node": node, "display": node[0]})
            inner.watch("comfy", {"what": "progress", "node": node, "display": node[0], "value": 1, "max": 2})
    inner.watch("comfy", {"what": "cached", "nodes": ["5.0.0.7", "99"]})
    inner.end()
    assert set(registry.nodes) == known


def test_a_loop_at_an_endpoint_finishes_the_node_that_the_editor_shows(server: FakeServer) -> None:
    inner, registry = loop_messages()
    inner.watch("comfy", {"what": "executing", "node": "5.0.0.1", "display": "5"})
    assert registry.nodes["5"]["state"] == "running"
    inner.watch("comfy", {"what": "executing", "node": "6.0.0.1", "display": "6"})
    inner.end()
    assert {node: registry.nodes[node]["state"] for node in ("5", "6")} == {"5": "finished", "6": "finished"}


def test_a_registry_that_cannot_be_created_does_not_fail_the_call(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    progress_module().global_progress_registry = None
    inner = InnerMessages("7", "p", partitioned_prompt())
    inner.watch("comfy", {"what": "executing", "node": "5"})
    inner.end()
    assert "AttributeError" in caplog.text


def test_a_text_of_a_remote_node_is_shown_on_the_node_of_the_editor(server: FakeServer) -> None:
    server.client_id = "page"
    inner, _ = loop_messages()
    inner.watch("comfy", {"what": "text", "node": "5.0.0.1", "display": "5", "text": "Iteration 1 / 3"})
    inner.watch("comfy", {"what": "text", "node": "99", "text": "of a port"})
    assert server.sent == [(3, ("Iteration 1 / 3", "5"), "page")]


# -- the executor of a partitioned prompt ------------------------------------------------------------------------


def run_partitioned(partitioned: PartitionedPrompt, running: Any = None) -> Any:
    @contextmanager
    def default(prompt_id: str, partitioned: PartitionedPrompt) -> Iterator[None]:
        yield

    async def check(posted: Any, validate: Any) -> Any:
        return await validate(posted)

    patches.patch_comfyui(check, running or default)
    executor = sys.modules["execution"].PromptExecutor(sys.modules["server"].PromptServer.instance)
    posted = PostedPrompt(POSTED)
    posted.partitioned, posted.is_checked = partitioned, True
    executor.execute(posted, "p", {"client_id": "page"}, ["4"])
    return executor


@pytest.mark.parametrize("name", ["translate_message", "translate_history"])
def test_a_failing_translation_leaves_the_run_as_comfyui_has_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(patches, name, broken)
    executor = run_partitioned(partitioned_prompt())
    assert [kind for kind, _ in executor.status_messages] == ["execution_start", "execution_cached", "execution_success"]
    assert executor.history_result["outputs"] == {}
    assert ("executing", {"node": "1", "prompt_id": "p"}, "page") in server.sent
    assert executor.server is server
    assert "add_message" not in vars(executor)
    assert "broken" in caplog.text


def test_a_progress_registry_of_another_form_does_not_end_the_worker(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    progress_module().get_progress_state = object
    executor = run_partitioned(partitioned_prompt())
    assert executor.success
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize("when", ["enter", "exit"])
def test_a_failing_service_does_not_end_the_worker(server: FakeServer, caplog: pytest.LogCaptureFixture, when: str) -> None:
    @contextmanager
    def running(prompt_id: str, partitioned: PartitionedPrompt) -> Iterator[None]:
        if when == "enter":
            raise RuntimeError("no timeline")
        yield
        raise RuntimeError("no timeline")

    executor = run_partitioned(partitioned_prompt(), running)
    assert executor.success
    assert list(executor.ran) == ["1", "7", "4"]
    assert "no timeline" in caplog.text


def test_an_error_of_comfyui_itself_is_not_hidden(server: FakeServer) -> None:
    def fail(executor: Any) -> None:
        raise ValueError("of ComfyUI")

    sys.modules["execution"].PromptExecutor.during = staticmethod(fail)
    with pytest.raises(ValueError, match="of ComfyUI"):
        run_partitioned(partitioned_prompt())


def test_a_placed_prompt_that_was_not_validated_fails_and_does_not_run_locally(server: FakeServer) -> None:
    """As where another extension replaces ComfyUI's validation after this one."""
    run_partitioned(partitioned_prompt())
    executor = sys.modules["execution"].PromptExecutor(server)
    executor.execute(PostedPrompt(POSTED), "q", {"client_id": "page"}, ["4"])
    assert not hasattr(executor, "ran")
    assert not executor.success
    assert executor.history_result == {"outputs": {}, "meta": {}}
    ((_, facts, sid),) = [sent for sent in server.sent if sent[0] == "execution_error"]
    assert (facts["node_id"], sid) == ("1", "page")
    assert "Another extension" in facts["exception_message"]


async def test_a_placed_prompt_that_another_extension_copied_is_refused(server: FakeServer) -> None:
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {})
    service = PlacementService(lambda: registry)
    service.install()
    server.add_on_prompt_handler(lambda posted: {**posted, "prompt": dict(posted["prompt"])})
    validate = sys.modules["execution"].validate_prompt
    placed = {"prompt": dict(POSTED), "extra_data": {"yggdrasill": {"graphs": {"part": {"nodes": ["5"], "endpoint": "forge"}}}}}
    good, error, _, node_errors = await validate("p", server.trigger_on_prompt(placed)["prompt"], None)
    assert not good
    assert "Another extension replaced the prompt" in error["details"]
    assert node_errors["1"]["errors"][0]["message"] == "This part cannot run where it is placed"
    ordinary = server.trigger_on_prompt({"prompt": dict(POSTED)})["prompt"]
    assert (await validate("p", ordinary, None))[0]


async def test_a_placed_prompt_that_cannot_be_read_is_refused(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ComfyUI would ignore the exception of a handler, and run the placed parts locally."""

    def broken(*arguments: Any) -> Any:
        raise KeyError("workflow")

    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {"paint": "forge"})
    service = PlacementService(lambda: registry)
    service.install()
    monkeypatch.setattr(placement_service, "posted_parts", broken)
    prompt = server.trigger_on_prompt({"prompt": dict(POSTED)})["prompt"]
    good, error, _, _ = await sys.modules["execution"].validate_prompt("p", prompt, None)
    assert not good
    assert "KeyError" in error["details"]
    assert "KeyError" in caplog.text


def test_a_prompt_that_cannot_be_read_runs_where_nothing_is_placed(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_service, "posted_parts", lambda *arguments: dict[str, Any]()["workflow"])
    posted = {"prompt": dict(POSTED), "extra_data": {}}
    assert PlacementService(EndpointRegistry).on_prompt(posted) is posted


async def test_a_failure_of_the_division_refuses_the_prompt(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {})
    service = PlacementService(lambda: registry)

    async def broken(*arguments: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(service.validator, "check", broken)
    service.install()
    placed = {"prompt": dict(POSTED), "extra_data": {"yggdrasill": {"graphs": {"part": {"nodes": ["5"], "endpoint": "forge"}}}}}
    good, error, _, _ = await sys.modules["execution"].validate_prompt("p", server.trigger_on_prompt(placed)["prompt"], None)
    assert not good
    assert "RuntimeError: broken" in error["details"]
    assert "RuntimeError: broken" in caplog.text


def test_messages_are_translated_while_calls_add_to_the_executed_nodes() -> None:
    """The threads of two calls add executed nodes while ComfyUI's worker translates the failure of one of them."""
    partitioned, stop = partitioned_prompt(), threading.Event()

    def add() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            partitioned.executed.add(str(number % 5000))
            partitioned.executed.discard(str((number + 2500) % 5000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=add)
    thread.start()
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            message_translation.translate_message(partitioned, "execution_error", {"node_id": "4", "executed": []})
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_equal_failures_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    guard._log.forget()
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(50):
        with guard.shielded("a message could not be shown"):
            raise KeyError("node")
    with guard.shielded("a message could not be shown"):
        raise ValueError("other")
    assert len(caplog.records) == 2
    now[0] += guard.LOG_INTERVAL
    with guard.shielded("a message could not be shown"):
        raise KeyError("node")
    assert "49 more" in caplog.records[-1].getMessage()


def test_a_guarded_function_returns_comfyuis_own_result(caplog: pytest.LogCaptureFixture) -> None:
    guard._log.forget()

    @guard.guarded("it failed", lambda value: [value])
    def broken(value: int) -> list[int]:
        raise RuntimeError(value)

    assert broken(3) == [3]
    assert "it failed: RuntimeError: 3" in caplog.text


# -- the queue ---------------------------------------------------------------------------------------------------


def test_a_run_whose_messages_are_lost_ends(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where this ComfyUI sends messages in another way: the prompt left the queue, and its run would wait forever."""
    monkeypatch.setattr(runner_module, "LOST_AFTER", 0.2)
    runner, run = QueueRunner(), nested_prompt("lost")
    run.state = "queued"
    began = time.monotonic()
    runner._follow(run, nullcontext)
    assert time.monotonic() - began >= 0.2
    with pytest.raises(RunError, match="no longer in ComfyUI's queue"):
        run.result()


def test_a_run_that_cannot_be_started_ends_although_its_socket_cannot_be_closed(server: FakeServer) -> None:
    del server.sockets
    runner, run = QueueRunner(), nested_prompt("refused")

    def begin(run: PromptRun) -> None: ...

    asyncio.run(runner._start(run, run.prompt, begin))
    assert run.next_message(1.0) == ("refused", {})


# -- nested runs -------------------------------------------------------------------------------------------------


def nested_prompt(prompt_id: str = "n") -> PromptRun:
    run = PromptRun(prompt_id, ComfyGraph({"1": {"class_type": "X", "inputs": {}}}, "inner"), RunContext(0))
    run.prompt, run.sinks = {"1": {"class_type": "X", "inputs": {}}}, ["1"]
    return run


def run_nested(runs: list[PromptRun]) -> None:
    """Run prompts nested, as a waiting node does, until their messages have arrived."""

    async def wait() -> None:
        slot = ReentrantSlot(QueueRunner(), None)
        for run in runs:
            slot.run_local(run)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for _ in range(5):
            await slot.wait_with(future, 0.05)
        await slot.finish()
        slot.end()

    asyncio.run(wait())


@pytest.mark.parametrize("missing", ["RAM_CACHE_HEADROOM", "extra_ram_release_callback"])
def test_a_nested_run_that_cannot_be_created_fails_and_does_not_hang(server: FakeServer, missing: str) -> None:
    delattr(sys.modules["comfy.memory_management"], missing)
    run = nested_prompt()
    run_nested([run])
    assert run.next_message(1.0) == ("refused", {})
    with pytest.raises(RunError, match=missing):
        run.result()


def test_a_nested_run_that_fails_between_steps_leaves_comfyuis_state_and_locks_free(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of ComfyUI's interrupt flag is held while a nested prompt starts."""
    state = compat.RunningState
    reads = iter(range(10))
    read = state.read

    def failing(self: Any) -> Any:
        if next(reads) == 1:
            raise AttributeError("client_id")
        return read(self)

    monkeypatch.setattr(state, "read", failing)
    server.client_id = "page"
    run = nested_prompt()
    run_nested([run])
    assert run.next_message(1.0) == ("refused", {})
    assert server.client_id == "page"
    mutex, free = sys.modules["comfy.model_management"].interrupt_processing_mutex, []

    def try_lock() -> None:
        free.append(mutex.acquire(timeout=1))
        if free[-1]:
            mutex.release()

    thread = threading.Thread(target=try_lock)
    thread.start()
    thread.join()
    assert free == [True]


def test_the_cache_of_a_nested_run_ends_with_the_outer_prompt(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    made: list[Any] = []
    create = compat.new_executor

    def new_executor() -> Any:
        executor = create()
        made.append(weakref.ref(executor))
        return executor

    monkeypatch.setattr(compat, "new_executor", new_executor)
    run_nested([nested_prompt()])
    run_nested([nested_prompt()])
    gc.collect()
    assert [executor() for executor in made] == [None, None]


class WaitingCall(NodeCall):
    """A call that ends only when it is cancelled."""

    stopped: bool = False

    def _run(self) -> dict[int, list[Any]]:
        while not self.token.cancelled:
            time.sleep(0.01)
        raise Cancelled("cancelled")

    def _make_messages(self, prompt_id: str, run: PromptRun | None) -> Any:
        class Silent:
            def progress(self, *arguments: Any) -> None: ...

        return Silent()


def test_a_call_in_a_cancelled_run_stops_its_nested_prompts_before_it_ends(server: FakeServer) -> None:
    """Otherwise the nested prompt is cut off with the loop and queued again, and its output nodes save twice."""
    context = extension_context()
    outer = nested_prompt("outer")
    context.runner._runs["outer"] = outer
    executing: Any = sys.modules["comfy_execution.utils"]

    class Context:
        prompt_id, node_id = "outer", "7"

    finished: list[str] = []

    async def long(executor: Executor) -> None:
        try:
            while not nested.context.token.cancelled:  # noqa: ASYNC110 - another thread cancels it
                await asyncio.sleep(0.01)
            finished.append("stopped in order")
        except asyncio.CancelledError:
            finished.append("cut off")
            raise

    sys.modules["execution"].PromptExecutor.during = staticmethod(long)
    nested = nested_prompt("inner")

    async def node() -> None:
        executing.context.set(Context())
        call = WaitingCall(ports={}, node_id="7").start()
        nested.state = "nested"
        call._reentrant_slot._offer(nested)
        asyncio.get_running_loop().call_later(0.4, outer.context.token.cancel, "the caller cancelled the job")
        with pytest.raises(Cancelled):
            await call.result()

    asyncio.run(node())
    assert finished == ["stopped in order"]
