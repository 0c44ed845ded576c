"""The files of a world: snapshots and the state after the last full pass in its storage, and the last state in a save.

All files are in the codec of `yggdrasill.values` and appear complete or not at all. Several processes may write to one
storage folder: they take a lock, and a snapshot's number is claimed by creating its file. Rotation deletes the oldest
snapshots after the new one is on disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from yggdrasill.errors import CodecError, CorruptData, InvalidArgument, InvalidState, StorageFailed
from yggdrasill.stage.state import State
from yggdrasill.values.files import FileLock, write_file

__all__ = ["DEFAULT_NAMING", "LAST_STATE_FILE", "BlockMemory", "Progress", "WorldStorage", "pack_last", "unpack_last"]

#: What stateful blocks remember, by path ``(stage, pipeline, graph, node)``; as text joined with "/" in old files.
BlockMemory = Mapping[Any, Any]

#: The file in a world's save that holds its last state and content.
LAST_STATE_FILE = "last_state.ygg"

DEFAULT_NAMING = "{world_id}-{number:06d}.ygg"
_LAST = "{world_id}-last.ygg"
_LOCK = ".lock"
_NUMBER_FORMAT = re.compile(r"(0\d+)?d?")
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS), getattr(errno, "ENOTSUP", errno.ENOSYS)}


@dataclass(frozen=True)
class Progress:
    """How far a world got, as one storage file records it.

    ``phase`` "update": after World update of pass ``passes``; ``state`` is the full state that was applied, with the new
    content, and ``following`` the state that Development opened. ``phase`` "pass": after ``passes`` full passes; ``state``
    is the result. ``memory`` is what stateful blocks remembered, ``snapshot`` the number of the newest snapshot then.
    """

    phase: str
    passes: int
    state: State
    following: State | None = None
    memory: BlockMemory = field(default_factory=dict)
    snapshot: int = 0

    def resume_state(self) -> State:
        """Return the state with which `World.run` continues from here.

        After an update, Development runs again and has to receive its action again; a run with ``load_last_state``
        continues behind Development instead.
        """
        if self.phase == "pass":
            return self.state
        return State(content=self.state.content, passes=self.passes, seed=self.state.seed, fields=self.state.fields)


class WorldStorage:
    """A folder of snapshots.

    ``state_dir`` is the folder. ``naming_template`` is a file name with ``{number}`` (from 1, optionally as
    ``{number:06d}``) and ``{world_id}``, which worlds that share a folder need. ``max_snapshots`` is how many snapshots
    are kept (None: all). With ``load_last_state`` a run without a state continues from the newest file.

    Raises:
        InvalidArgument: a template without a number or with other fields, ``max_snapshots`` below 1, or a URL.
    """

    def __init__(
        self,
        state_dir: str | Path,
        *,
        naming_template: str = DEFAULT_NAMING,
        max_snapshots: int | None = None,
        load_last_state: bool = False,
    ) -> None:
        if "://" in str(state_dir):
            raise InvalidArgument(f"storage state_dir {str(state_dir)!r} is not a folder on this machine; give a path")
        # absolute, so that a saved world finds its storage whatever the working directory
        self.state_dir = Path(state_dir).absolute()
        self.naming_template = naming_template
        self.max_snapshots = max_snapshots
        self.load_last_state = load_last_state
        whole = isinstance(max_snapshots, int) and not isinstance(max_snapshots, bool)
        if max_snapshots is not None and not (whole and max_snapshots >= 1):
            raise InvalidArgument(f"storage max_snapshots must be an integer of at least 1, or None to keep all, got {max_snapshots!r}")
        _check_template(naming_template)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WorldStorage:
        """Build from ``{state_dir, naming_template?, max_snapshots? (or rotation), load_last_state?}``."""
        return cls(
            config["state_dir"],
            naming_template=config.get("naming_template") or DEFAULT_NAMING,
            max_snapshots=config.get("max_snapshots", config.get("rotation")),
            load_last_state=bool(config.get("load_last_state", False)),
        )

    def to_config(self) -> dict[str, Any]:
        """Return the JSON form that `from_config` reads."""
        config: dict[str, Any] = {"state_dir": str(self.state_dir), "naming_template": self.naming_template}
        if self.max_snapshots is not None:
            config["max_snapshots"] = self.max_snapshots
        return {**config, "load_last_state": True} if self.load_last_state else config

    def problem(self, world_id: str = "world") -> str | None:
        """Return why snapshots of that world cannot be written, or None."""
        if _UNSAFE.search(world_id):
            return f"world id {world_id!r} cannot be part of a file name, which storage needs; rename the world"
        folder = self.state_dir
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            return f"storage state_dir {str(self.state_dir)!r}: {str(folder)!r} is not a folder; choose another one"
        if not os.access(folder, os.W_OK):
            return f"storage state_dir {str(self.state_dir)!r}: {str(folder)!r} is not writable; choose another one"
        return None

    # -- writing ------------------------------------------------------------------------------------------------

    def save_update(
        self, world_id: str, state: State, pass_index: int, *, following: State | None = None, memory: BlockMemory | None = None
    ) -> Path:
        """Write the snapshot of a World update under the next number, delete the oldest beyond ``max_snapshots``, return the path.

        If the newest snapshot has the same bytes, because the pass was repeated, its path is returned.

        Raises:
            StorageFailed: older snapshots are unchanged.
        """
        world_id = self._checked(world_id)
        data = self._record(world_id, Progress("update", pass_index, state, following, memory or {}))
        with self._locked():
            existing = self.snapshots(world_id)
            if existing and _has_bytes(existing[-1][1], data):
                return existing[-1][1]
            number = existing[-1][0] if existing else 0
            while True:
                number += 1
                path = self.state_dir / self.naming_template.format(world_id=world_id, number=number)
                if _write_new(path, data):
                    break
            surplus = 0 if self.max_snapshots is None else max(0, len(existing) + 1 - self.max_snapshots)
            for _, old in existing[:surplus]:
                with contextlib.suppress(OSError):
                    old.unlink(missing_ok=True)
        return path

    def save_last(self, world_id: str, state: State, *, memory: BlockMemory | None = None) -> Path:
        """Write the state after a full pass over that of the pass before and return the path.

        Raises:
            StorageFailed: the state of the pass before is unchanged.
        """
        path = self.state_dir / _LAST.format(world_id=self._checked(world_id))
        with self._locked():
            existing = self.snapshots(world_id)
            progress = Progress("pass", state.passes, state, None, memory or {}, existing[-1][0] if existing else 0)
            write_file(path, self._record(world_id, progress), durable=True)
        return path

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder, which all processes that write to it take; without locks on file systems that have none."""
        lock = FileLock(self.state_dir / _LOCK)
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _cannot_write(self.state_dir, error) from error
        try:
            yield
        finally:
            lock.release()

    def _checked(self, world_id: str) -> str:
        if _UNSAFE.search(world_id):
            raise InvalidArgument(self.problem(world_id) or world_id)
        return world_id

    @staticmethod
    def _record(world_id: str, progress: Progress) -> bytes:
        from yggdrasill.values import dumps

        following = progress.following
        return dumps(
            {
                "world_id": world_id,
                "phase": progress.phase,
                "passes": progress.passes,
                "snapshot": progress.snapshot,
                "state": progress.state.to_dict(),
                "following": None if following is None else {**following.to_dict(), "content": None},
                "memory": dict(progress.memory),
            }
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def snapshots(self, world_id: str) -> list[tuple[int, Path]]:
        """Return (number, file) of every snapshot of a world, oldest first."""
        if not self.state_dir.is_dir():
            return []
        pattern = "".join(
            re.escape(literal) + ("" if name is None else re.escape(world_id) if name == "world_id" else r"(\d+)")
            for literal, name, _, _ in Formatter().parse(self.naming_template)
        )
        found = []
        for file in self.state_dir.iterdir():
            match = re.fullmatch(pattern, file.name)
            if match:
                found.append((int(match.group(1)), file))
        return sorted(found)

    def newest(self, world_id: str) -> Progress | None:
        """Return how far the world got, from its newest snapshot or last state, or None without files.

        Raises:
            CorruptData: the file is damaged. StorageFailed: it cannot be read. InvalidArgument: it is another world's.
        """
        last_file = self.state_dir / _LAST.format(world_id=self._checked(world_id))
        last = self._read(last_file, world_id) if last_file.exists() else None
        snapshots = self.snapshots(world_id)
        if snapshots and (last is None or snapshots[-1][0] > last.snapshot):
            return self._read(snapshots[-1][1], world_id)
        return last

    @classmethod
    def _read(cls, path: Path, world_id: str) -> Progress:
        owner, progress = cls._load(path)
        if owner != world_id:
            raise InvalidArgument(
                f"{str(path)!r} is a snapshot of world {owner!r}, not of {world_id!r}; put {{world_id}} into the naming_template, "
                "or give each world a folder"
            )
        return progress

    @staticmethod
    def read(path: str | Path) -> Progress:
        """Return what one file records.

        Raises:
            CorruptData, StorageFailed
        """
        return WorldStorage._load(Path(path))[1]

    @staticmethod
    def _load(path: Path) -> tuple[str, Progress]:
        from yggdrasill.values import loads

        try:
            record = loads(path.read_bytes())
            state, rest = State.from_dict(record["state"]), record["following"]
            following = None if rest is None else State.from_dict(rest).replace(content=state.content)
            return record["world_id"], Progress(record["phase"], record["passes"], state, following, record["memory"], record["snapshot"])
        except OSError as error:
            raise StorageFailed(f"cannot read snapshot {str(path)!r}: {error.strerror or error}", path=str(path)) from error
        except (CodecError, InvalidState, KeyError, TypeError) as error:
            raise CorruptData(
                f"snapshot {str(path)!r} is damaged: {error}; delete or move it to continue from the one before", path=str(path)
            ) from error


def _check_template(template: str) -> None:
    """Raise `InvalidArgument` unless ``template`` gives file names from which the number can be read back."""
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]
    except ValueError:
        fields = []
    names = {name for name, _, _ in fields}
    readable = all(
        not conversion and (_NUMBER_FORMAT.fullmatch(spec or "") if name == "number" else not spec) for name, spec, conversion in fields
    )
    if "number" not in names or names - {"number", "world_id"} or not readable or _UNSAFE.search(re.sub(r"\{[^{}]*\}", "", template)):
        raise InvalidArgument(
            f"storage naming_template {template!r} must be a file name with {{number}} (or {{number:06d}}) and may use {{world_id}}"
        )


def _has_bytes(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _write_new(path: Path, data: bytes) -> bool:
    """Write a file that does not exist yet, complete and synced; return False and write nothing if ``path`` exists.

    Raises:
        StorageFailed
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except (OSError, NotImplementedError):  # a file system without hard links: claim the name, then fill it
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                return False
            try:
                temporary.replace(path)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut, where folders can be synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(
        f"cannot write {str(path)!r}: {error.strerror or error}; what was there before is unchanged. Free space or choose another folder.",
        path=str(path),
    )


# -- the last state in a save -----------------------------------------------------------------------------------


def pack_last(last_state: State | None, content: Any) -> bytes:
    """Return the bytes of `LAST_STATE_FILE`; content that is also the state's is written once."""
    from yggdrasill.values import dumps

    last = None if last_state is None else last_state.to_dict()
    extra = {} if last is not None and last["content"] is content else {"content": content}
    return dumps({"last_state": last, **extra})


def unpack_last(data: bytes, where: str) -> tuple[State | None, Any]:
    """Return the last state and content that `pack_last` packed; ``where`` names the file in errors.

    Raises:
        CorruptData
    """
    from yggdrasill.values import loads

    try:
        record = loads(data)
        last = None if record["last_state"] is None else State.from_dict(record["last_state"])
        return last, record["content"] if last is None or "content" in record else last.content
    except (CodecError, InvalidState, KeyError, TypeError) as error:
        raise CorruptData(f"{where} is damaged: {error}; delete it to start from the initial world") from error
