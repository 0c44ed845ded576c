"""Removal of secrets from everything that leaves the process: error messages, job rows, events, logs."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["RedactingFormatter", "Redactor", "secrets_of_environment"]

_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|APIKEY|CREDENTIALS?)(_|$)", re.IGNORECASE)
_MIN_LENGTH = 8
_MARK = "[secret]"


def secrets_of_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the values of environment variables whose names contain TOKEN, SECRET, PASSWORD, KEY or similar."""
    return [value for name, value in environment.items() if _SECRET_NAME.search(name)]


class Redactor:
    """Replaces known secrets by ``[secret]``. Secrets under 8 characters are ignored, because they occur in ordinary text."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._words: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.learn(known)

    def learn(self, known: Iterable[str]) -> None:
        """Add secrets."""
        self._words |= {word for word in known if len(word) >= _MIN_LENGTH}
        # longest first: one secret may be a prefix of another
        words = sorted(self._words, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def text(self, text: str) -> str:
        """Return ``text`` with secrets replaced."""
        return text if self._pattern is None else self._pattern.sub(_MARK, text)

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
