"""Secrets out of everything that leaves the process: error messages, job rows, events, logs."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["RedactingFormatter", "Redactor", "secrets_of_environment"]

_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|APIKEY|CREDENTIALS?)(_|$)", re.IGNORECASE)
_SHORTEST = 8
_MARK = "[secret]"


def secrets_of_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Values of variables whose names say that they are secret."""
    return [value for name, value in environment.items() if _SECRET_NAME.search(name)]


class Redactor:
    """Puts ``[secret]`` in the place of every known secret; one too short to be told from ordinary text is left alone."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._words: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.learn(known)

    def learn(self, known: Iterable[str]) -> None:
        """Know more secrets."""
        self._words |= {word for word in known if len(word) >= _SHORTEST}
        # the longest first: one secret may begin with another
        words = sorted(self._words, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        return text if self._pattern is None else self._pattern.sub(_MARK, text)

    def value(self, value: Any) -> Any:
        """A JSON value without secrets; what JSON has no form for becomes its text."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float)) else self.text(str(value))


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, hold no secret."""

    def __init__(self, redactor: Redactor, pattern: str) -> None:
        super().__init__(pattern)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))
