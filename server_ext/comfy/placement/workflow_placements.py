"""Placements that users made in the editor, by user and workflow, in one file that several processes may write.

They are stored apart from endpoints.yaml, which is written by hand and holds for all workflows.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from aiohttp import web

from yggdrasill.errors import InvalidArgument, InvalidConfig, PayloadTooLarge, YggdrasillError
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.partition.named_parts import GROUP, SUBGRAPH, PartItem
from yggdrasill.remote.partition.placement_keys import PlacedParts, StoredPlacement, parts_of, workflow_id
from yggdrasill.remote.placement import LOCAL
from yggdrasill.server_ext.comfy import compat
from yggdrasill.values.files import FileLock, write_file

__all__ = ["DEFAULT_USER", "EndpointUse", "WorkflowPlacements", "current_user", "endpoints_of", "note_users", "posted_parts"]

DEFAULT_USER = "default"
"""The user of a ComfyUI that was started without ``--multi-user``."""
current_user: ContextVar[str] = ContextVar("yggdrasill_user", default=DEFAULT_USER)
"""The user who sent the request that is being handled; empty for one that ComfyUI does not know."""
MAX_WORKFLOWS = 2000
"""Workflows with placements per file; beyond it the placements of the workflow that was changed longest ago are removed."""
_MAX_PARTS = 500
_MAX_BYTES = 32 << 20
_MAX_TEXT = 300
_VERSION = 1
_LOCK_S = 10.0
_Stamp: TypeAlias = "tuple[int, int, int] | None"
_Parts: TypeAlias = dict[PartItem, StoredPlacement]
_T = TypeVar("_T")


@dataclass
class _Workflow:
    name: str
    changed: float
    parts: _Parts


@dataclass(frozen=True)
class EndpointUse:
    """A workflow with parts that are placed on an endpoint: whose it is, its name in the editor, and the titles of the parts."""

    user: str
    workflow: str
    name: str
    parts: tuple[str, ...]


_Users: TypeAlias = dict[str, dict[str, _Workflow]]


class WorkflowPlacements:
    """The placements in ``file``, which may be missing; without a file there are none and none can be stored.

    Every change locks the file against other processes and replaces it whole. A file that cannot be read is an error and stays unchanged:
    which workflows are placed is unknown then, so none of them may run locally.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._stamp: _Stamp = None
        self._users: _Users = {}

    def is_empty(self) -> bool:
        """Return whether no workflow has a placement; False if the file is not valid."""
        try:
            return not self._current()
        except InvalidConfig:
            return False

    def of_workflow(self, user: str, workflow: str | None) -> _Parts:
        """Return the placements of a workflow by subgraph node or group; empty without an id.

        Raises:
            InvalidConfig: the file is not valid.
        """
        if workflow is None:
            return {}
        found = self._current().get(user, {}).get(workflow)
        return {} if found is None else dict(found.parts)

    def place(self, user: str, workflow: str, name: str, changes: Mapping[PartItem, StoredPlacement | None]) -> None:
        """Store placements of a workflow with this name; None removes the placement of a part.

        Raises:
            InvalidArgument: too long an id, or too many parts. InvalidConfig: the file is not valid. StorageFailed
        """
        if any(item.kind not in (SUBGRAPH, GROUP) for item in changes):
            raise InvalidArgument(f"a part of a workflow is a {SUBGRAPH!r} or a {GROUP!r}")

        def change(users: _Users) -> None:
            found = users.setdefault(user, {}).setdefault(workflow, _Workflow("", 0.0, {}))
            for item, placement in changes.items():
                if placement is None:
                    found.parts.pop(item, None)
                else:
                    found.parts[item] = StoredPlacement(placement.config, placement.title[:_MAX_TEXT])
            if len(found.parts) > _MAX_PARTS:
                raise PayloadTooLarge(f"a workflow may have {_MAX_PARTS} placements; place groups or subgraphs that contain several parts")
            found.name, found.changed = name[:_MAX_TEXT] or found.name, time.time()

        self._change(change)

    def copy(self, user: str, source: str, target: str, name: str) -> bool:
        """Give a new workflow the placements of the one that it is a copy of. Return False if it has placements, or the other has none.

        Raises:
            InvalidConfig: the file is not valid. StorageFailed
        """

        def change(users: _Users) -> bool:
            workflows = users.get(user, {})
            found = workflows.get(source)
            if found is None or target in workflows:
                return False
            workflows[target] = _Workflow(name[:_MAX_TEXT] or found.name, time.time(), dict(found.parts))
            return True

        return self._change(change)

    def uses(self, endpoint: str) -> list[EndpointUse]:
        """Return the workflows with parts on an endpoint.

        Raises:
            InvalidConfig: the file is not valid.
        """
        found = []
        for user, workflows in self._current().items():
            for workflow, entry in workflows.items():
                parts = tuple(each.title for each in entry.parts.values() if endpoint in endpoints_of(each.config))
                if parts:
                    found.append(EndpointUse(user, workflow, entry.name or workflow, parts))
        return sorted(found, key=lambda use: (use.user, use.name))

    def drop(self, endpoint: str) -> None:
        """Remove an endpoint from all placements, and those that have no other endpoint.

        Raises:
            InvalidConfig: the file is not valid. StorageFailed
        """

        def change(users: _Users) -> None:
            for entry in (entry for workflows in users.values() for entry in workflows.values()):
                for item, each in list(entry.parts.items()):
                    names = endpoints_of(each.config)
                    if endpoint not in names:
                        continue
                    left = [name for name in names if name != endpoint]
                    if left:
                        entry.parts[item] = StoredPlacement({**each.config, "replicas": left}, each.title)
                    else:
                        del entry.parts[item]

        self._change(change)

    # -- the file -----------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[_Users], _T]) -> _T:
        file = self._file
        if file is None:
            raise InvalidArgument("This ComfyUI has no folder in which placements are stored. See its log for the reason.")
        with self._locked(file):
            users = _read(file)
            before = _document(users)
            answer = change(users)
            _tidy(users)
            document = _document(users)
            if document != before:
                write_file(file, json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"), durable=True)
            with self._lock:
                self._users, self._stamp = users, _stamp_of(file)
        return answer

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=_LOCK_S, mode=0o600):
            yield

    def _current(self) -> _Users:
        """Return the content of the file, read again if it has changed. Callers change nothing in it."""
        if self._file is None:
            return {}
        stamp = _stamp_of(self._file)
        with self._lock:
            if stamp != self._stamp:
                self._users, self._stamp = _read(self._file), stamp
            return self._users


def posted_parts(
    posted: Mapping[str, Any], prompt: Mapping[str, Any], registry: EndpointRegistry, stored: WorkflowPlacements
) -> PlacedParts:
    """Return the placed parts of the body of a POST /prompt of the `current_user`. Raise as `parts_of` and `workflow_id`."""
    extra = posted.get("extra_data")
    placements = stored.of_workflow(current_user.get(), workflow_id(extra))
    return parts_of(prompt, extra, registry.placements, registry.endpoints, placements)


def note_users(app: web.Application) -> None:
    """Set `current_user` for each request where ComfyUI has several users. Call it before the server starts."""
    if not compat.multi_user():
        return

    @web.middleware
    async def note(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        token = current_user.set(compat.request_user(request) or "")
        try:
            return await handler(request)
        finally:
            current_user.reset(token)

    app.middlewares.append(note)


def endpoints_of(config: Any) -> list[str]:
    """Return the names of the endpoints in the config of a placement; empty for this server."""
    names = config.get("replicas") if isinstance(config, Mapping) else [] if config == LOCAL else [config]
    return [str(name) for name in names] if isinstance(names, list) else []


def _stamp_of(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _tidy(users: _Users) -> None:
    """Remove workflows without placements, and of too many the ones that were changed longest ago."""
    entries = [(entry.changed, user, key) for user, workflows in users.items() for key, entry in workflows.items() if entry.parts]
    kept = {(user, key) for _, user, key in sorted(entries)[-MAX_WORKFLOWS:]}
    for user, workflows in list(users.items()):
        users[user] = {key: entry for key, entry in workflows.items() if (user, key) in kept}
        if not users[user]:
            del users[user]


def _document(users: _Users) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "users": {
            user: {
                key: {"name": entry.name, "changed": entry.changed, "parts": [_part(item, each) for item, each in entry.parts.items()]}
                for key, entry in workflows.items()
            }
            for user, workflows in users.items()
        },
    }


def _part(item: PartItem, placement: StoredPlacement) -> dict[str, Any]:
    return {"graph": item.graph, "kind": item.kind, "id": item.id, "title": placement.title, "placement": placement.config}


def _read(file: Path) -> _Users:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InvalidConfig(f"it has more than {_MAX_BYTES} bytes")
        document = json.loads(file.read_text(encoding="utf-8"))
        if document.get("version") != _VERSION:
            raise InvalidConfig(f"it has version {document.get('version')!r}, and this version of Yggdrasill reads {_VERSION}")
        return {
            str(user): {str(key): _workflow(entry) for key, entry in workflows.items()} for user, workflows in document["users"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, YggdrasillError) as error:
        reason = error.message if isinstance(error, YggdrasillError) else f"{type(error).__name__}: {error}"
        raise InvalidConfig(
            f"The placements of workflows in {str(file)!r} cannot be read: {reason}. Restore the file, or delete it to remove all of them.",
            path=str(file),
        ) from error


def _workflow(entry: Mapping[str, Any]) -> _Workflow:
    parts = {
        PartItem(str(part["graph"]), str(part["kind"]), str(part["id"])): StoredPlacement(part["placement"], str(part["title"]))
        for part in entry["parts"]
    }
    return _Workflow(str(entry["name"]), float(entry["changed"]), parts)
