"""The audit log: lines of JSON, written in batches and rotated by size."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from yggdrasill.server_ext import logs
from yggdrasill.server_ext.logs import AuditLog, append_entry


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_entries_are_lines_of_json(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.record("bob", "write", "ab" * 32, nbytes=5, job="j")
    log.record("bob", "deploy", "line\nbreak and \ud83d", job=None)
    log.close()
    append_entry(tmp_path, "owner", "token_add", "eve")
    found = entries(tmp_path / "audit.log")
    assert [entry["action"] for entry in found] == ["write", "deploy", "token_add"]
    assert {name: found[0][name] for name in ("principal", "object", "bytes", "job")} == {
        "principal": "bob",
        "object": "ab" * 32,
        "bytes": 5,
        "job": "j",
    }
    assert found[1]["object"] == "line\nbreak and \ud83d"


def test_a_log_above_its_size_is_rotated_and_the_oldest_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 1000)
    for number in range(60):
        log = AuditLog(tmp_path)
        log.record("bob", "write", f"{number:064}")
        log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert set(names) >= {"audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"}
    assert "audit.log.5" not in names
    assert all(path.stat().st_size < 1300 for path in tmp_path.iterdir())
    assert entries(tmp_path / "audit.log.1")[-1]["object"] != entries(tmp_path / "audit.log.2")[-1]["object"]


def test_entries_of_two_writers_do_not_mix(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path) for _ in range(2)]

    def write(log: AuditLog) -> None:
        for number in range(500):
            log.record("bob", "write", f"{number:064}")

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    assert len(entries(tmp_path / "audit.log")) == 1000


def test_a_log_that_cannot_be_written_is_reported_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "audit.log").mkdir()
    log = AuditLog(tmp_path)
    for _ in range(3):
        log.record("bob", "write", "x")
    log.close()
    assert caplog.text.count("The audit log cannot be written") == 1
