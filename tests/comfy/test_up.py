"""``yggdrasill up`` with a real ComfyUI: two servers with each other in their registries, which stop with the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import ROOT, Installation
from samples.comfy_graphs import node, until
from samples.endpoints import free_port
from yggdrasill.cli import main

pytestmark = pytest.mark.conformance


@pytest.mark.skipif(os.name == "nt", reason="an interrupt is sent to one process")
def test_two_servers_start_work_together_and_stop(installation: Installation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = tmp_path / "endpoints.yaml"
    command = [sys.executable, "-m", "yggdrasill", "up", "--json", "--cpu", "2", "--port", "0"]
    command += ["--comfy", str(installation.folder), "--python", str(installation.python)]
    command += ["--data-dir", str(tmp_path / "up"), "--file", str(registry), "--", "--disable-api-nodes"]
    with (tmp_path / "errors").open("w", encoding="utf-8") as errors:
        up = subprocess.Popen(command, cwd=ROOT.parent, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert up.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = up.stdout.readline()
            assert line, (tmp_path / "errors").read_text(encoding="utf-8")
            text += line
        servers = json.loads(text)["servers"]
        assert [server["name"] for server in servers] == ["cpu0", "cpu1"]
        assert main(["endpoints", "--json", "--file", str(registry), "ping"]) == 0
        capsys.readouterr()
        assert _place(tmp_path, registry, capsys)["run"]["outputs"].keys() == {"3"}
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 130
        if up.stdout is not None:
            up.stdout.close()
    for server in servers:
        until(lambda server=server: not _answers(server["url"]))  # type: ignore[misc]


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be given a pipe there")
def test_a_server_ends_when_the_command_is_killed(installation: Installation, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "yggdrasill", "up", "--cpu", "1", "--port", str(port), "--data-dir", str(tmp_path / "up")]
    command += ["--comfy", str(installation.folder), "--python", str(installation.python), "--file", str(tmp_path / "endpoints.yaml")]
    up = subprocess.Popen([*command, "--", "--disable-api-nodes"], cwd=ROOT.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}"), 120.0)
    finally:
        up.kill()
        up.wait(10)
    until(lambda: not _answers(f"http://127.0.0.1:{port}"))
    assert "the parent process exited" in (tmp_path / "up" / "cpu0" / "server.log").read_text(encoding="utf-8")


def _place(folder: Path, registry: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A workflow of the first server, with a part on both of them."""
    prompt = {
        "1": node("EmptyImage", width=16, height=16, batch_size=4, color=255),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("PreviewImage", images=("2", 0)),
    }
    (folder / "prompt.json").write_text(json.dumps(prompt), encoding="utf-8")
    given = ["place", str(folder / "prompt.json"), "--json", "--file", str(registry)]
    assert main([*given, "--on", "cpu0,cpu1", "--nodes", "2", "--run", "--at", "cpu0"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=2):
            return True
    except OSError:
        return False
