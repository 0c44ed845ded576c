"""The removal of idle deployments."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from samples.http_client import GateFile, Http, error_of, one_node, until
from yggdrasill.errors import StorageFailed
from yggdrasill.server_ext import deployment as idle_reaper
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.deployment import IdleReaper
from yggdrasill.server_ext.deployments import Deployments


def test_an_idle_deployment_is_removed_after_its_limit(server: Http, gate_file: GateFile) -> None:
    config = {**one_node("gate", ("path", "x")), "graph_id": "brief"}
    for name, seconds in (("busy", 4.0), ("kept", None), ("brief", 1.5)):
        answer = server.put(f"/graphs/{name}", json={"kind": "graph", "config": config, "idle_after": seconds})
        assert answer.status_code == 201
    job = server.start("busy", gate_file.inputs(x=1))
    gate_file.wait_begun()

    def names() -> set[str]:
        return {entry["graph_id"] for entry in server.get("/graphs").json()["graphs"]}

    until(lambda: "brief" not in names())
    assert error_of(server.submit("brief", gate_file.inputs(x=1))) == (404, "UnknownGraph")
    time.sleep(4.5)
    assert {"busy", "kept"} <= names()
    assert server.get("/graphs/busy").json()["idle_after"] == 4.0
    gate_file.open()
    assert server.value(server.result(job)["output"]) == {"y": 1}
    until(lambda: "busy" not in names())
    server.session.delete(server.url + "/graphs/kept", timeout=60)


def test_an_idle_limit_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rules = HostRules([], tmp_path / "worlds", lambda url: False)
    config = {"graph_id": "g", "nodes": []}
    put = Deployments(tmp_path / "graphs", rules)
    put.put("g", "graph", config, "hash", None, 60.0)
    again = Deployments(tmp_path / "graphs", rules)
    assert again.get("g").idle_after == 60.0
    assert again.reaper.idle() == []
    now[0] += 61.0
    assert again.reaper.idle() == ["g"]
    again.reaper.touch("g")
    assert again.reaper.idle() == []


def test_a_deployment_that_cannot_be_removed_stays_and_does_not_block_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deployments = Deployments(tmp_path / "graphs", HostRules([], tmp_path / "worlds", lambda url: False))
    for name in ("stuck", "free"):
        deployments.put(name, "graph", {"graph_id": name, "nodes": []}, "hash", None, 0.05)
    next((tmp_path / "graphs").glob("stuck-*.json")).with_suffix(".ygg").mkdir()
    with pytest.raises(StorageFailed, match="stuck-"):
        deployments.remove("stuck")

    async def act() -> None:
        sweep = asyncio.create_task(deployments.reaper.sweep(list, deployments.remove))
        for _ in range(200):
            await asyncio.sleep(0.1)
            if deployments.names() == ["stuck"] and caplog.text:
                break
        assert not sweep.done()
        sweep.cancel()

    asyncio.run(act())
    assert deployments.names() == ["stuck"]
    assert "Idle graph 'stuck' cannot be removed" in caplog.text


def test_the_sweep_survives_any_exception_and_logs_it_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_reaper, "_SWEEP_SECONDS", 0.01)
    reaper = IdleReaper()
    reaper.start("first", 0.0)
    reaper.start("second", 0.0)
    removed: list[str] = []
    calls = 0

    def in_use() -> list[str]:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise RuntimeError("surprise")
        return []

    def remove(graph_id: str) -> None:
        if graph_id == "first":
            raise ValueError("stuck")
        removed.append(graph_id)
        reaper.untrack(graph_id)

    async def act() -> None:
        sweep = asyncio.create_task(reaper.sweep(in_use, remove))
        for _ in range(200):
            await asyncio.sleep(0.01)
            if removed:
                break
        assert not sweep.done()
        sweep.cancel()

    asyncio.run(act())
    assert removed == ["second"]
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert "Idle graph 'first' cannot be removed: ValueError: stuck" in caplog.text
