"""Tokens on the command line: shown, rotated under a running endpoint, and handed to another machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
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
            assert main(["token", "add", "bob", "--roles", "read", "--data-dir", str(tmp_path)]) == 0
            bob = capsys.readouterr().out.strip()
            assert status(bob) == 200
            assert main(["token", "revoke", "bob", "--data-dir", str(tmp_path)]) == 0
            assert (status(bob), status(new)) == (401, 200)
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


def test_a_secured_endpoint_is_paired_with_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "endpoints.yaml"
    monkeypatch.setattr(sys, "stdin", io.StringIO("yggdrasill-pairing: https://forge.lan:8443 some-token-of-an-endpoint\n"))
    assert main(["endpoints", "--file", str(file), "pair", "forge", "--ca", "authority.pem"]) == 0
    endpoint = EndpointRegistry.from_yaml(file).endpoint("forge")
    assert (endpoint.url, endpoint.ca) == ("https://forge.lan:8443", "authority.pem")


def test_a_pairing_line_without_a_name_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"yggdrasill-pairing: {URL} some-token-of-an-endpoint\n"))
    assert main(["endpoints", "--json", "--file", str(tmp_path / "endpoints.yaml"), "pair"]) == 2
    assert "Pass one" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_principal_is_added_listed_rotated_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--data-dir", str(tmp_path)]
    bounds = ["--roles", "run,read", "--quota", "20GB", "--jobs", "50", "--expires", "30d"]
    assert main(["token", "add", "bob", *bounds, *folder]) == 0
    first = capsys.readouterr().out.strip()
    assert len(first) >= 40
    assert main(["token", "--json", "list", *folder]) == 0
    text = capsys.readouterr().out
    assert first not in text
    bob = json.loads(text)["principals"]["bob"]
    assert (bob["roles"], bob["quota_bytes"], bob["max_jobs"]) == (["read", "run"], 20 * 10**9, 50)
    assert abs(bob["expires"] - time.time() - 30 * 86400) < 60
    assert main(["token", "list", *folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["owner", "bob"]
    assert main(["token", "rotate", "bob", *folder]) == 0
    second = capsys.readouterr().out.strip()
    assert second != first
    assert main(["token", "revoke", "bob", *folder]) == 0
    assert main(["token", "list", *folder]) == 0
    assert "revoked" in capsys.readouterr().out
    stored = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir() if path.name != "token")
    assert first not in stored
    assert second not in stored
    actions = [json.loads(line)["action"] for line in (tmp_path / "audit.log").read_text(encoding="utf-8").splitlines()]
    assert actions == ["token_add", "token_rotate", "token_revoke"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["add", "Bob", "--roles", "run"], "cannot name a principal"),
        (["add", "bob", "--roles", "write"], "Unknown role"),
        (["add", "bob", "--roles", "run", "--quota", "much"], "is not a size"),
        (["add", "bob", "--roles", "run", "--expires", "soon"], "is not a duration"),
        (["rotate", "bob"], "Unknown principal"),
        (["rotate", "--expires", "30d"], "does not expire"),
        (["revoke", "bob"], "Unknown principal"),
        (["revoke", "owner"], "cannot be revoked"),
    ],
)
def test_invalid_arguments_of_tokens_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["token", *arguments, "--data-dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text, nbytes", [("1000", 1000), ("20GB", 20 * 10**9), ("512MiB", 512 << 20), ("1.5kB", 1500), ("1gi", 1 << 30)])
def test_sizes_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, nbytes: int) -> None:
    assert main(["token", "--json", "add", "bob", "--roles", "run", "--quota", text, "--data-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["quota_bytes"] == nbytes
