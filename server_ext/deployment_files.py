"""How deployments are kept over restarts: a record as JSON for each, and beside it the state that was sent along."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, StorageFailed
from yggdrasill.foundation.config import parse_document
from yggdrasill.server_ext.deployment import Deployment, file_name
from yggdrasill.values.files import FileSet

__all__ = ["DeploymentFiles"]

_RECORD: dict[str, Any] = {"graph_id": str, "kind": str, "hash": str, "config": dict, "has_state": bool}
_LOG = logging.getLogger("yggdrasill.server")


class DeploymentFiles:
    """Records and states of deployments as files in ``folder``, which is created on the first write.

    A record is ``{graph_id, kind, hash, config, has_state, idle_after, deployer, world_folder}``. ``idle_after`` is optional; ``deployer`` is
    the name of a principal, the owner in records of earlier releases; ``world_folder`` is the folder of a world's states, missing in records
    of earlier releases, which named it by the world's id.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The last warning about each skipped file, so that it is logged once.
        self._skipped: dict[Path, str] = {}
        #: Time, size and summary of each record, so that a list parses only files that changed.
        self._index: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def exists(self, graph_id: str) -> bool:
        """Return whether there is a file for this id, valid or not."""
        return self._file(graph_id, ".json").is_file()

    def read(self, graph_id: str) -> dict[str, Any] | None:
        """Return the record of a deployment, or None if it has no file.

        Raises:
            InvalidConfig: the file is not a valid record. StorageFailed: it cannot be read.
        """
        return _read_record(self._file(graph_id, ".json"))

    def read_state(self, graph_id: str) -> Any:
        """Return the saved state of a deployment whose record has ``has_state``.

        Raises:
            As `yggdrasill.values.load`.
        """
        from yggdrasill.values import load

        return load(self._file(graph_id, ".ygg"), mmap=False)

    def summaries(self) -> list[dict[str, Any]]:
        """Return ``{graph_id, kind, hash, idle_after}`` of all records. Invalid files are skipped with a warning in the log."""
        files = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        index = {}
        for file in files:
            try:
                status = file.stat()
                stamp = status.st_mtime_ns, status.st_size, status.st_ino
                known = self._index.get(file)
                index[file] = known if known is not None and known[0] == stamp else (stamp, self._summary(file))
            except (InvalidConfig, StorageFailed) as error:
                if self._skipped.get(file) != error.message:
                    self._skipped[file] = error.message
                    _LOG.warning("A file among the deployments is skipped: %s", error.message)
            except FileNotFoundError:
                continue
        self._index = index
        return [summary for _, summary in index.values()]

    def _summary(self, file: Path) -> dict[str, Any]:
        record = _read_record(file)
        if record is None:
            raise FileNotFoundError(file)
        if self._file(record["graph_id"], ".json").name != file.name:
            raise InvalidConfig(f"{str(file)!r} is a copy of the record of {record['graph_id']!r}. Delete it.")
        return {name: record.get(name) for name in ("graph_id", "kind", "hash", "idle_after")}

    def write(self, deployment: Deployment, state: Any) -> None:
        """Write a deployment and, unless it is None, its state. An earlier deployment with the same id is replaced.

        Raises:
            StorageFailed: the earlier files are unchanged.
        """
        from yggdrasill.values import dumps

        with FileSet(durable=True) as files:
            if state is not None:
                files.write(self._file(deployment.graph_id, ".ygg"), dumps(state))
            files.write(self._file(deployment.graph_id, ".json"), _encode_record(deployment, has_state=state is not None))

    def rewrite(self, deployment: Deployment, *, has_state: bool) -> None:
        """Write the record of a deployment whose state is unchanged.

        Raises:
            StorageFailed: the earlier record is unchanged.
        """
        with FileSet(durable=True) as files:
            files.write(self._file(deployment.graph_id, ".json"), _encode_record(deployment, has_state=has_state))

    def set_idle_after(self, record: Mapping[str, Any], idle_after: float | None) -> None:
        """Write a record that was read, with another ``idle_after``.

        Raises:
            StorageFailed: the earlier record is unchanged.
        """
        with FileSet(durable=True) as files:
            files.write(self._file(record["graph_id"], ".json"), json.dumps({**record, "idle_after": idle_after}, indent=1).encode("ascii"))

    def remove(self, graph_id: str) -> None:
        """Delete the files of a deployment.

        Raises:
            StorageFailed: a file cannot be deleted.
        """
        for suffix in (".json", ".ygg"):
            file = self._file(graph_id, suffix)
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise StorageFailed(f"Cannot delete {str(file)!r}: {error.strerror or error}.", path=str(file)) from error

    def _file(self, graph_id: str, suffix: str) -> Path:
        return self._folder / f"{file_name(graph_id)}{suffix}"


def _encode_record(deployment: Deployment, *, has_state: bool) -> bytes:
    record = {
        **deployment.summary(),
        "config": deployment.config,
        "has_state": has_state,
        "idle_after": deployment.idle_after,
        "deployer": deployment.deployer,
        "world_folder": file_name(deployment.graph_id),
    }
    # ASCII, because a lone surrogate has no UTF-8 form
    return json.dumps(record, indent=1).encode("ascii")


def _read_record(file: Path) -> dict[str, Any] | None:
    try:
        record = parse_document(file.read_text(encoding="utf-8"), str(file), yaml=False)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFailed(f"Cannot read {str(file)!r}: {error}.", path=str(file)) from error
    for name, kind in _RECORD.items():
        if not isinstance(record.get(name), kind):
            raise InvalidConfig(
                f"{str(file)!r} is not a deployment record: {name!r} is missing or has a wrong type. The endpoint manages this folder: "
                "move the file to another folder, and deploy it if it is a config."
            )
    return record
