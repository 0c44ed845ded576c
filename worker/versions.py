"""The versions of a worker: found by id, verified once, and what a ComfyUI needs to run them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yggdrasill.errors import AccessDenied, InvalidArgument
from yggdrasill.version_specs.model import VersionSpec
from yggdrasill.version_specs.places import models_folder, on_this_machine
from yggdrasill.version_specs.plan import VerifyOptions
from yggdrasill.version_specs.store import available_versions, load_version
from yggdrasill.version_specs.verify import verify_version
from yggdrasill.worker.comfy_process import Profile
from yggdrasill.worker.settings import Settings

__all__ = ["ReadyVersion", "Versions"]


@dataclass(frozen=True)
class ReadyVersion:
    """A version whose models and nodes are present, and the profile of the ComfyUI that can run it."""

    spec: VersionSpec | None
    profile: Profile
    load_seconds: float = 0.0
    fetched_bytes: int = 0


class Versions:
    """Finds versions in the folders of the settings and verifies each once, and again when its spec changes or `forget` was called."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._verified: dict[tuple[str, Path], tuple[int, int]] = {}
        self._generation = 0
        self._lock = asyncio.Lock()

    def available(self) -> list[str]:
        """Return the ids of all versions."""
        return sorted(available_versions(self._settings.versions))

    def load(self, version_id: str) -> VersionSpec:
        """Return the spec of a version. Raise as `load_version`."""
        return load_version(version_id, self._settings.versions)

    async def prepare(self, spec: VersionSpec | None, models_dir: str | None, progress: Callable[[int, int, str], object]) -> ReadyVersion:
        """Fetch and link what a version needs and return how ComfyUI is started for it; without a spec, as the settings say.

        Raises:
            VersionIncomplete: something cannot be had; all of it is listed. AccessDenied: ``models_dir`` is outside. StorageFailed
        """
        folder = self._models(spec, models_dir)
        if spec is None:
            return ReadyVersion(None, Profile(folder, generation=self._generation))
        args, env = tuple(spec.x.comfy_args), tuple(sorted(spec.x.env.items()))
        key, stamp = (spec.version_id, folder), _stamp(spec.file)
        async with self._lock:
            if self._verified.get(key) == stamp:
                return ReadyVersion(spec, Profile(folder, args, env, self._generation))
            report = await verify_version(
                spec,
                comfy_home=self._settings.comfy_home,
                cache=self._settings.cache_root,
                progress=progress,
                options=VerifyOptions(models_dir=folder, python=self._settings.comfy_python, allow_private=self._settings.private_urls),
            )
            self._verified[key] = stamp
            # a running ComfyUI does not have custom nodes that were installed now
            self._generation += bool(report.installed)
        return ReadyVersion(spec, Profile(folder, args, env, self._generation), report.seconds, report.fetched_bytes)

    def forget(self, spec: VersionSpec | None) -> bool:
        """Verify a version again before its next job, because ComfyUI lacks something. Return whether it had been verified."""
        known = [key for key in self._verified if spec is not None and key[0] == spec.version_id]
        for key in known:
            del self._verified[key]
        return bool(known)

    def _models(self, spec: VersionSpec | None, named: str | None) -> Path:
        settings = self._settings
        if named is None:
            return settings.models_dir if spec is None or not spec.x.models_dir else models_folder(spec, settings.comfy_home)
        if not named.strip() or "\0" in named or len(named) > 1000:
            raise InvalidArgument("models_dir must be a path.", code="invalid_path")
        found = Path(os.path.realpath(settings.comfy_home / on_this_machine(named)))
        bases = [Path(os.path.realpath(base)) for base in (settings.root, settings.comfy_home, settings.models_dir)]
        if not any(found.is_relative_to(base) for base in bases):
            raise AccessDenied(
                "models_dir is outside the workspace and ComfyUI's folder. Name a folder inside them.",
                code="path_outside_workspace",
                reason="path",
            )
        return found


def _stamp(file: Path | None) -> tuple[int, int]:
    facts = None if file is None else file.stat()
    return (0, 0) if facts is None else (facts.st_mtime_ns, facts.st_size)
