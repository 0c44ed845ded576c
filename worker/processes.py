"""Long work as durable rows in a folder that several workers share, so that any worker answers for any process.

Each process has a folder. ``row.json`` is replaced as a whole; only the worker that holds the current attempt writes it. ``attempt-N`` is
created exclusively, which makes the claim of an attempt atomic on network volumes too, where SQLite cannot be used. ``lease.json`` is
renewed while the attempt runs; a worker that dies stops renewing, and another worker then claims the next attempt. ``cancel`` is created
by whichever worker receives the request. ``log.txt`` and ``losses.jsonl`` are appended to.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, StorageFailed, UnknownJob, YggdrasillError
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FINAL, IN_PROGRESS, IN_QUEUE
from yggdrasill.values.files import write_file

__all__ = ["Process", "ProcessStore"]

_ID = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")
_MAX_LOG = 8 << 20
_TAIL = 16_384
_LOST = "process_store_lost"


@dataclass(frozen=True)
class Process:
    """A row: one unit of long work. Times are in seconds since the epoch; ``attempt`` counts from 1, 0 before the first."""

    process_id: str
    kind: str
    name: str
    state: str
    created: float
    request: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    attempt: int = 0
    owner: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def is_final(self) -> bool:
        """Whether the row never changes again."""
        return self.state in FINAL

    def summary(self) -> dict[str, Any]:
        """Return what a client sees of it: everything but the request."""
        facts = asdict(self)
        del facts["request"]
        return {key: value for key, value in facts.items() if value is not None and value != {}}


class ProcessStore:
    """The processes in ``folder``. ``owner`` names this worker start; an attempt is lost ``lease_seconds`` after its last renewal.

    All methods raise `StorageFailed` (code ``process_store_lost``) if the folder cannot be read or written.
    """

    def __init__(self, folder: Path, owner: str, *, lease_seconds: float = 30.0, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.owner = owner
        self.lease_seconds = lease_seconds
        self._clock = clock

    # -- rows ---------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Create the folder of the store."""
        with self._storing():
            self.folder.mkdir(parents=True, exist_ok=True)

    def create(self, kind: str, name: str, request: dict[str, Any]) -> Process:
        """Store a new process in the state ``IN_QUEUE`` and return it."""
        now = self._clock()
        process = Process(f"{int(now * 1000):012x}-{secrets.token_hex(4)}", kind, name, IN_QUEUE, now, request)
        with self._storing():
            (self.folder / process.process_id).mkdir(parents=True)
        self._write(process)
        return process

    def get(self, process_id: object) -> Process:
        """Return a process.

        Raises:
            InvalidArgument: not an id. UnknownJob (code ``unknown_process``)
        """
        if not isinstance(process_id, str) or not _ID.fullmatch(process_id):
            raise InvalidArgument(
                f"process_id must be the id of a process, such as '0193a5b2c4d6-1f2e3d4c', got {str(process_id)[:60]!r}.",
                code="invalid_process_id",
            )
        found = self._read(process_id)
        if found is None:
            if not self.folder.is_dir():
                raise _lost("its folder does not exist")
            raise UnknownJob(f"Unknown process {process_id!r}. The request 'processes' lists the processes.", code="unknown_process")
        return found

    def newest(self, *, kind: str | None = None, state: str | None = None, limit: int = 100) -> list[Process]:
        """Return processes, newest first."""
        found: list[Process] = []
        for process_id in sorted(self._ids(), reverse=True):
            process = self._read(process_id)
            if process is not None and kind in (None, process.kind) and state in (None, process.state):
                found.append(process)
                if len(found) == limit:
                    break
        return found

    def folder_of(self, process_id: str) -> Path:
        """Return the folder of a process, in which its trainer's configuration is stored."""
        return self.folder / process_id

    # -- attempts -----------------------------------------------------------------------------------------------

    def claim(self, *, kinds: frozenset[str], max_attempts: int) -> Process | None:
        """Claim the oldest process that waits or whose worker died, and return it in the state ``IN_PROGRESS``; None without one.

        A process whose last attempt was lost is returned with ``attempt > max_attempts``, for the caller to end it.
        """
        for process_id in sorted(self._ids()):
            process = self._read(process_id)
            if process is None or process.is_final or process.kind not in kinds:
                continue
            number = self._next_attempt(process_id)
            if number is None or number > max_attempts + 1 or not self._create(process_id, f"attempt-{number}"):
                continue
            self.renew(replace(process, attempt=number))
            # the worker of the former attempt may have ended the process after its lease
            process = self._read(process_id)
            if process is None or process.is_final:
                continue
            now = self._clock()
            taken = replace(process, state=IN_PROGRESS, owner=self.owner, attempt=number, started=process.started or now)
            self._write(taken)
            return taken
        return None

    def has_claimable(self, kinds: frozenset[str]) -> bool:
        """Return whether a process of these kinds waits for a worker."""
        rows = [self._read(process_id) for process_id in self._ids()]
        return any(row is not None and not row.is_final and row.kind in kinds and self._is_claimable(row.process_id) for row in rows)

    def renew(self, process: Process) -> bool:
        """Extend the lease of an attempt. Return False if another worker has claimed a later attempt, or the folder is gone."""
        return self._set_lease(process, self._clock() + self.lease_seconds)

    def release(self, process: Process) -> None:
        """End the lease of an attempt now, so that another worker can claim the next one."""
        self._set_lease(process, 0.0)

    def _set_lease(self, process: Process, until: float) -> bool:
        try:
            if self._last_attempt(process.process_id) != process.attempt:
                return False
            lease = {"owner": self.owner, "attempt": process.attempt, "until": until}
            write_file(self.folder_of(process.process_id) / "lease.json", json.dumps(lease).encode())
        except OSError:
            return False
        return True

    def is_lost(self, process: Process) -> bool:
        """Return whether a process is ``IN_PROGRESS`` but its worker has stopped renewing the lease."""
        return process.state == IN_PROGRESS and self._is_claimable(process.process_id)

    def update(self, process: Process) -> bool:
        """Write a row of this worker's attempt. Return False, and write nothing, if the attempt is not the last one or the row is final."""
        if not self.folder_of(process.process_id).is_dir():
            raise _lost("the folder of the process does not exist")
        stored = self._read(process.process_id)
        if stored is None or stored.is_final or self._last_attempt(process.process_id) != process.attempt:
            return False
        self._write(process)
        return True

    def finish(self, process: Process, state: str, *, output: dict[str, Any] | None = None, error: dict[str, Any] | None = None) -> Process:
        """Bring a process to a final state and return it as stored."""
        if state not in FINAL:
            raise InvalidArgument(f"{state!r} is not a final state.")
        progress = process.progress
        if state == COMPLETED and progress.get("steps"):
            progress = {**progress, "step": progress["steps"]}
        ended = replace(process, state=state, finished=self._clock(), output=output, error=error, progress=progress)
        return ended if self.update(ended) else self.get(process.process_id)

    # -- cancelling ---------------------------------------------------------------------------------------------

    def request_cancel(self, process_id: object) -> Process:
        """Record that a process is to be cancelled; its worker stops it. One that no worker runs is cancelled at once. Return its row."""
        process = self.get(process_id)
        if process.is_final:
            return process
        self._create(process.process_id, "cancel")
        number = self._next_attempt(process.process_id)
        if number is not None and self._create(process.process_id, f"attempt-{number}"):
            taken = replace(process, owner=self.owner, attempt=number)
            return self.finish(taken, CANCELLED, error={"error": "The process was cancelled.", "code": "cancelled"})
        return process

    def is_cancelled(self, process_id: str) -> bool:
        """Return whether the cancellation of a process was requested."""
        return (self.folder_of(process_id) / "cancel").exists()

    # -- logs ---------------------------------------------------------------------------------------------------

    def append_log(self, process_id: str, lines: str) -> None:
        """Append to the log of a process. Beyond 8 MiB nothing is added."""
        self._append(process_id, "log.txt", lines)

    def tail(self, process_id: str, nbytes: int = _TAIL) -> str:
        """Return the last bytes of the log of a process, from the beginning of a line on."""
        path = self.folder_of(process_id) / "log.txt"
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - nbytes))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return text.partition("\n")[2] if size > nbytes else text

    def add_loss(self, process_id: str, step: int, loss: float) -> None:
        """Append a point to the loss curve of a process."""
        self._append(process_id, "losses.jsonl", json.dumps([step, loss]) + "\n")

    def losses(self, process_id: str, most: int = 500) -> list[list[float]]:
        """Return the loss curve as ``[step, loss]``, thinned to about ``most`` points. A resumed attempt replaces what it computes again."""
        points: dict[int, float] = {}
        with contextlib.suppress(FileNotFoundError), (self.folder_of(process_id) / "losses.jsonl").open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError, TypeError):
                    step, loss = json.loads(line)
                    points = {known: value for known, value in points.items() if known < step} if step in points else points
                    points[int(step)] = float(loss)
        curve: list[list[float]] = [[step, loss] for step, loss in sorted(points.items())]
        stride = max(1, len(curve) // most)
        return curve[::stride] + (curve[-1:] if curve and (len(curve) - 1) % stride else [])

    # -- files --------------------------------------------------------------------------------------------------

    def _ids(self) -> list[str]:
        try:
            return [path.name for path in self.folder.iterdir() if _ID.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _lost(error.strerror or type(error).__name__) from error

    def _read(self, process_id: str) -> Process | None:
        try:
            text = (self.folder / process_id / "row.json").read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _lost(error.strerror or type(error).__name__) from error
        try:
            facts = json.loads(text)
            known = {name: facts[name] for name in Process.__dataclass_fields__ if name in facts}
            return Process(**known)
        except (ValueError, TypeError, KeyError):
            return None

    def _write(self, process: Process) -> None:
        folder = self.folder_of(process.process_id)
        with self._storing():
            if not folder.is_dir():
                raise FileNotFoundError(2, "the folder of the process does not exist")
            write_file(folder / "row.json", json.dumps(asdict(process), default=str).encode())

    def _create(self, process_id: str, name: str) -> bool:
        """Create an empty file of a process; return False if it exists."""
        with self._storing():
            try:
                os.close(os.open(self.folder / process_id / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                return False
        return True

    def _append(self, process_id: str, name: str, text: str) -> None:
        with self._storing(), (self.folder_of(process_id) / name).open("a", encoding="utf-8") as file:
            if file.tell() < _MAX_LOG:
                file.write(text)

    def _last_attempt(self, process_id: str) -> int:
        names = [path.name for path in (self.folder / process_id).iterdir()]
        return max((int(name[8:]) for name in names if name.startswith("attempt-") and name[8:].isdecimal()), default=0)

    def _next_attempt(self, process_id: str) -> int | None:
        """Return the number of the attempt that may be claimed now; None while the last one has its lease or if the folder is gone.

        A claim creates the file of exactly this number: an attempt that another worker has claimed in between has that file already.
        """
        try:
            number = self._last_attempt(process_id)
            if number and self._clock() <= self._lease_end(process_id, number):
                return None
        except OSError:
            return None
        return number + 1

    def _is_claimable(self, process_id: str) -> bool:
        return self._next_attempt(process_id) is not None

    def _lease_end(self, process_id: str, number: int) -> float:
        folder = self.folder / process_id
        try:
            lease = json.loads((folder / "lease.json").read_text(encoding="utf-8"))
            if lease["attempt"] == number:
                return float(lease["until"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        # the claim was made, and its lease not yet written
        return (folder / f"attempt-{number}").stat().st_mtime + self.lease_seconds

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except YggdrasillError as error:
            if isinstance(error, StorageFailed) and error.details.get("code") != _LOST:
                raise _lost("it cannot be written") from error
            raise
        except OSError as error:
            raise _lost(error.strerror or type(error).__name__) from error


def _lost(why: str) -> StorageFailed:
    return StorageFailed(f"The store of processes cannot be used: {why}. Check the volume of the workspace.", code=_LOST)
