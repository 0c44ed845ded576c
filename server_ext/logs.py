"""The records of an endpoint: the removal of secrets from everything that leaves the process (error messages, job rows, events, logs), and the
audit log: who wrote which artifacts, and who changed graphs, jobs of others and tokens.

The audit log consists of JSON lines ``{time, principal, action, object, bytes, job}`` in ``audit.log`` in the data folder, readable by its user
only. Above 16 MiB it becomes ``audit.log.1``, and so on up to ``audit.log.4``. It contains names, ids and sizes, and no tokens, inputs or outputs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = ["FILE_NAME", "AuditLog", "RedactingFormatter", "Redactor", "append_entry", "secrets_of_environment"]

_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|APIKEY|CREDENTIALS?)(_|$)", re.IGNORECASE)
_MIN_LENGTH = 8
_MARK = "[secret]"
_URL_SAFE = str.maketrans("+/", "-_")


def secrets_of_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the values of environment variables whose names contain TOKEN, SECRET, PASSWORD, KEY or similar."""
    return [value for name, value in environment.items() if _SECRET_NAME.search(name)]


def _forms(secret: str) -> set[str]:
    """Return how a secret may be written: plain, percent-encoded, escaped as in JSON, and in base64 at any place of a longer text."""
    data = secret.encode("utf-8", "surrogatepass")
    found = {secret, quote(data, safe=""), quote(data), json.dumps(secret)[1:-1]}
    for shift in range(3):
        # the first and the last characters depend on what is beside the secret
        encoded = base64.b64encode(b"\0" * shift + data).decode("ascii")
        inner = encoded[4 if shift else 0 : -4]
        found |= {inner, inner.translate(_URL_SAFE)}
    return {form for form in found if len(form) >= _MIN_LENGTH}


class Redactor:
    """Replaces known secrets by ``[secret]``, also where they are encoded. Secrets under 8 characters are ignored, because they occur in ordinary
    text.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        #: Longest first: one secret may be a prefix of another.
        self._words: list[str] = []
        self.learn(known)

    def learn(self, known: Iterable[str]) -> None:
        """Add secrets."""
        words = {form for word in known if len(word) >= _MIN_LENGTH for form in _forms(word)}.union(self._words)
        self._words = sorted(words, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return ``text`` with secrets replaced."""
        # a search for each word is several times faster than one for an expression of all of them
        for word in self._words:
            if word in text:
                text = text.replace(word, _MARK)
        return text

    def value(self, value: Any) -> Any:
        """Return a JSON value with secrets replaced in keys and strings. Values that JSON cannot represent become strings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float)) else self.text(str(value))


class RedactingFormatter(logging.Formatter):
    """A log formatter that replaces secrets in the whole record, including tracebacks."""

    def __init__(self, redactor: Redactor, pattern: str) -> None:
        super().__init__(pattern)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))


# -- the audit log ----------------------------------------------------------------------------------------------------

FILE_NAME = "audit.log"
MAX_BYTES = 16 << 20
"""The size above which a file is rotated."""
KEPT_FILES = 4
"""The number of rotated files that are kept."""
_MAX_BATCH = 4096
_MAX_WAITING = 100_000
_MAX_TEXT = 300
_LOG = logging.getLogger("yggdrasill.server")


class AuditLog:
    """Writes entries in a thread of its own, many at a time. `record` never waits and never raises. It is called from one thread."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._entries: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._lost = 0
        self._failed = False
        self._thread: threading.Thread | None = None

    def record(self, principal: str, action: str, target: str, *, nbytes: int | None = None, job: str | None = None) -> None:
        """Record that ``principal`` did ``action`` with the object ``target``."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="yggdrasill-audit", daemon=True)
            self._thread.start()
        try:
            self._entries.put_nowait(_line(principal, action, target, nbytes, job))
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write all entries and end the thread. Entries after this call are lost."""
        if self._thread is not None:
            self._entries.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (first := self._entries.get()) is not None:
            batch, is_last = [first], False
            while len(batch) < _MAX_BATCH and not is_last:
                try:
                    entry = self._entries.get_nowait()
                except queue.Empty:
                    break
                if entry is None:
                    is_last = True
                else:
                    batch.append(entry)
            self._write(batch)
            if is_last:
                return

    def _write(self, batch: list[str]) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            batch.append(_line("endpoint", "audit_lost", f"{lost} entries", None, None))
        try:
            _append(self._path, batch)
            _rotate(self._path)
        except OSError as error:
            if not self._failed:
                _LOG.error("The audit log cannot be written; %d entries are lost, and later ones too: %s", len(batch), error)
            self._failed = True
        else:
            self._failed = False


def append_entry(data_dir: Path, principal: str, action: str, target: str) -> None:
    """Append one entry at once, for a command that changes an endpoint's data folder.

    Raises:
        OSError: it cannot be written.
    """
    _append(data_dir / FILE_NAME, [_line(principal, action, target, None, None)])


def _line(principal: str, action: str, target: str, nbytes: int | None, job: str | None) -> str:
    entry = {
        "time": round(time.time(), 3),
        "principal": principal,
        "action": action,
        "object": target if len(target) <= _MAX_TEXT else f"{target[:_MAX_TEXT]}...",
        "bytes": nbytes,
        "job": job,
    }
    return json.dumps(entry, separators=(",", ":")) + "\n"


def _append(path: Path, lines: list[str]) -> None:
    # one write in append mode, so that the lines of two processes do not mix
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "ab", buffering=0) as file:
        file.write("".join(lines).encode("ascii"))


def _rotate(path: Path) -> None:
    if path.stat().st_size <= MAX_BYTES:
        return
    for number in range(KEPT_FILES, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        with contextlib.suppress(FileNotFoundError):
            newer.replace(older)
