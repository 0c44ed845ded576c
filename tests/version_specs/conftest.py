"""A server of model files, and a folder like that of ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.file_server import FileServer, file_server
from yggdrasill.remote.public_hosts import ALLOW_VARIABLE
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.version_specs.plan import VerifyOptions


@pytest.fixture
def server() -> Iterator[FileServer]:
    """Start a server of model files."""
    with file_server() as started:
        yield started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder like ComfyUI's, without git."""
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").write_text("", encoding="utf-8")
    (folder / "comfyui_version.py").write_text('__version__ = "0.33.0"\n', encoding="utf-8")
    return folder


@pytest.fixture
def options() -> VerifyOptions:
    """Options for sources on loopback, which fail fast."""
    return VerifyOptions(allow_private=True, retry_policy=RetryPolicy(first=0.3, later=2.0), silence=5.0, environment={})


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of this machine's owner."""
    for name in (ALLOW_VARIABLE, "COMFY_CACHE_ROOT", "COMFY_HOME", "MODELS_DIR", "YGGDRASILL_VERSIONS", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
