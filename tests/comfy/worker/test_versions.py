"""Versions of a worker: fetched into an empty cache, run on a real ComfyUI, and what is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import ROOT, Installation
from samples.small_server import small_server
from yggdrasill.worker.handler import WorkerHost
from yggdrasill.worker.warming import loader_prompt, warm

WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 9}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "v"}},
}


def ask(host: WorkerHost, given: Any) -> dict[str, Any]:
    return host.run(host.service.handle({"id": "job", "input": given}))


def write_version(folder: Path, name: str, models: list[dict[str, Any]]) -> None:
    document = {
        "schema": "comfy-build/1",
        "name": name,
        "definition": {"schema": "distribution-definition/0", "models": models},
        "x-yggdrasill": {"workflow": WORKFLOW, "output_mode": "base64"},
    }
    (folder / "versions" / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def model(url: str, data: bytes, name: str) -> dict[str, Any]:
    return {
        "type": "loras",
        "filename": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "sizeBytes": len(data),
        "sourceUri": f"{url}/{name}",
    }


def test_a_version_is_fetched_into_an_empty_cache_linked_and_run(host: WorkerHost, folder: Path) -> None:
    data = bytes(range(256)) * 400
    with small_server({"/style.safetensors": data}) as url:
        write_version(folder, "fetched", [model(url, data, "style.safetensors")])
        reports: list[dict[str, Any]] = []
        job = {"id": "job", "input": {"version_id": "fetched", "inputs": {}, "type": "generate"}}
        result = host.run(host.service.handle(job, reports.append))
        assert result["files"][0]["kind"] == "image", result
        assert result["timing"]["load"] > 0
    linked = host.service.settings.models_dir / "loras" / "style.safetensors"
    assert linked.read_bytes() == data
    again = ask(host, {"version_id": "fetched", "inputs": {}, "type": "generate"})
    assert "error" not in again, again
    assert again["timing"]["load"] < 0.5
    assert {"name": "style.safetensors", "size": len(data)} in ask(host, {"type": "list_models"})["models"]["loras"]
    assert "fetched" in ask(host, {"type": "list_models"})["versions"]


def test_all_that_a_version_lacks_is_listed_without_paths(host: WorkerHost, folder: Path) -> None:
    with small_server({"/b.safetensors": b"other bytes"}) as url:
        write_version(folder, "broken", [model(url, b"a", "a.safetensors"), {**model(url, b"x", "b.safetensors"), "sizeBytes": 11}])
        result = ask(host, {"version_id": "broken", "inputs": {}, "type": "generate"})
    assert result["code"] == "version_incomplete", result
    assert "a.safetensors" in result["error"]
    text = json.dumps(result)
    assert str(folder) not in text
    assert str(Path.home()) not in text
    assert not list((host.service.settings.models_dir / "loras").glob("[ab].safetensors"))


@pytest.fixture(scope="module")
def checkpoint(host: WorkerHost, installation: Installation) -> str:
    """The name of a tiny checkpoint in the worker's folder of models."""
    models = host.service.settings.models_dir
    (models / "checkpoints").mkdir(parents=True, exist_ok=True)
    made = installation.run(ROOT / "tests" / "comfy" / "checkpoint.py", str(models))
    assert made.returncode == 0, made.stderr[-2000:]
    found = next(path for path in sorted((models / "checkpoints").iterdir()) if path.suffix in (".ckpt", ".safetensors"))
    named = found.with_name(f"flux1-dev-fp8{found.suffix}")
    named.write_bytes(found.read_bytes())
    return named.name


@pytest.mark.timeout(900)  # a model is loaded and sampled by a CPU
def test_the_test_input_of_worker_comfyui_runs_with_a_model_of_its_name(host: WorkerHost, checkpoint: str) -> None:
    workflow = {
        "6": {"inputs": {"text": "a cat", "clip": ["30", 1]}, "class_type": "CLIPTextEncode", "_meta": {"title": "CLIP Text Encode"}},
        "8": {"inputs": {"samples": ["31", 0], "vae": ["30", 2]}, "class_type": "VAEDecode"},
        "9": {"inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}, "class_type": "SaveImage"},
        "27": {"inputs": {"width": 64, "height": 64, "batch_size": 1}, "class_type": "EmptySD3LatentImage"},
        "30": {"inputs": {"ckpt_name": checkpoint}, "class_type": "CheckpointLoaderSimple"},
        "31": {
            "inputs": {
                "seed": 150959564782347, "steps": 2, "cfg": 1, "sampler_name": "euler", "scheduler": "simple", "denoise": 1, "model": ["30", 0],
                "positive": ["35", 0], "negative": ["33", 0], "latent_image": ["27", 0],
            },
            "class_type": "KSampler",
        },
        "33": {"inputs": {"text": "", "clip": ["30", 1]}, "class_type": "CLIPTextEncode"},
        "35": {"inputs": {"guidance": 3.5, "conditioning": ["6", 0]}, "class_type": "FluxGuidance"},
    }  # fmt: skip
    result = ask(host, {"workflow": workflow})
    assert [(entry["type"], entry["filename"][:8]) for entry in result["images"]] == [("base64", "ComfyUI_")], result
    workflow["30"] = {"inputs": {"ckpt_name": "none.safetensors"}, "class_type": "CheckpointLoaderSimple"}
    refused = ask(host, {"workflow": workflow})
    assert refused["code"] == "workflow_refused"
    assert "ckpt_name" in refused["error"]


@pytest.mark.timeout(900)  # a model is loaded and sampled by a CPU
def test_a_worker_is_made_ready_with_its_models_loaded(
    host: WorkerHost, checkpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(
        host.service, "settings", replace(host.service.settings, preload=(f"checkpoints/{checkpoint}", "vae/none.pt"), version_id="tiny")
    )
    with caplog.at_level("WARNING", "yggdrasill.worker"):
        host.run(warm(host.service))
    assert host.service.load_seconds > 0
    assert ["none.pt" in record.getMessage() for record in caplog.records] == [True]


def test_a_kind_without_a_loader_is_only_read() -> None:
    assert loader_prompt("loras/a.safetensors") is None
    assert loader_prompt("vae") is None
    assert loader_prompt("vae/sub/a.pt") is not None
