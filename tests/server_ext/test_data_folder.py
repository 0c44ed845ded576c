"""Damaged and foreign files in the data folder: foreign files are left alone, unusable ones are named with a remedy."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from samples.endpoints import EndpointProcess
from samples.http_client import Http, one_node
from yggdrasill.errors import StorageFailed, YggdrasillError
from yggdrasill.server_ext.comfy.settings import ComfySettings
from yggdrasill.server_ext.jobs.model import Job
from yggdrasill.server_ext.jobs.store import JobStore
from yggdrasill.server_ext.logs import Redactor
from yggdrasill.server_ext.server import Settings, build_service

GARBAGE = b"\x00\xffthis is nothing\n" * 20


def lay(folder: Path, name: str, content: bytes, mode: int = 0o600) -> None:
    """Write a file in the data folder."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)


def test_an_endpoint_starts_with_foreign_and_partial_files_in_its_folder(tmp_path: Path) -> None:
    for name in ("configs/notes.txt", "configs/a.json", "worlds/half/config.json", "worlds/half/run/run.json", "worlds/file"):
        lay(tmp_path, name, GARBAGE)
    for name in (
        "graphs/a.json",
        "graphs/b.ygg",
        "kept/a.json",
        "artifacts/notes.txt",
        "artifacts/ab/half.part",
        "stray.yaml",
        "audit.log",
    ):
        lay(tmp_path, name, GARBAGE)
    process = EndpointProcess("odd", tmp_path)
    process.begin()
    try:
        http = Http(process.ready())
        assert http.get("/graphs").json()["graphs"] == []
        assert http.get("/health").json()["status"] == "ok"
    finally:
        process.stop()
    assert (tmp_path / "artifacts" / "notes.txt").read_bytes() == GARBAGE


@pytest.mark.parametrize(
    "name, content, mode, message",
    [
        ("endpoints.yaml", b"endpoints: {a: [", 0o600, "endpoints.yaml, line 2"),
        ("endpoints.yaml", b"endpoint: {}\n", 0o600, "endpoint"),
        ("endpoints.yaml", GARBAGE, 0o600, "endpoints.yaml"),
        ("secrets.yaml", b"a: tell-nobody\n", 0o644, "chmod 600"),
        ("secrets.yaml", b"a: [tell-nobody", 0o600, "is not a YAML mapping"),
        ("signing_key", b"", 0o600, "Delete it; the next start creates a new secret"),
    ],
)
def test_an_unusable_file_is_named_with_a_remedy(tmp_path: Path, name: str, content: bytes, mode: int, message: str) -> None:
    if name == "secrets.yaml":
        lay(tmp_path, "endpoints.yaml", b"endpoints: {a: {url: 'http://127.0.0.1:9'}}\n")
        if os.name == "nt" and mode != 0o600:
            pytest.skip("this system has no file modes")
    lay(tmp_path, name, content, mode)
    with pytest.raises(YggdrasillError, match=message) as caught:
        build_service(Settings(data_dir=tmp_path), tmp_path, "a-token-of-a-test", Redactor([]))
    assert name in caught.value.message
    assert "\n" not in caught.value.message
    assert "tell-nobody" not in caught.value.message
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
    "text, message",
    [
        (b"qeue: front\n", "settings.yaml: unknown keys 'qeue'. Available: 'allow_hosts'"),
        (b"queue: [front\n", "settings.yaml, line"),
        (b"queue: front\nqueue: fifo\n", "settings.yaml.*duplicate key"),
        (b"- front\n", "settings.yaml: a config is a mapping"),
        (GARBAGE, "settings.yaml"),
    ],
)
def test_unreadable_settings_are_named(tmp_path: Path, text: bytes, message: str) -> None:
    lay(tmp_path, "settings.yaml", text)
    with pytest.raises(YggdrasillError, match=message):
        ComfySettings.read(tmp_path / "settings.yaml")


def break_a_row(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("UPDATE jobs SET request = '{\"inputs'")
    db.close()


def break_the_pages(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[2048:] = os.urandom(len(data) - 2048)
    file.write_bytes(bytes(data))


def break_the_beginning(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(GARBAGE + data[len(GARBAGE) :])


def break_the_text(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("UPDATE jobs SET graph_id = CAST(x'ff' || 'tell-nobody' AS TEXT) WHERE job_id = 'b'")
    db.close()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def file_with_jobs(file: Path) -> Path:
    """Write a job file with three queued jobs."""
    store = JobStore(file)
    for name in ("a", "b", "c"):
        store.insert(Job(name, f"key-{name}", "graph", "hash", "body", {"inputs": "x" * 4000})).result()
    store.close()
    return file


@pytest.mark.parametrize("harm", [break_a_row, break_the_text, break_the_pages, break_the_beginning, cut_off])
def test_a_damaged_job_file_is_renamed_and_replaced_by_an_empty_one(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    file = file_with_jobs(tmp_path / "jobs.sqlite")
    harm(file)
    content = file.read_bytes()
    store = JobStore(file)
    assert store.unfinished().result(5) == []
    store.insert(Job("d", "key-d", "graph", "hash", "body", {})).result(5)
    store.close()
    (line,) = caplog.messages
    (kept,) = tmp_path.glob("jobs.sqlite.damaged-*")
    assert f"{str(file)!r} is damaged (" in line
    assert f"It was renamed to {kept.name!r}; the endpoint starts without jobs" in line
    assert "\n" not in line
    assert "tell-nobody" not in line
    # a file that looks intact is opened for writing first, which changes it
    assert kept.read_bytes() == content or (harm in (break_a_row, break_the_text) and kept.read_bytes()[200:] == content[200:])
    again = JobStore(file)
    assert [job.job_id for job in again.unfinished().result(5)] == ["d"]
    again.close()
    assert len(caplog.messages) == 1


def test_an_earlier_damaged_job_file_is_not_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        lay(tmp_path, "jobs.sqlite", b"%d" % number + GARBAGE)
        JobStore(tmp_path / "jobs.sqlite").close()
    assert sorted(path.read_bytes()[:1] for path in tmp_path.glob("jobs.sqlite.damaged-*")) == [b"0", b"1", b"2"]


def test_a_job_file_in_use_by_another_endpoint_is_not_renamed(tmp_path: Path) -> None:
    file = file_with_jobs(tmp_path / "jobs.sqlite")
    first = JobStore(file)
    with pytest.raises(StorageFailed, match="Another endpoint uses the job file"):
        JobStore(file)
    assert len(first.unfinished().result(5)) == 3
    first.close()
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.sqlite"]


def test_a_job_file_that_is_damaged_during_use_is_named(tmp_path: Path) -> None:
    file = file_with_jobs(tmp_path / "jobs.sqlite")
    store = JobStore(file)
    for number in range(1000):
        # more than SQLite caches in memory
        inserted = store.insert(Job(f"job-{number}", f"key-{number}", "graph", "hash", "body", {"inputs": "x" * 8000}))
    inserted.result(20)
    store.close()
    store = JobStore(file)
    break_the_pages(file)
    with pytest.raises(StorageFailed, match=r"jobs.sqlite' is damaged: .* move it and its"):
        [store.get(name).result(5) for name in ("a", "job-0", "job-1")]
    store.close()


def test_an_endpoint_starts_with_a_damaged_job_file(tmp_path: Path) -> None:
    lay(tmp_path, "jobs.sqlite", GARBAGE * 100)
    process = EndpointProcess("harmed", tmp_path, plugins=["samples.served_blocks"])
    process.start()
    try:
        http = Http(process)
        http.deploy("double", one_node("double"))
        assert http.value(http.submit("double", {"x": 2}).json()["output"]) == {"y": 4}
        (line,) = [line for line in process.log().splitlines() if "jobs.sqlite" in line]
        assert "starts without jobs" in line
    finally:
        process.stop()
    (kept,) = tmp_path.glob("jobs.sqlite.damaged-*")
    assert kept.read_bytes() == GARBAGE * 100


@pytest.mark.skipif(os.name == "nt", reason="this system has no file modes")
def test_the_files_of_an_endpoint_are_private_to_its_user(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    for folder in ("artifacts", "graphs"):
        (data_dir / folder).mkdir(parents=True)
        (data_dir / folder).chmod(0o755)
    file_with_jobs(data_dir / "jobs.sqlite").chmod(0o644)
    process = EndpointProcess("private", data_dir, plugins=["samples.served_blocks"]).start()
    try:
        http = Http(process)
        http.deploy("double", one_node("double"))
        http.run("double", {"x": 2})
        assert http.put(f"/artifacts/{blake3(b'data').hexdigest()}", data=b"data").status_code == 201
    finally:
        process.stop()
    # stderr.log is the test's
    found = [path for path in data_dir.rglob("*") if path.name != "stderr.log"]
    open_to_others = {path.relative_to(data_dir).as_posix() for path in found if path.stat().st_mode & 0o077}
    assert open_to_others == set()


@pytest.mark.skipif(os.name == "nt", reason="this system has no file modes")
def test_an_artifact_folder_that_is_shared_on_purpose_stays_shared(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    process = EndpointProcess("sharing", tmp_path / "data", artifacts=str(shared)).start()
    try:
        name = blake3(b"data").hexdigest()
        assert Http(process).put(f"/artifacts/{name}", data=b"data").status_code == 201
    finally:
        process.stop()
    assert (shared / "objects" / name[:2] / name[2:4] / name).stat().st_mode & 0o044 == 0o044
    assert shared.stat().st_mode & 0o077 == 0o055
