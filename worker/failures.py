"""Errors as a client of a worker sees them: a code and a message, without secrets and without paths of the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import (
    AccessDenied,
    BlockFailed,
    Cancelled,
    CorruptData,
    EndpointUnreachable,
    InvalidArgument,
    InvalidConfig,
    InvalidStructure,
    LimitExceeded,
    MissingFile,
    PayloadTooLarge,
    StorageFailed,
    TimedOut,
    UnknownGraph,
    UnknownJob,
    UnknownName,
    UnknownVersion,
    UnsupportedFormat,
    VersionIncomplete,
    YggdrasillError,
)
from yggdrasill.server_ext.logs import Redactor, secrets_of_environment

__all__ = ["CODES", "Scrubber", "code_of"]

#: The code of each class of errors; ``details["code"]`` is more specific. The first class in the resolution order counts.
CODES: dict[type[YggdrasillError], str] = {
    YggdrasillError: "failed",
    InvalidArgument: "invalid_input",
    InvalidConfig: "invalid_config",
    InvalidStructure: "workflow_refused",
    MissingFile: "unknown_file",
    UnknownName: "unknown_name",
    UnknownGraph: "unknown_graph",
    UnknownJob: "unknown_process",
    UnknownVersion: "unknown_version",
    VersionIncomplete: "version_incomplete",
    AccessDenied: "access_denied",
    BlockFailed: "node_failed",
    Cancelled: "cancelled",
    TimedOut: "timed_out",
    CorruptData: "corrupt_data",
    LimitExceeded: "too_large",
    PayloadTooLarge: "result_too_large",
    StorageFailed: "storage_failed",
    EndpointUnreachable: "unreachable",
    UnsupportedFormat: "unsupported_format",
}
_DETAILS = ("node", "missing", "errors", "available", "offset", "process_id", "limit")
_MAX_MESSAGE = 8000
_MAX_DETAILS = 32_000
_DRIVE = re.compile(r"\b[A-Za-z]:\\[^\s'\"<>|]+")
_QUERY = re.compile(r"(https?://[^\s'\"?#]+)\?[^\s'\"]+")
_USER = re.compile(r"(https?://)[^\s/@'\"]+@")


def code_of(error: YggdrasillError) -> str:
    """Return the code of an error."""
    code = error.details.get("code")
    if isinstance(code, str) and re.fullmatch(r"[a-z0-9_]{1,60}", code):
        return code
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


class Scrubber:
    """Removes secrets and paths of this machine from texts and JSON values.

    ``folders`` are shown under their names, such as ``[workspace]``. Any other absolute path below a folder that exists at the root of this
    machine becomes ``[path]``. Queries and user names of URLs, which often carry a key, are removed.
    """

    def __init__(self, folders: Mapping[str, Path], secrets: Iterable[str] = ()) -> None:
        self.redactor = Redactor([*secrets_of_environment(), *_secrets_of_files(), *secrets])
        named = {str(form): f"[{name}]" for name, path in folders.items() for form in {path.absolute(), Path(os.path.realpath(path))}}
        self._folders = sorted(named.items(), key=lambda item: -len(item[0]))
        tops = sorted((re.escape(entry.name) for entry in os.scandir(Path(os.sep)) if entry.is_dir()), key=len, reverse=True)
        self._paths = re.compile(rf"(?<![\w:/.\]-])/(?:{'|'.join(tops) or 'usr'})(?=/)(?:/[^\s'\"<>|:;,()\[\]{{}}]*)+")

    def learn(self, secrets: Iterable[str]) -> None:
        """Add secrets, such as a key that came with a job."""
        self.redactor.learn(secrets)

    def text(self, text: str) -> str:
        """Return a text without secrets and paths."""
        for path, name in self._folders:
            text = text.replace(path, name)
        text = _USER.sub(r"\1", _QUERY.sub(r"\1", text))
        return self.redactor.text(_DRIVE.sub("[path]", self._paths.sub("[path]", text)))

    def value(self, value: Any) -> Any:
        """Return a JSON value with all its texts scrubbed."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float)) else self.text(str(value))

    def failure(self, error: BaseException) -> dict[str, Any]:
        """Return ``{"error", "code", "details"?}`` for an error. One that is not of `errors` has no message but its class."""
        if isinstance(error, asyncio.CancelledError):
            return {"error": "The job was cancelled.", "code": "cancelled"}
        if not isinstance(error, YggdrasillError):
            return {
                "error": f"Unexpected failure in the worker ({type(error).__name__}). The worker's log has the details.",
                "code": "internal",
            }
        message = self.text(error.message)
        if len(message) > _MAX_MESSAGE:
            half = _MAX_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        facts = {name: self.value(error.details[name]) for name in _DETAILS if error.details.get(name) is not None}
        kept = facts and len(json.dumps(facts, default=str)) <= _MAX_DETAILS
        return {"error": message, "code": code_of(error), **({"details": facts} if kept else {})}


def _secrets_of_files() -> list[str]:
    """Return the private parts of the credentials file that GOOGLE_APPLICATION_CREDENTIALS names."""
    name = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if not name:
        return []
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    values = [str(value) for key, value in found.items() if "private_key" in key or "secret" in key or "token" in key]
    return [*values, *(line for value in values for line in value.splitlines() if len(line) >= 16 and "-----" not in line)]
