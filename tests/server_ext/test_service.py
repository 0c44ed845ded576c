"""The service without HTTP: retention, pins, known endpoints, redaction."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.graphs import sample_registry
from samples.http_client import one_node
from yggdrasill.errors import UnknownArtifact, UnknownJob
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.server_ext.admission import Submission
from yggdrasill.server_ext.auth import Signer
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.job import Job
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.server_ext.peers import KnownEndpoints
from yggdrasill.server_ext.redaction import Redactor, secrets_of_environment
from yggdrasill.server_ext.retention import Retention
from yggdrasill.server_ext.service import Limits, Service
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack


@asynccontextmanager
async def service(folder: Path, quota: int | None = None, **retention: Any) -> AsyncIterator[Service]:
    store = MemoryStore(quota_bytes=quota)
    rules = HostRules([folder], folder, lambda url: False)
    made = Service(
        host=HeadlessHost(),
        deployments=Deployments(folder / "graphs", rules, registry=sample_registry()),
        jobs=JobStore(folder / "jobs.sqlite"),
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
            await endpoint.job_manager.prune()
            known = [job["job_id"] for job in await endpoint.jobs()]
            assert known == [job.job_id for job in reversed(made[2:])]

    asyncio.run(act())


def test_inputs_are_unpinned_when_the_job_has_finished(tmp_path: Path) -> None:
    async def act() -> None:
        async with service(tmp_path, quota=250_000) as endpoint:
            for number in range(5):
                job = await run(endpoint, torch.full((20_000,), float(number)), f"k{number}")
                await endpoint.job_manager.prune()
                endpoint.store.unpin(f"job:{job.job_id}")
            assert not endpoint.store.missing(job.artifacts)

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
