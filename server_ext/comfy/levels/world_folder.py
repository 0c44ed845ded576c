"""A world's folder here: one run at a time, what a stopped run needs to go on, and worlds that were saved.

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
from yggdrasill.values.files import write_file
from yggdrasill.values.stores.disk_files import FileLock
from yggdrasill.world import World
from yggdrasill.world.last_state import LAST_STATE_FILE, unpack_last
from yggdrasill.world.storage import Progress, WorldStorage

__all__ = ["RunFolder", "load_world", "save_world", "saved_worlds", "world_stamp"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RUN, _BEFORE, _RECORD = "run", "run-before", "run.json"
_SNAPSHOTS_KEPT = 3
_TIMEOUT = 3.0


def _world_path(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise InvalidArgument(f"a world kept here has a name of letters, digits, '.', '_' and '-', got {name[:100]!r}; choose another one")
    return worlds_folder() / name


class RunFolder:
    """What one run of a world keeps. ``key`` is equal for runs with equal inputs."""

    def __init__(self, world_id: str, key: str) -> None:
        self.world_id = world_id
        self._home = _world_path(world_id)
        self._key = key
        self._run = self._home / _RUN

    @contextmanager
    def lock(self, token: CancelToken) -> Iterator[None]:
        """No other run of the world meanwhile, in this process or another; one that is just being stopped is waited for.

        Raises:
            InvalidArgument: it is running. StorageFailed: the folder cannot be written.
        """
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._home / "lock")
            taken = _take(lock, token)
        except OSError as error:
            raise self._failed(error) from error
        if not taken:
            raise InvalidArgument(
                f"world {self.world_id!r} is running already; wait for that run or stop it, or give this world another world_id"
            )
        try:
            yield
        finally:
            lock.release()

    def interrupted_progress(self) -> Progress | None:
        """How far a run with these inputs came before it was stopped; None if there is none or it came to its end."""
        record = self._record()
        if record.get("key") != self._key or record.get("done"):
            return None
        return self.storage(resume=True).newest(self.world_id)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Make room for a new run; that of the newest before it is kept beside. Raises StorageFailed."""
        try:
            if any(self._run.glob("*.ygg")):
                shutil.rmtree(self._home / _BEFORE, ignore_errors=True)
                self._run.replace(self._home / _BEFORE)
            self._run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from error
        self._write({"key": self._key, "done": False, "config": dict(config)})

    def finish(self) -> None:
        """The run came to its end."""
        self._write({**self._record(), "done": True})

    def storage(self, *, resume: bool) -> WorldStorage:
        """Where the world keeps its snapshots; with ``resume`` a run without a state goes on from the newest."""
        return WorldStorage(self._run, max_snapshots=_SNAPSHOTS_KEPT, load_last_state=resume)

    def _record(self) -> dict[str, Any]:
        file = self._run / _RECORD
        return _read_record(file) if file.is_file() else {}

    def _write(self, record: Mapping[str, Any]) -> None:
        write_file(self._run / _RECORD, json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace"), durable=True)

    def _failed(self, error: OSError) -> StorageFailed:
        where = str(self._home)
        return StorageFailed(
            f"world {self.world_id!r} cannot be kept in {where!r}: {error.strerror or error}; let ComfyUI write there, or switch 'keep' off",
            path=where,
        )


def saved_worlds() -> list[str]:
    """The names of the worlds that can be loaded, sorted."""
    folder = worlds_folder()
    found = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(name for name in found if _NAME.fullmatch(name) and any(file.is_file() for file in _configs(folder / name)))


def _read_record(file: Path) -> dict[str, Any]:
    """What a run was begun with.

    Raises:
        CorruptData
    """
    try:
        record = read_document(file)
    except InvalidConfig as error:
        said = error.message
    else:
        if isinstance(record.get("config"), dict):
            return record
        said = f"{str(file)!r} has no config"
    raise CorruptData(f"what is kept of a run is damaged: {said}; move the folder {str(file.parent)!r} away to begin anew", path=str(file))


def _take(lock: FileLock, token: CancelToken) -> bool:
    """Whether the lock could be had within a moment."""
    end = time.monotonic() + _TIMEOUT
    while not lock.acquire(wait=False):
        if token.cancelled or time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _configs(home: Path) -> tuple[Path, ...]:
    return home / "config.json", home / _RUN / _RECORD


def save_world(config: Mapping[str, Any], state: State | None, name: str) -> Path:
    """Save a world and its state as `World.save` does; a blank name is the world's id. Returns the folder.

    Raises:
        InvalidArgument, StorageFailed: what was saved before is as it was.
    """
    home = _world_path(name.strip() or str(config.get("world_id", "world")))
    world: World = build(config)
    if isinstance(config.get("storage"), Mapping):
        world.set_storage(WorldStorage.from_config(config["storage"]))
    if state is not None:
        world.last_state, world.content = state, state.content
    try:
        world.save(home)
    except OSError as error:
        raise StorageFailed(f"the world cannot be saved in {str(home)!r}: {error}; let ComfyUI write there", path=str(home)) from error
    return home


def load_world(name: str) -> tuple[dict[str, Any], State | None]:
    """The config and state of a world kept here: as it was saved, or of the newest run if that is newer or nothing was saved.

    Raises:
        MissingFile: there is none of that name. InvalidConfig, CorruptData
    """
    home = _world_path(name)
    saved, run = _configs(home)
    if not saved.is_file() and not run.is_file():
        raise MissingFile(
            f"there is no world {name!r} here; there is {format_options(saved_worlds(), near=name)}. Save one with Save World.",
            path=str(home),
        )
    state, written = None, 0
    if saved.is_file():
        config = read_document(saved)
        file = home / LAST_STATE_FILE
        if file.is_file():
            state, written = unpack_last(file.read_bytes(), str(file))[0], file.stat().st_mtime_ns
    else:
        config = dict(_read_record(run)["config"])
    world_id = str(config.get("world_id", name))
    for folder in (home / _RUN, home / _BEFORE):
        newest = max((file.stat().st_mtime_ns for file in folder.glob("*.ygg")), default=0)
        progress = WorldStorage(folder).newest(world_id) if newest > written else None
        if progress is not None:
            return config, progress.resume_state()
    return config, state


def world_stamp(name: str) -> str:
    """Changes when what `load_world` would give may have changed."""
    home = worlds_folder() / name.strip() if _NAME.fullmatch(name.strip()) else None
    files = [] if home is None else [*_configs(home), home / LAST_STATE_FILE, *sorted((home / _RUN).glob("*.ygg"))]
    return str([(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()])
