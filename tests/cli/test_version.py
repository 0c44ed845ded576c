"""The command version: exit codes, what is printed, and the files that are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.file_server import FileServer, digest_of, file_server, spec_document
from yggdrasill.cli import main
from yggdrasill.version_specs import read_spec


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as started:
        yield started


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFY_CACHE_ROOT", str(tmp_path / "cache"))
    for name in ("MODELS_DIR", "YGGDRASILL_VERSIONS", "YGGDRASILL_ALLOW_PRIVATE_URLS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").write_text("", encoding="utf-8")
    monkeypatch.setenv("COMFY_HOME", str(folder))
    return folder


def versions(home: Path, document: dict[str, Any], name: str = "sample.json") -> Path:
    folder = home.parent / "versions"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder / name


def test_verify_prints_the_plan_and_what_was_done(home: Path, server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.add("a.safetensors", 1_500_000)
    versions(home, spec_document(server, "a.safetensors"))
    assert main(["version", "verify", "sample", "--allow-private"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 missing, 1.5 MB to fetch:",
        "- model loras/a.safetensors (1.5 MB): is not in the cache",
        "version 'sample' is complete: 0 models present, 1 fetched (1.5 MB), 1 linked, 0 custom nodes installed",
    ]
    assert (home / "models" / "loras" / "a.safetensors").read_bytes() == server.files["a.safetensors"]
    assert main(["version", "--json", "verify", "sample", "--no-fetch"]) == 0
    assert json.loads(capsys.readouterr().out)["present"] == ["loras/a.safetensors"]


def test_verify_fails_with_all_that_is_missing(home: Path, server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        server.add(name)
    versions(home, spec_document(server, "a", "b"))
    assert main(["version", "--json", "verify", "sample"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "VersionIncomplete"
    assert [entry["name"] for entry in error["details"]["missing"]] == ["loras/a", "loras/b"]
    assert main(["version", "verify", "sample", "--no-fetch"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: Version 'sample' is incomplete; 2 missing, 600.0 KB of models:\n- model loras/a (300.0 KB): "
    )


def test_an_unknown_version_and_an_invalid_spec_are_invalid_input(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions(home, {"schema": "comfy-build/1"}, "bad.json")
    assert main(["version", "verify", "other"]) == 2
    assert "Unknown version 'other'. Available: " in capsys.readouterr().err
    assert main(["version", "validate", "bad"]) == 2
    assert "name: Field required" in capsys.readouterr().err
    assert main(["version", "verify", "../bad"]) == 2
    assert "is not a version id" in capsys.readouterr().err


def test_validate_prints_errors_and_warnings(home: Path, server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.add("a")
    document = {**spec_document(server, "a"), "x-yggdrasill": {"workflow": {"1": {"inputs": {}}}, "inputs": {"p": "2.text"}}}
    file = versions(home, document)
    assert main(["version", "validate", str(file)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "error: x-yggdrasill.inputs.p: the workflow has no node '2'"
    assert lines[-1] == "version 'sample': 1 models, 0 custom nodes, 1 errors, 2 warnings"
    assert main(["version", "validate", "stable-diffusion-1-5"]) == 0


def test_init_writes_the_spec_of_a_comfyui_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "models" / "loras").mkdir(parents=True)
    (home / "models" / "loras" / "a.pt").write_bytes(b"aaa")
    workflow = {"nodes": [{"properties": {"models": [{"name": "a.pt", "url": "https://h.co/a.pt", "directory": "loras"}]}}]}
    (home.parent / "w.json").write_text(json.dumps(workflow), encoding="utf-8")
    assert main(["version", "init", str(home), "--name", "mine", "--workflow", "w.json"]) == 0
    spec = read_spec(home.parent / "versions" / "mine.json")
    assert [(model.sha256, model.source_uri) for model in spec.definition.models] == [(digest_of(b"aaa"), "https://h.co/a.pt")]
    assert "mine.json: 1 models, 0 custom nodes" in capsys.readouterr().out
    assert main(["version", "init", str(home), "--name", "mine"]) == 2
    assert "exists. Pass --force to replace it, or --out FILE for another file." in capsys.readouterr().err
    assert main(["version", "init", str(home), "--name", "mine", "--force"]) == 0


@pytest.mark.parametrize("arguments", [["X", "--from", "Y"], [], ["X", "--name", "../x"], ["X", "--out", "x.json", "--format", "docker"]])
def test_init_refuses_what_it_cannot_mean(home: Path, arguments: list[str]) -> None:
    assert main(["version", "init", *[str(home) if each == "X" else each for each in arguments]]) == 2


def test_init_converts_between_formats(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = {
        "comfyui": "a" * 40,
        "git_custom_nodes": {"https://github.com/a/b": {"hash": "b" * 40, "disabled": False}},
        "cnr_custom_nodes": {},
    }
    (home.parent / "snapshot.json").write_text(json.dumps(snapshot), encoding="utf-8")
    assert main(["version", "init", "--from", "snapshot.json", "--out", "comfy-build.yaml"]) == 0
    assert main(["version", "init", "--from", "comfy-build.yaml", "--out", "again.json", "--format", "snapshot"]) == 0
    again = json.loads((home.parent / "again.json").read_text(encoding="utf-8"))
    assert (again["comfyui"], again["git_custom_nodes"]) == (snapshot["comfyui"], snapshot["git_custom_nodes"])


def test_lock_writes_hashes_and_sizes(home: Path, server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    data = server.add("a")
    document = spec_document(server, "a")
    del document["definition"]["models"][0]["sha256"]
    file = versions(home, document)
    assert main(["version", "lock", "sample", "--allow-private"]) == 0
    assert read_spec(file).definition.models[0].sha256 == digest_of(data)
    assert "is exact now" in capsys.readouterr().out
    assert main(["version", "lock", "sample", "--allow-private", "--out", "other.yaml"]) == 0
    assert "other.yaml: was exact" in capsys.readouterr().out
    assert read_spec(home.parent / "other.yaml").to_document() == read_spec(file).to_document()
