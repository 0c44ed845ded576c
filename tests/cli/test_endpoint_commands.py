"""Endpoints and jobs on the command line, with a real endpoint process; and the demo, small."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.cli import main
from yggdrasill.cli.processes import EndpointProcess, endpoint_processes


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    with endpoint_processes(["forge"], tmp_path_factory.mktemp("data")) as (process,):
        yield process


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_endpoints_are_added_asked_and_removed(forge: EndpointProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "endpoints.yaml")
    assert main(["endpoints", "--json", "--file", file, "add", "forge", forge.url, "--token", os.environ[forge.token_env]]) == 0
    capsys.readouterr()
    assert os.environ[forge.token_env] not in (tmp_path / "endpoints.yaml").read_text(encoding="utf-8")
    assert os.name == "nt" or stat.S_IMODE((tmp_path / "secrets.yaml").stat().st_mode) == 0o600
    assert main(["endpoints", "--json", "--file", file, "ping"]) == 0
    assert said(capsys)["endpoints"][0]["ok"] is True
    assert main(["endpoints", "--json", "--file", file]) == 0
    assert list(said(capsys)["endpoints"]) == ["forge"]
    assert main(["endpoints", "--json", "--file", file, "remove", "forge"]) == 0
    assert said(capsys)["endpoints"] == {}


def test_ping_says_who_does_not_answer(forge: EndpointProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "endpoints.yaml")
    main(["endpoints", "--file", file, "add", "forge", forge.url])
    main(["endpoints", "--file", file, "add", "gone", "http://127.0.0.1:9"])
    capsys.readouterr()
    assert main(["endpoints", "--json", "--file", file, "ping"]) == 3
    errors = {entry["endpoint"]: entry["error"]["type"] for entry in said(capsys)["endpoints"]}
    assert errors == {"forge": "AccessDenied", "gone": "EndpointUnreachable"}


def test_a_placed_run_leaves_jobs_to_look_at(forge: EndpointProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "endpoints.yaml"
    main(["endpoints", "--file", str(file), "add", "forge", forge.url, "--token-env", forge.token_env])
    text = file.read_text(encoding="utf-8").replace("graphs: {}", "graphs:\n  creator: forge")
    file.write_text(text, encoding="utf-8")
    capsys.readouterr()
    world = ["run", "template:canon_2.0", "--param", "size=64", "--steps", "1", "--json"]
    assert main([*world, "--endpoints", str(file), "--out", str(tmp_path / "placed")]) == 0
    assert main([*world, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "placed" / "pass-01.png").read_bytes() == (tmp_path / "here" / "pass-01.png").read_bytes()
    capsys.readouterr()
    assert main(["jobs", "--json", "--file", str(file), "list", "forge"]) == 0
    (job, *_) = said(capsys)["jobs"]
    assert job["status"] == "COMPLETED"
    assert main(["jobs", "--json", "--file", str(file), "show", "forge", job["job_id"]]) == 0
    assert said(capsys)["job_id"] == job["job_id"]
    assert main(["jobs", "--json", "--file", str(file), "show", "forge", "nothing"]) == 2
    assert said(capsys)["error"]["type"] == "UnknownJob"


def test_the_demo_compares_three_processes_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--steps", "2", "--size", "64", "--out", str(tmp_path)]) == 0
    document = said(capsys)
    assert document["equal"] is True
    assert {row["place"] for row in document["stages"] if row["ran"]} == {"letters", "forge", "archive"}
    assert {"world.svg", "timeline.svg", "chronicle.html", "pass-01.png", "pass-02.png"} <= {path.name for path in tmp_path.iterdir()}
