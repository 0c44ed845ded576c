"""Downloads of model files: allowed sources, target folders, and no partial files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.http_client import until
from samples.model_server import SHA256, WEIGHTS, fetching_process, files, service, sources
from samples.model_server import model_server as open_model_server
from yggdrasill.errors import (
    AccessDenied,
    Cancelled,
    CorruptData,
    DuplicateName,
    EndpointUnreachable,
    InvalidArgument,
    InvalidConfig,
    JobConflict,
    LimitExceeded,
    UnknownName,
    YggdrasillError,
)
from yggdrasill.executor.context import CancelToken, enter_run
from yggdrasill.server_ext.jobs.model import Job
from yggdrasill.server_ext.model_fetch import ModelFetch, ModelRequest


@pytest.fixture(scope="module")
def model_server() -> Iterator[str]:
    """Start a server with model files and return it."""
    with open_model_server() as server:
        yield server.url


def fetch(folder: Path, model_server: str, path: str = "/good/a.safetensors", name: str = "a.safetensors", **facts: Any) -> dict[str, Any]:
    request = ModelRequest(model_server + path, "loras", name, facts.pop("sha256", None))
    return ModelFetch(sources(folder, model_server, **facts), request, "key").run({})


def test_a_file_is_fetched_into_its_folder_with_progress(tmp_path: Path, model_server: str) -> None:
    progress: list[tuple[float, float]] = []
    with enter_run(progress=lambda place, done, total, text: progress.append((done, total))):
        found = fetch(tmp_path, model_server, "/good/a.safetensors", "sub/a.safetensors", sha256=SHA256.upper())
    assert found == {"file": "loras/sub/a.safetensors", "nbytes": len(WEIGHTS), "sha256": SHA256}
    assert files(tmp_path) == ["loras/sub/a.safetensors"]
    assert (tmp_path / "loras/sub/a.safetensors").read_bytes() == WEIGHTS
    assert progress[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert len(progress) > 2


def test_redirects_inside_the_allowed_sources_are_followed(tmp_path: Path, model_server: str) -> None:
    assert fetch(tmp_path, model_server, "/good/to/good/a.safetensors")["sha256"] == SHA256


@pytest.mark.parametrize(
    "path, error",
    [
        ("/private/a.safetensors", AccessDenied),
        ("/good/../private/a.safetensors", AccessDenied),
        ("/good/%2e%2e/private/a.safetensors", AccessDenied),
        ("/goodness/a.safetensors", AccessDenied),
        ("/good/to/private/a.safetensors", AccessDenied),
        ("/good/to//elsewhere.example/a.safetensors", AccessDenied),
        ("/good/none.safetensors", EndpointUnreachable),
        ("/good/short.safetensors", EndpointUnreachable),
        ("/good/to" * 7 + "/good/a.safetensors", EndpointUnreachable),
    ],
)
def test_a_forbidden_or_failing_source_leaves_no_files(tmp_path: Path, model_server: str, path: str, error: type[YggdrasillError]) -> None:
    with pytest.raises(error):
        fetch(tmp_path, model_server, path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "facts, error",
    [({"sha256": "0" * 64}, CorruptData), ({"most": 1000}, LimitExceeded), ({"allowed": ()}, AccessDenied)],
)
def test_a_wrong_hash_an_oversized_file_and_an_unreachable_source_leave_no_files(
    tmp_path: Path, model_server: str, facts: dict[str, Any], error: type[YggdrasillError]
) -> None:
    with pytest.raises(error):
        fetch(tmp_path, model_server, **facts)
    assert files(tmp_path) == []


def test_an_unknown_length_is_limited_too(tmp_path: Path, model_server: str) -> None:
    with pytest.raises(LimitExceeded):
        fetch(tmp_path, model_server, "/good/untold.safetensors", most=1_500_000)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["a.py", "a.safetensors/", "../a.safetensors", "/etc/a.safetensors", "b/../../a.safetensors", ".a.safetensors", "b\\a.safetensors",
     "C:a.safetensors", ".hidden/a.safetensors", "a.safetensors\n.pt", "", "x" * 300 + ".pt"],
)  # fmt: skip
def test_only_plain_model_file_names_inside_the_folder_are_accepted(tmp_path: Path, model_server: str, name: str) -> None:
    wanted = ModelRequest(model_server + "/good/a.safetensors", "loras", name)
    with pytest.raises(InvalidArgument):
        sources(tmp_path, model_server).target(wanted)


def test_a_symlink_does_not_lead_out_of_the_folder(tmp_path: Path, model_server: str) -> None:
    allowed = sources(tmp_path, model_server)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "loras" / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(InvalidArgument, match="outside"):
        allowed.target(ModelRequest(model_server + "/good/a.safetensors", "loras", "out/a.safetensors"))


def test_an_existing_file_is_kept_and_an_unknown_folder_is_named(tmp_path: Path, model_server: str) -> None:
    fetch(tmp_path, model_server)
    (tmp_path / "loras/a.safetensors").write_bytes(b"mine")
    with pytest.raises(DuplicateName):
        fetch(tmp_path, model_server)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == b"mine"
    with pytest.raises(UnknownName, match="loras"):
        sources(tmp_path, model_server).target(ModelRequest(model_server + "/good/a.safetensors", "lora", "b.safetensors"))


def test_a_cancelled_fetch_leaves_no_files(tmp_path: Path, model_server: str) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled), enter_run(token=token, progress=lambda *_: token.cancel("enough")):
        fetch(tmp_path, model_server)
    assert files(tmp_path) == []


def test_a_fetch_is_a_job_with_events(tmp_path: Path, model_server: str) -> None:
    async def act() -> None:
        endpoint = service(tmp_path)
        await endpoint.start()
        wanted = ModelRequest(model_server + "/good/a.safetensors", "loras", "a.safetensors")
        with pytest.raises(InvalidConfig, match="not a ComfyUI"):
            await endpoint.fetch_model(wanted, "k")
        endpoint.models = sources(tmp_path, model_server)
        with pytest.raises(AccessDenied):
            await endpoint.fetch_model(ModelRequest(model_server + "/private/a.safetensors", "loras", "a.safetensors"), "k")
        job = await endpoint.fetch_model(wanted, "k")
        assert (await endpoint.fetch_model(wanted, "k")).job_id == job.job_id
        await endpoint.job_manager.wait(job, 10, lambda: True)
        assert (job.status, job.graph_id) == ("COMPLETED", "fetch a.safetensors")
        assert (await endpoint.fetch_model(wanted, "k")).job_id == job.job_id
        assert job.progress == {"place": "", "done": len(WEIGHTS), "total": len(WEIGHTS), "text": "bytes"}
        with pytest.raises(JobConflict):
            await endpoint.fetch_model(ModelRequest(wanted.url, "loras", "b.safetensors"), "k")
        await endpoint.close(0.1)

    asyncio.run(act())
    assert (tmp_path / "loras/a.safetensors").read_bytes() == WEIGHTS


def test_a_fetch_resumes_after_the_endpoint_was_killed(tmp_path: Path) -> None:
    with open_model_server() as model_server:
        killed = fetching_process(tmp_path, model_server.url, "k")
        until(lambda: model_server.halves, 60.0)
        until(lambda: any(name.endswith(".part") for name in files(tmp_path)))
        killed.kill()
        killed.wait(10)
        assert [name for name in files(tmp_path / "loras") if not name.endswith(".part")] == []
        model_server.gate.set()
        found = asyncio.run(again(tmp_path, model_server.url))
    assert (found.status, found.attempts, found.error) == ("COMPLETED", 2, None)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == WEIGHTS
    assert files(tmp_path / "loras") == ["a.safetensors"]


def test_a_resumed_fetch_from_a_source_no_longer_allowed_fails(tmp_path: Path) -> None:
    with open_model_server() as model_server:
        killed = fetching_process(tmp_path, model_server.url, "k")
        until(lambda: model_server.halves, 60.0)
        killed.kill()
        killed.wait(10)
        found = asyncio.run(again(tmp_path, model_server.url, allowed=()))
    assert found.status == "FAILED"
    assert found.error is not None
    assert found.error["type"] == "AccessDenied"


async def again(folder: Path, model_server: str, **facts: Any) -> Job:
    """Start a service on the data folder of a killed one, and return the job with the key ``k`` when it has finished."""
    endpoint = service(folder)
    endpoint.models = sources(folder, model_server, **facts)
    await endpoint.start()
    job = await endpoint.job_manager.find_key("k")
    assert job is not None
    await endpoint.job_manager.wait(job, 30, lambda: True)
    await endpoint.close(0.1)
    return job
