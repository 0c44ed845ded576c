"""Making a worker ready before its first job: the version verified, ComfyUI started, hinted models loaded, one tiny graph run."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from yggdrasill.errors import RunError, YggdrasillError
from yggdrasill.worker.comfy_process import RunningComfy
from yggdrasill.worker.service import WorkerService

__all__ = ["TINY_PROMPT", "loader_prompt", "warm"]

_LOG = logging.getLogger("yggdrasill.worker")
_CHUNK = 8 << 20

TINY_PROMPT: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
"""A workflow that needs no model."""

#: The loader of each kind of model: its class, the input for the file, further inputs.
_LOADERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "checkpoints": ("CheckpointLoaderSimple", "ckpt_name", {}),
    "diffusion_models": ("UNETLoader", "unet_name", {"weight_dtype": "default"}),
    "unet": ("UNETLoader", "unet_name", {"weight_dtype": "default"}),
    "vae": ("VAELoader", "vae_name", {}),
    "text_encoders": ("CLIPLoader", "clip_name", {"type": "stable_diffusion"}),
    "clip": ("CLIPLoader", "clip_name", {"type": "stable_diffusion"}),
    "clip_vision": ("CLIPVisionLoader", "clip_name", {}),
    "controlnet": ("ControlNetLoader", "control_net_name", {}),
    "upscale_models": ("UpscaleModelLoader", "model_name", {}),
}


async def warm(service: WorkerService) -> None:
    """Make a worker ready: its ComfyUI, or the headless endpoint with the plugins of the settings.

    What fails is logged and fails the jobs that need it; other requests are answered all the same.
    """
    settings = service.settings
    began = time.monotonic()
    try:
        if service.hosts.is_headless and settings.host_plugins:
            async with service.hosts.use():
                return
        spec = None if settings.version_id is None else await asyncio.to_thread(service.versions.load, settings.version_id)
        ready = await service.versions.prepare(spec, None, _log_fetch)
        service.load_seconds = time.monotonic() - began
        async with service.comfy.use(ready.profile) as running:
            await _run(service, running, TINY_PROMPT, "the first graph")
            began = time.monotonic()
            for hint in settings.preload:
                await _preload(service, running, ready.profile.models_dir, hint)
            service.load_seconds += time.monotonic() - began
    except YggdrasillError as error:
        _LOG.error("The worker is not ready for workflows: %s", service.scrubber.text(str(error)))


def loader_prompt(hint: str) -> dict[str, Any] | None:
    """Return the workflow that loads a model ``KIND/FILE``, or None if its kind has no loader of one input."""
    kind, _, name = hint.partition("/")
    if kind not in _LOADERS or not name:
        return None
    loader, field, more = _LOADERS[kind]
    return {
        "1": {"class_type": loader, "inputs": {field: name, **more}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


async def _preload(service: WorkerService, running: RunningComfy, models: Path, hint: str) -> None:
    """Read a model into the cache of the system, and load it into ComfyUI if it has a loader."""
    path = models / hint
    try:
        await asyncio.to_thread(_read, path)
    except OSError as error:
        _LOG.warning("The model %r of PRELOAD_MODELS cannot be read (%s).", hint, error.strerror or type(error).__name__)
        return
    prompt = loader_prompt(hint)
    if prompt is not None:
        await _run(service, running, prompt, f"the model {hint!r}")


async def _run(service: WorkerService, running: RunningComfy, prompt: dict[str, Any], what: str) -> None:
    try:
        await service.comfy.guard(running, running.server.run(prompt, {}, _ignore))
    except RunError:
        raise
    except YggdrasillError as error:
        _LOG.warning("%s could not be run at the start: %s", what, service.scrubber.text(str(error)))


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass


def _log_fetch(done: int, total: int, what: str) -> None:
    _LOG.debug("%s: %d of %d bytes", what, done, total)


def _ignore(kind: str, data: Any) -> None:
    """Receive a message of ComfyUI."""
