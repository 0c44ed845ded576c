"""A worker with a real ComfyUI, started once for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.comfy import ROOT, Installation
from yggdrasill.worker.handler import WorkerHost
from yggdrasill.worker.settings import Settings

VERSION = {
    "schema": "comfy-build/1",
    "name": "tiny",
    "definition": {"schema": "distribution-definition/0", "models": []},
    "x-yggdrasill": {
        "output_mode": "base64",
        "workflow": {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "tiny"}},
        },
        "inputs": {"color": {"node": "1", "field": "color", "default": 255}, "prompt": "2.filename_prefix"},
    },
}


@pytest.fixture(scope="session")
def worker_settings(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a worker with the installation's ComfyUI, the test's nodes and the version ``tiny``."""
    folder = tmp_path_factory.mktemp("worker")
    for name in ("versions", "graphs", "nodes"):
        (folder / name).mkdir()
    (folder / "versions" / "tiny.json").write_text(json.dumps(VERSION), encoding="utf-8")
    shutil.copy(ROOT / "tests" / "samples" / "output_nodes.py", folder / "nodes" / "output_nodes.py")
    paths = folder / "paths.yaml"
    paths.write_text(json.dumps({"tests": {"custom_nodes": str(folder / "nodes")}}), encoding="utf-8")
    return Settings(
        root=folder / "workspace",
        comfy_home=installation.folder,
        models_dir=folder / "models",
        versions=(folder / "versions",),
        cache_root=folder / "cache",
        state_dir=folder / "state",
        graphs_dir=folder / "graphs",
        worker_id="test",
        comfy_python=installation.python,
        comfy_args=("--cpu", installation.flag_without_api_nodes, "--extra-model-paths-config", str(paths)),
        shared=True,
        private_urls=True,
    )


@pytest.fixture(scope="session")
def host(worker_settings: Settings) -> Iterator[WorkerHost]:
    """The worker; a secret is in its environment."""
    before = os.environ.get("RUNPOD_AI_API_KEY")
    os.environ["RUNPOD_AI_API_KEY"] = "planted-secret-of-runpod"
    worker = WorkerHost(worker_settings)
    yield worker
    worker.close()
    if before is None:
        del os.environ["RUNPOD_AI_API_KEY"]
    else:
        os.environ["RUNPOD_AI_API_KEY"] = before


@pytest.fixture
def folder(worker_settings: Settings) -> Path:
    """The folder of the worker's files."""
    return worker_settings.root.parent
