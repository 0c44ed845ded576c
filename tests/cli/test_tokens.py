"""Tokens on the command line: shown, rotated under a running endpoint, and handed to another machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from yggdrasill.cli import main
from yggdrasill.cli.console import Console
from yggdrasill.cli.serve import print_pairing
from yggdrasill.remote import EndpointRegistry

URL = "http://192.168.1.20:8400"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YGGDRASILL_TOKEN", raising=False)


def token_by(capsys: pytest.CaptureFixture[str], action: str, folder: Path) -> str:
    assert main(["token", action, "--data-dir", str(folder)]) == 0
    return capsys.readouterr().out.strip()


def test_a_token_is_made_shown_and_rotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    first = token_by(capsys, "show", folder)
    assert token_by(capsys, "show", folder) == first
    second = token_by(capsys, "rotate", folder)
    assert second != first
    assert token_by(capsys, "show", folder) == second
    assert (folder / "token").read_text(encoding="utf-8").strip() == second


def test_a_token_from_the_environment_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YGGDRASILL_TOKEN", "a-token-of-the-environment")
    assert main(["token", "rotate", "--data-dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "YGGDRASILL_TOKEN is set" in captured.err
    assert "a-token-of-the-environment" not in captured.out


def test_a_running_endpoint_takes_up_a_rotated_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "yggdrasill", "serve", "--port", "0", "--data-dir", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "YGGDRASILL_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            url = lines[0].removeprefix("serving at ").strip()
            old = (tmp_path / "token").read_text(encoding="utf-8").strip()
            assert old not in "".join(lines)

            def status(token: str) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                return requests.get(f"{url}/yggdrasill/v1/health", headers=headers, timeout=10).status_code

            assert status(old) == 200
            new = token_by(capsys, "rotate", tmp_path)
            assert (status(old), status(new)) == (401, 200)
        finally:
            process.terminate()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_printed_command_has_the_token_as_an_argument(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    token = token_by(capsys, "show", tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    print_pairing(Console(), URL, tmp_path / "token")
    lines = capsys.readouterr().out.splitlines()
    assert (token in "\n".join(lines)) == is_terminal
    assert not [line for line in lines if token in line and "yggdrasill " in line]


def test_a_printed_pairing_line_adds_the_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_by(capsys, "show", tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_pairing(Console(), URL, tmp_path / "token")
    line = capsys.readouterr().out.splitlines()[-1]
    file = tmp_path / "endpoints.yaml"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\n"))
    assert main(["endpoints", "--json", "--file", str(file), "pair", "forge"]) == 0
    assert token not in capsys.readouterr().out
    endpoint = EndpointRegistry.from_yaml(file).endpoint("forge")
    assert (endpoint.url, endpoint.token) == (URL, token)


def test_a_pairing_line_without_a_name_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"yggdrasill-pairing: {URL} some-token-of-an-endpoint\n"))
    assert main(["endpoints", "--json", "--file", str(tmp_path / "endpoints.yaml"), "pair"]) == 2
    assert "Pass one" in json.loads(capsys.readouterr().out)["error"]["message"]
