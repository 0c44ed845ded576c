"""The folder of a world on this server: its saves, a lock for one run at a time, and the snapshots that an interrupted run resumes from.

``worlds/<name>/`` holds a save (``config.json``, ``checkpoints/``, ``last_state.ygg``), ``run/`` the snapshots of the newest run and
``run-before/`` those of the one before it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yggdrasill.errors import CorruptData, InvalidArgument, InvalidConfig, MissingFile, StorageFailed, format_options
from yggdrasill.executor.context import CancelToken
from yggdrasill.foundation.config import read_document
from yggdrasill.server_ext.comfy.levels.building import build
from yggdrasill.server_ext.comfy.levels.host_paths import worlds_folder
from yggdrasill.stage import State
from yggdrasill.values.files import FileLock, write_file
from yggdrasill.world import World
from yggdrasill.world.storage import LAST_STATE_FILE, Progress, WorldStorage, unpack_last

__all__ = ["RunFolder", "load_world", "save_world", "saved_worlds", "world_stamp"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RUN, _BEFORE, _RECORD = "run", "run-before", "run.json"
_SNAPSHOTS_KEPT = 3
_TIMEOUT = 3.0


def _world_path(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise InvalidArgument(
            f"The name of a stored world must consist of letters, digits, '.', '_' and '-', got {name[:100]!r}. Choose another name."
        )
    return worlds_folder() / name


class RunFolder:
    """The files of one run of a world. ``key`` is equal for runs with equal inputs."""

    def __init__(self, world_id: str, key: str) -> None:
        self.world_id = world_id
        self._path = _world_path(world_id)
        self._key = key
        self._run = self._path / _RUN

    @contextmanager
    def lock(self, token: CancelToken) -> Iterator[None]:
        """Lock the world against other runs, in this process or another. A run that is being stopped is waited for.

        Raises:
            InvalidArgument: the world is running. StorageFailed: the folder cannot be written.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._path / "lock")
            acquired = _acquire(lock, token)
        except OSError as error:
            raise self._failed(error) from error
        if not acquired:
            raise InvalidArgument(f"World {self.world_id!r} is already running. Wait for that run, stop it, or choose another world_id.")
        try:
            yield
        finally:
            lock.release()

    def interrupted_progress(self) -> Progress | None:
        """Return the progress of an interrupted run with equal inputs; None if there is none, or it completed."""
        record = self._record()
        if record.get("key") != self._key or record.get("done"):
            return None
        return self.storage(resume=True).newest(self.world_id)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Prepare the folder for a new run, and keep the newest run before it. Raises `StorageFailed`."""
        try:
            if any(self._run.glob("*.ygg")):
                shutil.rmtree(self._path / _BEFORE, ignore_errors=True)
                self._run.replace(self._path / _BEFORE)
            self._run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from error
        self._write({"key": self._key, "done": False, "config": dict(config)})

    def finish(self) -> None:
        """Record that the run completed."""
        self._write({**self._record(), "done": True})

    def storage(self, *, resume: bool) -> WorldStorage:
        """Return the storage for the world's snapshots. With ``resume``, a run without a state continues from the newest snapshot."""
        return WorldStorage(self._run, max_snapshots=_SNAPSHOTS_KEPT, load_last_state=resume)

    def _record(self) -> dict[str, Any]:
        file = self._run / _RECORD
        return _read_record(file) if file.is_file() else {}

    def _write(self, record: Mapping[str, Any]) -> None:
        write_file(self._run / _RECORD, json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace"), durable=True)

    def _failed(self, error: OSError) -> StorageFailed:
        path = str(self._path)
        return StorageFailed(
            f"World {self.world_id!r} cannot be stored in {path!r}: {error.strerror or error}. Give ComfyUI write access, or switch 'keep' off.",
            path=path,
        )


def saved_worlds() -> list[str]:
    """Return the names of the worlds that can be loaded, sorted."""
    folder = worlds_folder()
    found = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(name for name in found if _NAME.fullmatch(name) and any(file.is_file() for file in _configs(folder / name)))


def _read_record(file: Path) -> dict[str, Any]:
    """Return the record written at the start of a run.

    Raises:
        CorruptData
    """
    try:
        record = read_document(file)
    except InvalidConfig as error:
        problem = error.message
    else:
        if isinstance(record.get("config"), dict):
            return record
        problem = f"{str(file)!r} has no config"
    raise CorruptData(
        f"The record of a run is damaged: {problem.rstrip('.')}. Move the folder {str(file.parent)!r} away to start again.", path=str(file)
    )


def _acquire(lock: FileLock, token: CancelToken) -> bool:
    """Return whether the lock was acquired within a few seconds."""
    end = time.monotonic() + _TIMEOUT
    while not lock.acquire(wait=False):
        if token.cancelled or time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _configs(path: Path) -> tuple[Path, ...]:
    return path / "config.json", path / _RUN / _RECORD


def save_world(config: Mapping[str, Any], state: State | None, name: str) -> Path:
    """Save a world and its state as `World.save` does, under its id if the name is blank, and return the folder.

    Raises:
        InvalidArgument, StorageFailed: an earlier save is unchanged.
    """
    world_path = _world_path(name.strip() or str(config.get("world_id", "world")))
    world: World = build(config)
    if isinstance(config.get("storage"), Mapping):
        world.set_storage(WorldStorage.from_config(config["storage"]))
    if state is not None:
        world.last_state, world.content = state, state.content
    try:
        world.save(world_path)
    except OSError as error:
        raise StorageFailed(
            f"The world cannot be saved in {str(world_path)!r}: {error}. Give ComfyUI write access to the folder.", path=str(world_path)
        ) from error
    return world_path


def load_world(name: str) -> tuple[dict[str, Any], State | None]:
    """Return the config and state of a stored world: of its save, or of its newest run if that is newer or there is no save.

    Raises:
        MissingFile: no world has this name. InvalidConfig, CorruptData
    """
    world_path = _world_path(name)
    saved, run = _configs(world_path)
    if not saved.is_file() and not run.is_file():
        raise MissingFile(
            f"Unknown world {name!r}. Available: {format_options(saved_worlds(), near=name)}. Save a world with Save World.",
            path=str(world_path),
        )
    state, written = None, 0
    if saved.is_file():
        config = read_document(saved)
        file = world_path / LAST_STATE_FILE
        if file.is_file():
            state, written = unpack_last(file.read_bytes(), str(file))[0], file.stat().st_mtime_ns
    else:
        config = dict(_read_record(run)["config"])
    world_id = str(config.get("world_id", name))
    for folder in (world_path / _RUN, world_path / _BEFORE):
        newest = max((file.stat().st_mtime_ns for file in folder.glob("*.ygg")), default=0)
        progress = WorldStorage(folder).newest(world_id) if newest > written else None
        if progress is not None:
            return config, progress.resume_state()
    return config, state


def world_stamp(name: str) -> str:
    """Return a value that changes when the result of `load_world` may have changed."""
    world_path = worlds_folder() / name.strip() if _NAME.fullmatch(name.strip()) else None
    files = [] if world_path is None else [*_configs(world_path), world_path / LAST_STATE_FILE, *sorted((world_path / _RUN).glob("*.ygg"))]
    return str([(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()])
