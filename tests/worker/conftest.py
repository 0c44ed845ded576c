"""Workers for tests: settings in a temporary workspace, a service in the test's event loop, and the tiny trainer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from samples.tiny_trainer import toolkit
from yggdrasill.worker.service import WorkerService
from yggdrasill.worker.settings import Settings, TrainingSettings
from yggdrasill.worker.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with its folders."""
    made = Workspace(tmp_path / "workspace")
    made.make()
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a worker that uses only folders of the test; ComfyUI is not installed, the trainer is the tiny one."""
    (tmp_path / "versions").mkdir()
    return Settings(
        root=tmp_path / "workspace",
        comfy_home=tmp_path / "comfy",
        models_dir=tmp_path / "comfy" / "models",
        versions=(tmp_path / "versions",),
        cache_root=tmp_path / "cache",
        state_dir=tmp_path / "state",
        graphs_dir=tmp_path / "graphs",
        worker_id="test",
        output_mode="base64",
        lease_seconds=1.0,
        shared=True,
        private_urls=True,
        training=TrainingSettings(toolkit=toolkit(tmp_path / "toolkit"), models=("tiny/*",)),
    )


@pytest_asyncio.fixture
async def start(settings: Settings) -> AsyncIterator[Callable[..., Any]]:
    """Start workers, ``await start(**changed_settings)``; all are stopped at the end."""
    started: list[WorkerService] = []

    async def start_one(**changes: Any) -> WorkerService:
        service = WorkerService(replace(settings, **changes))
        await service.start()
        started.append(service)
        return service

    yield start_one
    for service in started:
        await service.close()


@pytest_asyncio.fixture
async def worker(start: Callable[..., Any]) -> WorkerService:
    """A running worker."""
    service: WorkerService = await start()
    return service
