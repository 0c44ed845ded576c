"""Where a world keeps what happened: a snapshot per World update, and the state after the last full pass.

Files are the codec's (`yggdrasill.values`), written whole or not at all and synced to disk. Rotation deletes the oldest
snapshots, after the new one is safe.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from yggdrasill.errors import CodecError, CorruptData, InvalidArgument, InvalidState, StorageFailed
from yggdrasill.stage.state import State
from yggdrasill.values.files import write_file

__all__ = ["DEFAULT_NAMING", "Progress", "WorldStorage"]

DEFAULT_NAMING = "{world_id}-{number:06d}.ygg"
_LAST = "{world_id}-last.ygg"
_NUMBER_FORMAT = re.compile(r"(0\d+)?d?")
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


@dataclass(frozen=True)
class Progress:
    """Where a world was: after World update of pass ``passes`` (``phase`` "update"; ``state`` is the full state that was
    applied, with the new content, and ``following`` the one Development opened), or after ``passes`` full passes
    (``phase`` "pass"). ``memory`` is what stateful blocks remembered, ``snapshot`` the newest snapshot's number then."""

    phase: str
    passes: int
    state: State
    following: State | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)
    snapshot: int = 0

    def resume_state(self) -> State:
        """The state to pass to `World.run` to go on from here; after an update, Development runs again (its action has to
        be given again). A run with ``load_last_state`` goes on behind Development instead."""
        if self.phase == "pass":
            return self.state
        return State(content=self.state.content, passes=self.passes, seed=self.state.seed, fields=self.state.fields)


class WorldStorage:
    """A folder of snapshots.

    ``state_dir`` is the folder, ``naming_template`` a file name with ``{number}`` (counted from 1, as ``{number:06d}`` if
    you like) and perhaps ``{world_id}``, which worlds that share a folder need; ``max_snapshots`` how many are kept (None: all), and ``load_last_state`` whether
    a run without a state goes on from the newest.

    Raises:
        InvalidArgument: a template without a number or with other fields, or a rotation below 1.
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
            raise InvalidArgument(f"storage state_dir {str(state_dir)!r} is no folder on this machine; give a path")
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
        """From ``{state_dir, naming_template?, max_snapshots? (or rotation), load_last_state?}``."""
        return cls(
            config["state_dir"],
            naming_template=config.get("naming_template") or DEFAULT_NAMING,
            max_snapshots=config.get("max_snapshots", config.get("rotation")),
            load_last_state=bool(config.get("load_last_state", False)),
        )

    def to_config(self) -> dict[str, Any]:
        """JSON form."""
        config: dict[str, Any] = {"state_dir": str(self.state_dir), "naming_template": self.naming_template}
        if self.max_snapshots is not None:
            config["max_snapshots"] = self.max_snapshots
        return {**config, "load_last_state": True} if self.load_last_state else config

    def problem(self, world_id: str = "world") -> str | None:
        """Why snapshots of that world could not be written there, or None."""
        if _UNSAFE.search(world_id):
            return f"world id {world_id!r} cannot be part of a file name, which storage needs; rename the world"
        folder = self.state_dir
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            return f"storage state_dir {str(self.state_dir)!r}: {str(folder)!r} is no folder; choose another one"
        if not os.access(folder, os.W_OK):
            return f"storage state_dir {str(self.state_dir)!r}: {str(folder)!r} may not be written to; choose another one"
        return None

    # -- writing ------------------------------------------------------------------------------------------------

    def save_update(
        self, world_id: str, state: State, pass_index: int, *, following: State | None = None, memory: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the snapshot of a World update under the next number and delete the oldest beyond ``max_snapshots``.

        The same update saved again, because its pass was repeated, is the same snapshot.

        Raises:
            StorageFailed: older snapshots are as they were.
        """
        existing = self.snapshots(world_id)
        data = self._record(world_id, Progress("update", pass_index, state, following, memory or {}))
        if existing and _holds(existing[-1][1], data):
            return existing[-1][1]
        number = existing[-1][0] + 1 if existing else 1
        path = self.state_dir / self.naming_template.format(world_id=self._checked(world_id), number=number)
        write_file(path, data, durable=True)
        if self.max_snapshots is not None:
            for _, old in existing[: len(existing) + 1 - self.max_snapshots]:
                with contextlib.suppress(OSError):
                    old.unlink(missing_ok=True)
        return path

    def save_last(self, world_id: str, state: State, *, memory: Mapping[str, Any] | None = None) -> Path:
        """Write the state after a full pass over the one of the pass before.

        Raises:
            StorageFailed: the state of the pass before is as it was.
        """
        existing = self.snapshots(world_id)
        path = self.state_dir / _LAST.format(world_id=self._checked(world_id))
        progress = Progress("pass", state.passes, state, None, memory or {}, existing[-1][0] if existing else 0)
        write_file(path, self._record(world_id, progress), durable=True)
        return path

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
        """(number, file) of every snapshot of a world, oldest first."""
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
        """How far the world got, from its newest snapshot or last state, or None if there is neither.

        Raises:
            CorruptData: that file is damaged. StorageFailed: it cannot be read.
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
        """One file.

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
                f"snapshot {str(path)!r} is damaged: {error}; delete or move it to go on from the one before", path=str(path)
            ) from error


def _check_template(template: str) -> None:
    """Raise `InvalidArgument` unless ``template`` gives file names whose number can be read back."""
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


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
