"""The overhead of a serverless worker: a warm job beside the bare workflow at the worker's own ComfyUI."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.comfy_client import Page
from benchmarks.comfy_servers import Installation, comfy_version, find_installation
from benchmarks.figures import Figure
from benchmarks.timing import interleave, median, ratios, seconds
from yggdrasill.worker.handler import WorkerHost
from yggdrasill.worker.settings import Settings

__all__ = ["run"]

ROUNDS = 60
LIMIT_SECONDS = 0.030
WHAT, LIMIT = "overhead of a warm job", f"the limit of {seconds(LIMIT_SECONDS)}"
VERSION = {
    "schema": "comfy-build/1",
    "name": "bench",
    "definition": {"schema": "distribution-definition/0", "models": []},
    "x-yggdrasill": {"output_mode": "base64"},
}


def run() -> list[Figure]:
    """Return all figures."""
    installation = find_installation()
    if installation is None:
        return [Figure.missing(WHAT, LIMIT, "it needs a ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON)", at_most=1.0)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = WorkerHost(_settings(installation, Path(folder)))
        try:
            _handle(host, _workflow(-1))
            with Page.open(str(host.service.comfy.url)) as page:
                numbers = itertools.count()
                acts = {"worker": lambda: _handle(host, _workflow(next(numbers))), "bare": lambda: page.run(_workflow(next(numbers)))}
                taken = interleave("worker", acts, ROUNDS, collect=False)
        finally:
            host.close()
    above = [more - less for more, less in zip(taken["worker"], taken["bare"], strict=True)]
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    note = f"ComfyUI {comfy_version(installation)}; one saved image, returned as base64"
    return [
        Figure.of(WHAT, LIMIT, [value / LIMIT_SECONDS for value in above], at_most=1.0, parts=parts, note=note),
        Figure.of("a warm job", "the bare workflow", ratios(taken["worker"], taken["bare"]), parts=parts),
    ]


def _settings(installation: Installation, folder: Path) -> Settings:
    for name in ("versions", "graphs"):
        (folder / name).mkdir()
    (folder / "versions" / "bench.json").write_text(json.dumps(VERSION), encoding="utf-8")
    return Settings(
        root=folder / "workspace",
        comfy_home=installation.folder,
        models_dir=folder / "models",
        versions=(folder / "versions",),
        cache_root=folder / "cache",
        state_dir=folder / "state",
        graphs_dir=folder / "graphs",
        worker_id="bench",
        comfy_python=installation.python,
        comfy_args=("--cpu", installation.flag_without_api_nodes),
    )


def _workflow(number: int) -> dict[str, Any]:
    """Return a workflow that no cache has: its image has a color of its own."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": number + 1}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
    }


def _handle(host: WorkerHost, workflow: dict[str, Any]) -> None:
    result = asyncio.run(host.handle({"id": "bench", "input": {"version_id": "bench", "workflow": workflow}}))
    if "error" in result:
        raise RuntimeError(result["error"])
