"""Where a world keeps what happened: a snapshot per World update, and the state after the last full pass.

Files are the codec's (`yggdrasill.values`), written whole or not at all and synced to disk. Rotation deletes the oldest
snapshots, after the new one is safe.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import CodecError, CorruptData, InvalidArgument, InvalidState, StorageFailed
from yggdrasill.stage.state import State
from yggdrasill.values.files import write_file

__all__ = ["DEFAULT_NAMING", "Progress", "WorldStorage"]

DEFAULT_NAMING = "{world_id}-{number:06d}.ygg"
_LAST = "{world_id}-last.ygg"


@dataclass(frozen=True)
class Progress:
    """Where a world was: after World update of pass ``passes`` (``phase`` "update": the pass goes on with Development, and
    ``state`` is the full state that was applied), or after ``passes`` full passes (``phase`` "pass")."""

    phase: str
    passes: int
    state: State

    def resume_state(self) -> State:
        """The state to pass to `World.run` so that the result is the uninterrupted one."""
        if self.phase == "pass":
            return self.state
        return State(content=self.state.content, passes=self.passes, seed=self.state.seed, fields=self.state.fields)


class WorldStorage:
    """A folder of snapshots.

    ``state_dir`` is the folder, ``naming_template`` a file name with ``{number}`` (counted from 1, as ``{number:06d}`` if
    you like) and perhaps ``{world_id}``, ``max_snapshots`` how many are kept (None: all), and ``load_last_state`` whether
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
        self.state_dir = Path(state_dir)
        self.naming_template = naming_template
        self.max_snapshots = max_snapshots
        self.load_last_state = load_last_state
        if max_snapshots is not None and (not isinstance(max_snapshots, int) or max_snapshots < 1):
            raise InvalidArgument(f"storage max_snapshots must be an integer of at least 1, or None to keep all, got {max_snapshots!r}")
        fields = re.findall(r"\{(\w+)(?::[^{}]*)?\}", naming_template)
        if "number" not in fields or set(fields) - {"number", "world_id"} or "/" in naming_template or "\\" in naming_template:
            raise InvalidArgument(f"storage naming_template {naming_template!r} must be a file name with {{number}} and may use {{world_id}}")

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

    def problem(self) -> str | None:
        """Why snapshots could not be written there, or None."""
        folder = self.state_dir
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            return f"storage state_dir {str(self.state_dir)!r}: {str(folder)!r} is a file; choose a folder"
        return None

    # -- writing ------------------------------------------------------------------------------------------------

    def save_update(self, world_id: str, state: State, pass_index: int) -> Path:
        """Write the snapshot of a World update and delete the oldest beyond ``max_snapshots``.

        Raises:
            StorageFailed: older snapshots are as they were.
        """
        path = self.state_dir / self.naming_template.format(world_id=world_id, number=pass_index + 1)
        self._write(path, world_id, Progress("update", pass_index, state))
        if self.max_snapshots is not None:
            for _, old in self.snapshots(world_id)[: -self.max_snapshots]:
                with contextlib.suppress(OSError):
                    old.unlink(missing_ok=True)
        return path

    def save_last(self, world_id: str, state: State) -> Path:
        """Write the state after a full pass over the one of the pass before."""
        path = self.state_dir / _LAST.format(world_id=world_id)
        self._write(path, world_id, Progress("pass", state.passes, state))
        return path

    @staticmethod
    def _write(path: Path, world_id: str, progress: Progress) -> None:
        from yggdrasill.values import dumps

        record = {"world_id": world_id, "phase": progress.phase, "passes": progress.passes, "state": progress.state.to_dict()}
        write_file(path, dumps(record), durable=True)

    # -- reading ------------------------------------------------------------------------------------------------

    def snapshots(self, world_id: str) -> list[tuple[int, Path]]:
        """(number, file) of every snapshot of a world, oldest first."""
        if not self.state_dir.is_dir():
            return []
        pattern = re.escape(self.naming_template).replace(re.escape("{world_id}"), re.escape(world_id))
        pattern = re.sub(r"\\\{number(?::[^{}]*?)?\\\}", r"(\\d+)", pattern)
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
        last_file = self.state_dir / _LAST.format(world_id=world_id)
        last = self.read(last_file) if last_file.exists() else None
        snapshots = self.snapshots(world_id)
        if snapshots and (last is None or snapshots[-1][0] > last.passes):
            return self.read(snapshots[-1][1])
        return last

    @staticmethod
    def read(path: str | Path) -> Progress:
        """One file.

        Raises:
            CorruptData, StorageFailed
        """
        from yggdrasill.values import loads

        try:
            record = loads(Path(path).read_bytes())
            return Progress(record["phase"], record["passes"], State.from_dict(record["state"]))
        except OSError as error:
            raise StorageFailed(f"cannot read snapshot {str(path)!r}: {error.strerror or error}", path=str(path)) from error
        except (CodecError, InvalidState, KeyError, TypeError) as error:
            raise CorruptData(
                f"snapshot {str(path)!r} is damaged: {error}; delete or move it to go on from the one before", path=str(path)
            ) from error
