"""The service without HTTP: retention, pins, known endpoints, redaction."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import torch

from samples.graphs import sample_registry
from samples.http_client import one_node
from yggdrasill.errors import BlockFailed, EndpointUnreachable, JobConflict, QueueFull, UnknownArtifact, UnknownJob
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Port, PortDirection, current_run
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.server_ext.auth import Access, Signer
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.jobs import manager as job_manager
from yggdrasill.server_ext.jobs.model import Event, Job, KeyRecord, Submission
from yggdrasill.server_ext.jobs.store import JobStore, Retention
from yggdrasill.server_ext.logs import Redactor, secrets_of_environment
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.server_ext.peers import KnownEndpoints
from yggdrasill.server_ext.principals import Principals
from yggdrasill.server_ext.service import Limits, Service
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack


@asynccontextmanager
async def service(
    folder: Path, quota: int | None = None, jobs_of: type[JobStore] = JobStore, registry: BlockRegistry | None = None, **retention: Any
) -> AsyncIterator[Service]:
    store = MemoryStore(quota_bytes=quota)
    rules = HostRules([folder], folder, lambda url: False)
    made = Service(
        access=Access(Principals("token-of-a-test"), folder, store),
        host=HeadlessHost(),
        deployments=Deployments(folder / "graphs", rules, registry=registry or sample_registry()),
        jobs=jobs_of(folder / "jobs.sqlite"),
        store=store,
        signer=Signer("key", None),
        fetcher=PeerFetcher(store, lambda url: False, 1 << 30),
        limits=Limits(max_queue=4),
        retention=Retention(**retention),
    )
    await made.start()
    await made.deploy("double", "graph", one_node("double"), None)
    try:
        yield made
    finally:
        await made.close(0.1)


async def run(endpoint: Service, x: torch.Tensor, key: str) -> Job:
    with pack({"x": x}, MemoryStore()) as packed:
        for name in packed.artifacts:
            endpoint.store.put(x.numpy().tobytes(), hash=name)
        job = await endpoint.submit("double", Submission(key, packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0}))
    await endpoint.job_manager.wait(job, 10, lambda: True)
    assert job.status == "COMPLETED", job.error
    return job


def test_only_the_newest_jobs_and_their_outputs_are_kept(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, quota=1_000_000, jobs=2) as endpoint:
            made = [await run(endpoint, torch.full((20_000,), float(n)), f"k{n}") for n in range(4)]
            await endpoint.job_manager.prune()
            with pytest.raises(UnknownJob):
                await endpoint.job_manager.find(made[0].job_id)
            assert (await endpoint.job_manager.find(made[3].job_id)).job_id == made[3].job_id
            for number in range(20):
                endpoint.store.put(os.urandom(70_000 + number))
            is_kept = [not endpoint.store.missing(job.artifacts) for job in made]
            assert is_kept == [False, False, True, True]

    asyncio.run(act())


def test_the_oldest_outputs_beyond_the_byte_limit_are_deleted(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, bytes=200_000) as endpoint:
            made = [await run(endpoint, torch.full((20_000,), float(n)), f"k{n}") for n in range(4)]
            # outputs are measured in the background
            for _ in range(200):
                await endpoint.job_manager.prune()
                known = [job["job_id"] for job in await endpoint.jobs()]
                if len(known) <= 2:
                    break
                await asyncio.sleep(0.02)
            assert known == [job.job_id for job in reversed(made[2:])]

    asyncio.run(act())


def test_inputs_are_unpinned_when_the_job_has_finished(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, quota=250_000) as endpoint:
            for number in range(5):
                job = await run(endpoint, torch.full((20_000,), float(number)), f"k{number}")
                await endpoint.job_manager.prune()
                await endpoint.job_manager._pins.drain()
                endpoint.store.release(f"job:{job.job_id}")
            assert not endpoint.store.missing(job.artifacts)

    asyncio.run(act())


class FailingStore(JobStore):
    """A job store whose next writes fail."""

    failures: list[tuple[str, BaseException]]

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.failures = []

    def insert(self, job: Job) -> Future[KeyRecord | None]:
        self._fail("insert")
        return super().insert(job)

    def transition(self, job: Job) -> Future[bool]:
        self._fail(job.status)
        return super().transition(job)

    def _fail(self, what: str) -> None:
        if self.failures and self.failures[0][0] == what:
            raise self.failures.pop(0)[1]


@pytest.mark.parametrize(
    "error", [RecursionError("too deep"), MemoryError(), RuntimeError("surprise")], ids=lambda error: type(error).__name__
)
def test_a_job_whose_row_cannot_be_made_leaves_nothing_in_the_queue(tmp_path: Path, error: BaseException) -> None:
    async def act() -> None:
        async with service(tmp_path, jobs_of=FailingStore) as endpoint:
            store = endpoint.job_store
            assert isinstance(store, FailingStore)
            for number in range(6):
                store.failures.append(("insert", error))
                with pytest.raises(type(error)):
                    await run(endpoint, torch.ones(3), f"failed-{number}")
            assert endpoint.job_manager.live == []
            await run(endpoint, torch.ones(3), "failed-0")

    asyncio.run(act())


def test_a_result_that_cannot_be_stored_fails_its_job(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, jobs_of=FailingStore) as endpoint:
            store = endpoint.job_store
            assert isinstance(store, FailingStore)
            store.failures.append(("COMPLETED", ValueError("surprise")))
            with pytest.raises(AssertionError, match="surprise"):
                await run(endpoint, torch.ones(3), "a")
            assert await asyncio.wrap_future(store.unfinished()) == []
            (row,) = await endpoint.jobs()
            assert row["status"] == "FAILED"

    asyncio.run(act())


class GatedStore(JobStore):
    """A job store that reports a completed job as stored when ``gate`` is set."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.gate, self.completing = threading.Event(), threading.Event()

    def transition(self, job: Job) -> Future[bool]:
        stored = super().transition(job)
        if job.status != "COMPLETED":
            return stored
        self.completing.set()
        gated: Future[bool] = Future()

        def report() -> None:
            self.gate.wait(20.0)
            gated.set_result(stored.result())

        threading.Thread(target=report).start()
        return gated


def test_a_result_is_reported_as_soon_as_its_row_is_stored_and_not_before(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, jobs_of=GatedStore) as endpoint:
            store = endpoint.job_store
            assert isinstance(store, GatedStore)
            running = asyncio.create_task(run(endpoint, torch.ones(3), "a"))
            await asyncio.to_thread(store.completing.wait, 20.0)
            await asyncio.sleep(0.3)
            assert [job.status for job in endpoint.job_manager.live] == ["IN_PROGRESS"]
            store.gate.set()
            assert (await running).status == "COMPLETED"

    asyncio.run(act())


def test_events_that_are_emitted_together_wake_the_loop_once(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            job, manager, loop = await run(endpoint, torch.ones(3), "a"), endpoint.job_manager, asyncio.get_running_loop()
            wakes: list[int] = []

            def wake(call: Callable[[], None]) -> None:
                wakes.append(1)
                loop.call_soon_threadsafe(call)

            counted: Any = SimpleNamespace(call_soon_threadsafe=wake)
            manager._loop = counted

            def emit(*texts: str) -> int:
                with manager.together():
                    for text in texts:
                        manager.emit(job, "log", {"text": text})
                    woken = len(wakes)
                manager.emit(job, "log", {"text": "alone"})
                return woken

            before = endpoint.hub.last
            assert await asyncio.to_thread(emit, "first", "second", "third") == 0
            stored = [event async for event in endpoint.hub.stored(job.job_id, before)]
            manager._loop = loop
            assert [event.data["text"] for event in stored] == ["first", "second", "third", "alone"]
            assert len(wakes) <= 2

    asyncio.run(act())


def test_events_are_emitted_although_the_block_around_them_fails(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            job, manager, before = await run(endpoint, torch.ones(3), "a"), endpoint.job_manager, endpoint.hub.last

            def emit() -> None:
                with suppress(ValueError), manager.together():
                    manager.emit(job, "log", {"text": "reported"})
                    raise ValueError

            await asyncio.to_thread(emit)
            await asyncio.sleep(0.05)
            assert [event.data["text"] async for event in endpoint.hub.stored(job.job_id, before)] == ["reported"]

    asyncio.run(act())


def test_a_missing_state_is_requested(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            with pack({"node": {"weight": torch.zeros(100, 100)}}, MemoryStore()) as packed, pytest.raises(UnknownArtifact) as caught:
                await endpoint.deploy("linear", "graph", one_node("linear"), packed.wire)
            assert caught.value.details["missing"] == packed.artifacts

    asyncio.run(act())


def test_known_endpoints_follow_their_file(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    tokens: list[str] = []
    known = KnownEndpoints(file, ["http://peer:1"], tokens.extend)
    assert (known.is_peer("http://peer:1/yggdrasill"), known.knows("http://peer:1/"), known.resolver()) == (True, False, None)
    registry = EndpointRegistry()
    registry.add("forge", "http://forge:8400", token="token-of-forge")
    registry.to_yaml(file)
    assert known.knows("http://forge:8400/yggdrasill/v1")
    assert not known.knows("http://forge:84001/")
    assert not known.knows("http://forge:8400@evil/")
    assert tokens == ["token-of-forge"]
    assert known.resolver() is not None
    file.write_text("endpoints: [", encoding="utf-8")
    assert known.knows("http://forge:8400/yggdrasill/v1")
    file.unlink()
    assert not known.knows("http://forge:8400/yggdrasill/v1")


def test_known_endpoints_use_the_owners_retry_policy_after_the_file_changes(tmp_path: Path) -> None:
    file, retry_policy = tmp_path / "endpoints.yaml", RetryPolicy(0.25, 5.0)
    known = KnownEndpoints(file, [], lambda tokens: None, retry_policy=retry_policy)
    assert known.registry().retry_policy == retry_policy
    file.write_text("endpoints: {forge: {url: 'http://forge:8400'}}\n", encoding="utf-8")
    assert list(known.registry().endpoints) == ["forge"]
    assert known.registry().retry_policy == retry_policy


@contextmanager
def listening() -> Iterator[tuple[str, list[str | None]]]:
    """Answer requests like an endpoint, and yield its url and the credentials that arrive."""
    received: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("X-Yggdrasill-Protocol", "1")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the base class
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        server.server_close()


def test_live_clients_use_a_token_that_is_rotated_in_the_secrets(tmp_path: Path) -> None:
    def write(url: str, token: str) -> None:
        (tmp_path / "endpoints.yaml").write_text(f"endpoints: {{forge: {{url: '{url}'}}}}\n", encoding="utf-8")
        secrets = tmp_path / "secrets.yaml"
        secrets.write_text(f"forge: {token}\n", encoding="utf-8")
        secrets.chmod(0o600)

    with listening() as (url, received), listening() as (elsewhere, received_elsewhere):
        write(url, "the-first-token-of-forge")
        known = KnownEndpoints(tmp_path / "endpoints.yaml", [], lambda tokens: None)
        clients = known.registry().client("forge"), known.registry().client_for(url)
        for token in ("the-first-token-of-forge", "a-rotated-token-of-forge"):
            write(url, token)
            for client in clients:
                loop_thread().run(client.health())
        assert received == [f"Bearer {token}" for token in ("the-first-token-of-forge", "a-rotated-token-of-forge") for _ in clients]
        write(elsewhere, "the-token-of-another-host")
        loop_thread().run(clients[0].health())
        assert received[-1] != "Bearer the-token-of-another-host"
        assert received_elsewhere == []


def test_secrets_are_recognized_by_variable_names() -> None:
    names = {
        "OPENAI_API_KEY": "a1",
        "FORGE_TOKEN": "a2",
        "DB_PASSWORD": "a3",
        "TOKENIZERS_PARALLELISM": "b1",
        "KEYBOARD": "b2",
        "PATH": "b3",
    }
    assert sorted(secrets_of_environment(names)) == ["a1", "a2", "a3"]


def test_redaction_covers_all_parts_of_a_value_and_added_secrets() -> None:
    redactor = Redactor(["secret-one", "short", "secret-one-longer"])
    value = {"a secret-one": ["x secret-one-longer y", 1, None, ("secret-two",), Path("secret-one")]}
    assert redactor.value(value) == {"a [secret]": ["x [secret] y", 1, None, ["secret-two"], "[secret]"]}
    redactor.learn(["secret-two"])
    assert redactor.text("secret-two and short") == "[secret] and short"


@pytest.mark.parametrize("secret", ["secret/with+signs=0815", 'secret "quoted" \\ 0815', "plain-secret-0815"])
def test_encoded_secrets_are_replaced_too(secret: str) -> None:
    redactor = Redactor([secret])
    encodings = [quote(secret), quote(secret, safe=""), json.dumps(secret)]
    encodings += [base64.b64encode(before + secret.encode() + b"behind").decode() for before in (b"", b"a", b"ab", b"user:")]
    encodings += [base64.urlsafe_b64encode(b"user:" + secret.encode()).decode()]
    for text in encodings:
        cleaned = redactor.text(f"before {text} behind")
        assert "[secret]" in cleaned
        assert (cleaned.startswith("before "), cleaned.endswith(" behind")) == (True, True)
        assert text not in cleaned


def test_a_late_reader_receives_all_events_of_a_finished_job_and_its_end(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            job = await run(endpoint, torch.ones(3), "a")
            for number in range(2500):
                endpoint.hub.emit(job.job_id, "progress", {"number": number})
            endpoint.hub.emit(job.job_id, "status", {"status": "COMPLETED"})
            events = [event async for event in endpoint.events(job.job_id, None, 0.1) if event is not None]
            assert sum(event.kind == "progress" for event in events) == 2500
            assert events[-1].data["status"] == "COMPLETED"
            rest = [event async for event in endpoint.events(job.job_id, events[-3].seq, 0.1)]
            assert rest == events[-2:]

    asyncio.run(act())


def test_a_key_is_known_after_its_result_was_deleted_and_never_runs_again(tmp_path: Path) -> None:
    async def refused(endpoint: Service) -> None:
        with pytest.raises(UnknownJob, match="no longer kept") as caught:
            await run(endpoint, torch.ones(3), "first")
        assert caught.value.details["status"] == "COMPLETED"
        with pytest.raises(JobConflict):
            await run(endpoint, torch.zeros(3), "first")

    async def act() -> None:
        async with service(tmp_path, jobs=2) as endpoint:
            first = await run(endpoint, torch.ones(3), "first")
            for number in range(4):
                await run(endpoint, torch.full((3,), float(number)), f"k{number}")
            await endpoint.job_manager.prune()
            with pytest.raises(UnknownJob):
                await endpoint.job_manager.find(first.job_id)
            await refused(endpoint)
        async with service(tmp_path, jobs=2) as endpoint:
            await refused(endpoint)

    asyncio.run(act())


@pytest.mark.parametrize("limits", [{"key_seconds": 0.0}, {"keys": 0}], ids=str)
def test_keys_are_forgotten_beyond_their_limits(tmp_path: Path, limits: dict[str, Any]) -> None:
    async def act() -> None:
        async with service(tmp_path, jobs=0, **limits) as endpoint:
            first = await run(endpoint, torch.ones(3), "first")
            for _ in range(2):
                await endpoint.job_manager.prune()
                await asyncio.sleep(0.01)
            again = await run(endpoint, torch.ones(3), "first")
            assert again.job_id != first.job_id

    asyncio.run(act())


def test_ages_survive_a_jump_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            job = await run(endpoint, torch.ones(3), "first")
            now = time.time
            for jump in (-10 * 86400.0, 10 * 86400.0):
                monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
                await endpoint.job_manager.prune()
                assert (await endpoint.job_manager.find(job.job_id)).output == job.output

    asyncio.run(act())


def test_a_key_that_was_cancelled_before_its_call_stays_cancelled_after_a_restart(tmp_path: Path) -> None:
    async def cancelled(endpoint: Service) -> Job:
        with pack({"x": torch.ones(3)}, MemoryStore()) as packed:
            return await endpoint.submit("double", Submission("key", packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0}))

    async def act() -> None:
        async with service(tmp_path) as endpoint:
            tombstone = await endpoint.cancel_key("key")
            assert (await endpoint.cancel_key("key")).job_id == tombstone.job_id
            assert (await cancelled(endpoint)).job_id == tombstone.job_id
        async with service(tmp_path) as endpoint:
            job = await cancelled(endpoint)
            assert (job.job_id, job.status) == (tombstone.job_id, "CANCELLED")
            assert await endpoint.jobs() == []

    asyncio.run(act())


def test_a_call_and_the_cancellation_of_its_key_at_the_same_time_never_complete(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=5), None)
            for number in range(20):
                key = f"key-{number}"
                with pack({"x": 1}, MemoryStore()) as packed:
                    call = Submission(key, packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0})
                    submitting = asyncio.create_task(endpoint.submit("slow", call))
                    await asyncio.sleep(0.0005 * (number % 4))
                    await endpoint.cancel_key(key)
                    job = await submitting
                await endpoint.job_manager.wait(job, 2, lambda: True)
                assert job.status == "CANCELLED"

    asyncio.run(act())


class FailingRetention(JobStore):
    """A job store whose queries for retention fail at first."""

    failures = 3

    def expired(self, *, finished_before: float, keep: int) -> Future[list[str]]:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("surprise")
        return super().expired(finished_before=finished_before, keep=keep)


def test_the_checks_of_jobs_survive_any_exception_and_log_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_manager, "_PRUNE_SECONDS", 0.0)
    monkeypatch.setattr(job_manager, "_CHECK_SECONDS", 0.01)

    async def act() -> None:
        async with service(tmp_path, jobs_of=FailingRetention, jobs=0) as endpoint:
            await run(endpoint, torch.ones(3), "first")
            for _ in range(300):
                await asyncio.sleep(0.01)
                if not await endpoint.jobs():
                    break
            assert await endpoint.jobs() == []

    asyncio.run(act())
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_timeout_is_measured_by_a_clock_that_does_not_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=1), None)
            with pack({"x": 1}, MemoryStore()) as packed:
                call = Submission("key", packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0}, timeout=60.0)
                job = await endpoint.submit("slow", call)
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + 86400.0)
            await endpoint.job_manager.wait(job, 10, lambda: True)
            assert (job.status, job.error) == ("COMPLETED", None)
            assert 0.0 <= job.timing["queued_s"] < 10

    asyncio.run(act())


class SlowToBuild(AbstractBaseBlock):
    """A block that takes ``seconds`` to build, from its second time."""

    block_type = "test/slow_to_build"
    seconds = 6
    built = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        type(self).built += 1
        if type(self).built > 1:
            time.sleep(self.seconds)

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}


def test_a_graph_that_builds_slowly_does_not_delay_other_jobs_after_a_restart(tmp_path: Path) -> None:
    run_facts: dict[str, Any] = {"seed": 1, "path": [], "pass_index": 0}
    registry = sample_registry()
    registry.register(SlowToBuild.block_type, SlowToBuild)

    async def act() -> None:
        config = {**one_node("double"), "nodes": [{"node_id": "node", "block_type": SlowToBuild.block_type, "config": {}}]}
        async with service(tmp_path, registry=registry) as endpoint:
            slow, _ = await endpoint.deploy("slow", "graph", config, None)
            double = await endpoint.deployment("double")
        store = JobStore(tmp_path / "jobs.sqlite")
        with pack({"x": 1}, MemoryStore()) as packed:
            for deployment in (slow, double):
                request = {"inputs": packed.wire, "options": {}, "run": run_facts}
                store.insert(Job(deployment.graph_id, deployment.graph_id, deployment.graph_id, deployment.hash, "body", request)).result()
        store.close()
        async with service(tmp_path, registry=registry) as endpoint:
            began = time.monotonic()
            job = await endpoint.job_manager.find("double")
            await endpoint.job_manager.wait(job, 10, lambda: True)
            assert (job.status, time.monotonic() - began < SlowToBuild.seconds) == ("COMPLETED", True)
            job = await endpoint.job_manager.find("slow")
            await endpoint.job_manager.wait(job, 10, lambda: True)
            assert job.status == "COMPLETED"

    asyncio.run(act())


def test_a_call_during_shutdown_is_refused_so_that_the_caller_tries_again(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=1), None)
            with pack({"x": 1}, MemoryStore()) as packed:
                call = Submission("key", packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0})
                await endpoint.submit("slow", call)
                closing = asyncio.create_task(endpoint.close(5.0))
                await asyncio.sleep(0.2)
                with pytest.raises(EndpointUnreachable, match="shutting down") as caught:
                    await endpoint.submit("slow", replace(call, key="other"))
            assert caught.value.details["reason"] == "shutdown"
            await closing

    asyncio.run(act())


def test_a_call_that_the_full_queue_refuses_after_its_inputs_arrived_releases_them(tmp_path: Path) -> None:
    async def submit(endpoint: Service, number: int) -> str | None:
        x = torch.full((20_000,), float(number))
        with pack({"x": x}, MemoryStore()) as packed:
            (name,) = packed.artifacts
            endpoint.store.put(x.numpy().tobytes(), hash=name)
            call = Submission(f"key-{number}", packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0})
            try:
                await endpoint.submit("slow", call)
            except QueueFull:
                return name
        return None

    async def act() -> None:
        async with service(tmp_path, quota=1_000_000) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=5), None)
            refused = [name for name in await asyncio.gather(*(submit(endpoint, number) for number in range(6))) if name is not None]
            assert len(refused) == 2
            await asyncio.sleep(0.5)
            for number in range(12):
                endpoint.store.put(os.urandom(70_000 + number))
            assert endpoint.store.missing(refused) == refused

    asyncio.run(act())


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Odd(AbstractBaseBlock):
    """A block that reports odd progress, and raises an odd error if ``x`` is not 0."""

    block_type = "test/odd"

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for number in (float("nan"), float("inf"), 10**5000):
            current_run().progress(number, number, None)
        if inputs["x"] == 1:
            raise UnprintableError
        if inputs["x"] == 2:
            loop: dict[str, Any] = {}
            loop["self"] = loop
            raise BlockFailed("an odd error", loop=loop)
        if inputs["x"] == 3:
            raise BlockFailed("an odd error", number=10**5000)
        return {"y": inputs["x"]}


@pytest.mark.parametrize("x, status", [(0, "COMPLETED"), (1, "FAILED"), (2, "FAILED"), (3, "FAILED")])
def test_progress_and_errors_that_json_cannot_represent_end_their_job(tmp_path: Path, x: int, status: str) -> None:
    registry = sample_registry()
    registry.register(Odd.block_type, Odd)

    async def act() -> None:
        async with service(tmp_path, registry=registry) as endpoint:
            config = {**one_node("double"), "nodes": [{"node_id": "node", "block_type": Odd.block_type, "config": {}}]}
            await endpoint.deploy("odd", "graph", config, None)
            with pack({"x": x}, MemoryStore()) as packed:
                job = await endpoint.submit("odd", Submission("key", packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0}))
            await endpoint.job_manager.wait(job, 5, lambda: True)
            assert job.status == status
            assert await asyncio.wrap_future(endpoint.job_store.unfinished()) == []
            json.dumps(job.row(), allow_nan=False)

    asyncio.run(act())


def call_of(key: str, value: Any, endpoint: Service | None = None, **facts: Any) -> Submission:
    """Return a submission; with ``endpoint``, its artifacts are in the store of that endpoint."""
    store = MemoryStore()
    with pack(value, store) as packed:
        for name in packed.artifacts:
            if endpoint is not None:
                endpoint.store.put(bytes(store.read(name)), hash=name)
        return Submission(key, packed.wire, {}, {"seed": 1, "path": [], "pass_index": 0}, **facts)


async def ended(endpoint: Service, job: Job) -> Job:
    await endpoint.job_manager.wait(job, 10, lambda: True)
    assert job.is_final
    return job


def test_a_principal_finds_and_cancels_its_own_jobs_only(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            job = await ended(endpoint, await endpoint.submit("double", call_of("a-key", {"x": 1}, principal="ann")))
            await ended(endpoint, await endpoint.submit("double", call_of("b-key", {"x": 1}, principal="bob")))
            assert job.row()["principal"] == "ann"
            assert [row["key"] for row in await endpoint.jobs(principal="ann")] == ["a-key"]
            assert len(await endpoint.jobs()) == 2
            assert await endpoint.job_of_key("a-key", "ann") is job
            for look_up in (
                endpoint.job_of_key("a-key", "bob"),
                endpoint.cancel_key("a-key", "bob"),
                endpoint.cancel(job.job_id, "bob"),
                endpoint.check_inputs(job.job_id, "bob"),
                endpoint.job_manager.find(job.job_id, "bob"),
                anext(endpoint.events(job.job_id, None, 0.1, "bob")),
            ):
                with pytest.raises(UnknownJob):
                    await look_up
            with pytest.raises(JobConflict) as caught:
                await endpoint.submit("double", call_of("a-key", {"x": 1}, principal="bob"))
            assert job.job_id not in str(caught.value.to_dict())
            stream = endpoint.events(None, 0, 0.1, "bob")
            seen = [event async for event in _until_silent(stream)]
            assert {event.job_id for event in seen} == {(await endpoint.job_of_key("b-key")).job_id}

    asyncio.run(act())


async def _until_silent(stream: AsyncGenerator[Event | None, None]) -> AsyncIterator[Event]:
    async with aclosing(stream):
        async for event in stream:
            if event is None:
                return
            yield event


def test_a_tombstone_belongs_to_the_principal_that_cancelled_the_key(tmp_path: Path) -> None:
    async def act() -> None:
        for _ in range(2):
            async with service(tmp_path) as endpoint:
                assert (await endpoint.cancel_key("key", "ann")).principal == "ann"
                with pytest.raises(JobConflict):
                    await endpoint.submit("double", call_of("key", {"x": 1}, principal="bob"))
                assert (await endpoint.submit("double", call_of("key", {"x": 1}, principal="ann"))).status == "CANCELLED"

    asyncio.run(act())


def test_requests_of_waiting_jobs_are_kept_in_their_rows_beyond_a_small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_manager, "_CACHED_REQUEST_BYTES", 25)

    async def act() -> None:
        async with service(tmp_path) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=0.3), None)
            jobs = [await endpoint.submit("slow", call_of(f"key-{n}", {"x": n}, nbytes=10)) for n in range(4)]
            assert [job.request is None for job in jobs] == [False, False, True, True]
            assert endpoint.job_manager.queued_bytes == 40
            outputs = [(await ended(endpoint, job)).output for job in jobs]
            assert [output["skeleton"]["y"] for output in outputs if output is not None] == [0, 1, 2, 3]
            assert (endpoint.job_manager.queued_bytes, [job.request for job in jobs]) == (0, [{}] * 4)

    asyncio.run(act())


def test_inputs_and_outputs_are_pinned_by_their_job_until_it_ends_and_is_deleted(tmp_path: Path) -> None:
    async def pins(endpoint: Service) -> dict[str, set[str]]:
        await asyncio.sleep(0.2)
        store = endpoint.store
        assert isinstance(store, MemoryStore)
        return {owner: set(hashes) for owner, hashes in store._leases.items()}

    async def act() -> None:
        async with service(tmp_path, jobs=0) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=0.6), None)
            job = await endpoint.submit("slow", call_of("key", {"x": torch.ones(20_000)}, endpoint))
            waiting = await endpoint.submit("double", call_of("other", {"x": torch.zeros(20_000)}))
            owners = await pins(endpoint)
            assert owners == {f"job:{job.job_id}": set(job.artifacts), f"job:{waiting.job_id}": set(waiting.artifacts)}
            await endpoint.cancel(waiting.job_id)
            await ended(endpoint, job)
            assert await pins(endpoint) == {f"job:{job.job_id}": set(job.artifacts)}
            await endpoint.job_manager.prune()
            assert await pins(endpoint) == {}

    asyncio.run(act())


def test_the_pins_of_waiting_jobs_are_made_again_after_a_restart(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            job = await endpoint.submit("double", call_of("key", {"x": torch.zeros(20_000)}))
            await endpoint.job_manager.wait(job, 5, lambda: True)
            assert job.status == "WAITING_INPUTS"
        async with service(tmp_path, quota=200_000) as endpoint:
            again = await endpoint.submit("double", call_of("key", {"x": torch.zeros(20_000)}, endpoint))
            assert again.job_id == job.job_id
            for number in range(3):
                endpoint.store.put(os.urandom(70_000 + number))
            assert (await ended(endpoint, again)).status == "COMPLETED"

    asyncio.run(act())


def test_a_running_job_has_a_lease_of_its_process_that_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_manager, "LEASE_SECONDS", 0.4)

    async def act() -> None:
        async with service(tmp_path) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=1.2), None)
            job = await endpoint.submit("slow", call_of("key", {"x": 1}))
            leases = []
            for _ in range(3):
                await asyncio.sleep(0.3)
                row = await asyncio.wrap_future(endpoint.job_store.get(job.job_id))
                assert row is not None
                assert row.lease_owner == endpoint.job_manager.lease_owner
                leases.append(row.lease_until)
            assert len(set(leases)) > 1
            await ended(endpoint, job)
            row = await asyncio.wrap_future(endpoint.job_store.get(job.job_id))
            assert row is not None
            assert (row.status, row.attempts, row.lease_owner) == ("COMPLETED", 1, None)

    asyncio.run(act())


@pytest.mark.parametrize("attempts, status", [(2, "COMPLETED"), (3, "FAILED")])
def test_a_job_of_another_lease_owner_is_taken_up_at_most_three_times(tmp_path: Path, attempts: int, status: str) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            double = await endpoint.deployment("double")
        request = {"inputs": call_of("key", {"x": 1}).inputs, "options": {}, "run": {"seed": 1, "path": [], "pass_index": 0}}
        store = JobStore(tmp_path / "jobs.sqlite")
        lease = {"status": "IN_PROGRESS", "attempts": attempts, "lease_owner": "another", "lease_until": time.time() + 60}
        store.insert(replace(Job("id", "key", "double", double.hash, "body", request), **lease)).result()  # type: ignore[arg-type]
        store.close()
        async with service(tmp_path) as endpoint:
            job = await ended(endpoint, await endpoint.job_manager.find("id"))
            assert job.status == status
            if status == "FAILED":
                assert "stopped 3 times" in str(job.error)

    asyncio.run(act())


def test_an_end_that_another_end_of_the_row_preceded_is_not_reported(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path) as endpoint:
            await endpoint.deploy("slow", "graph", one_node("slow", seconds=0.5), None)
            job = await endpoint.submit("slow", call_of("key", {"x": 1}))
            for _ in range(300):
                await asyncio.sleep(0.01)
                if job.status == "IN_PROGRESS":
                    break
            error = {"type": "Cancelled", "message": "elsewhere", "details": {}}
            ended_in_row = replace(job, status="CANCELLED", finished=time.time(), error=error)
            assert await asyncio.wrap_future(endpoint.job_store.transition(ended_in_row))
            await ended(endpoint, job)
            assert (job.status, job.error, job.output) == ("CANCELLED", error, None)
            events = [event async for event in endpoint.events(job.job_id, None, 0.1) if event is not None]
            assert [event.data["status"] for event in events if event.kind == "status"] == ["IN_QUEUE", "IN_PROGRESS", "CANCELLED"]

    asyncio.run(act())
