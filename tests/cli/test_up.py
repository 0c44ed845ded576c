"""What ``yggdrasill up`` refuses before it starts anything, and what it does when a server dies; real servers are in tests/comfy/test_up.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from samples.endpoints import free_port
from samples.http_client import until
from yggdrasill.cli import main
from yggdrasill.cli.comfy_processes import comfy_processes, devices_of
from yggdrasill.cli.installation import PACKAGE, Installation, find_installation
from yggdrasill.errors import EndpointUnreachable, InvalidArgument, MissingFile


def installation(folder: Path, program: str = "raise SystemExit('no such device')") -> Installation:
    """What looks like a ComfyUI, with this Python, whose main.py is ``program``."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").write_text(program, encoding="utf-8")
    return Installation(folder.resolve(), Path(sys.executable))


def test_devices_are_gpus_by_number_and_processors() -> None:
    found = devices_of("0, 3,cpu", 1)
    assert [(device.name, device.flags) for device in found] == [
        ("gpu0", ("--cuda-device", "0")),
        ("gpu3", ("--cuda-device", "3")),
        ("cpu0", ("--cpu",)),
        ("cpu1", ("--cpu",)),
    ]
    for gpus in (None, "", "0,0", "a", "-1", "0,1,x"):
        with pytest.raises(InvalidArgument, match="--gpus"):
            devices_of(gpus, 0)


def test_an_installation_is_found_by_argument_variable_and_place(tmp_path: Path) -> None:
    made = installation(tmp_path / "ComfyUI")
    python = tmp_path / "ComfyUI" / "venv" / "bin" / "python"
    with pytest.raises(MissingFile, match="--python FILE or COMFYUI_PYTHON"):
        find_installation(made.folder, environment={})
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_installation(made.folder, environment={}) == Installation(made.folder, python)
    named = {"COMFYUI_PATH": str(made.folder), "COMFYUI_PYTHON": sys.executable}
    assert find_installation(environment=named) == Installation(made.folder, Path(sys.executable))
    with pytest.raises(MissingFile, match="--comfy PATH or COMFYUI_PATH"):
        find_installation(tmp_path, environment={})


def test_the_extension_is_known_by_its_project_name(tmp_path: Path) -> None:
    made = installation(tmp_path / "ComfyUI")
    other = made.folder / "custom_nodes" / "other"
    other.mkdir()
    (other / "pyproject.toml").write_text('[project]\nname = "other"\n', encoding="utf-8")
    assert not made.has_extension()
    (made.folder / "custom_nodes" / "any-name").symlink_to(PACKAGE, target_is_directory=True)
    assert made.has_extension()


def test_a_server_that_dies_at_its_start_says_its_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = installation(tmp_path / "ComfyUI")
    given = ["up", "--gpus", "0", "--port", "0", "--comfy", str(made.folder), "--python", sys.executable]
    assert main([*given, "--data-dir", str(tmp_path / "up"), "--file", str(tmp_path / "endpoints.yaml")]) == 3
    said = capsys.readouterr().err
    assert "server 'gpu0' ended during the start (return code 1)" in said
    assert "no such device" in said


def test_a_server_gets_folders_of_its_own_and_the_extension_and_is_ended(tmp_path: Path) -> None:
    made = installation(tmp_path / "ComfyUI", "import sys, time\nprint(*sys.argv[1:], flush=True)\ntime.sleep(600)\n")
    with comfy_processes(made, devices_of("1", 1), tmp_path / "up", port=0, flags=["--cache-lru", "50"]) as servers:
        for server, device in zip(servers, ("--cuda-device 1 ", "--cpu "), strict=True):
            server.wait_until(lambda server=server: bool(server.last_lines()), seconds=30)  # type: ignore[misc]
            words = server.last_lines()
            assert words.startswith(device)
            assert f"--port {server.port} " in words
            assert words.endswith("--cache-lru 50")
            for name in ("input", "output", "temp", "user"):
                assert f"--{name}-directory {server.folder / name}" in words
                assert (server.folder / name).is_dir()
            assert (server.folder / "custom_nodes" / "yggdrasill" / "pyproject.toml").is_file()
        with pytest.raises(EndpointUnreachable, match="not ready after 0 s; allow more with --patience"):
            servers[0].wait_until(lambda: False, seconds=0)
    assert not any(server.alive for server in servers)


_LISTENING = """
import socket, sys, time
sys.path.insert(0, {path!r})
from yggdrasill.server_ext.parent_watchdog import exit_with_parent
exit_with_parent()
with socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))):
    print("listening", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be given a pipe there")
def test_servers_end_when_the_command_is_killed(tmp_path: Path) -> None:
    made = installation(tmp_path / "ComfyUI", _LISTENING.format(path=str(PACKAGE.parent)))
    port = free_port()
    command = [sys.executable, "-m", "yggdrasill", "up", "--cpu", "2", "--port", str(port), "--data-dir", str(tmp_path / "up")]
    command += ["--comfy", str(made.folder), "--python", sys.executable, "--file", str(tmp_path / "endpoints.yaml")]
    up = subprocess.Popen(command, cwd=PACKAGE.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port) and listens(port + 1), 60.0)
    finally:
        up.kill()
        up.wait(10)
    until(lambda: not listens(port) and not listens(port + 1))


def listens(port: int) -> bool:
    """Whether somebody takes connections at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    made = installation(tmp_path / "ComfyUI")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with (
            pytest.raises(InvalidArgument, match=f"port {port} cannot be used"),
            comfy_processes(made, devices_of(None, 1), tmp_path / "up", port=port),
        ):
            raise AssertionError("it started")
    assert not (tmp_path / "up").exists()


def test_an_endpoint_of_another_machine_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = installation(tmp_path / "ComfyUI")
    file = str(tmp_path / "endpoints.yaml")
    assert main(["endpoints", "--file", file, "add", "gpu0", "http://forge.lan:8188"]) == 0
    before = Path(file).stat().st_mtime_ns
    assert main(["up", "--gpus", "0", "--file", file, "--comfy", str(made.folder), "--python", sys.executable]) == 2
    assert "has another endpoint 'gpu0' at http://forge.lan:8188" in capsys.readouterr().err
    assert Path(file).stat().st_mtime_ns == before
