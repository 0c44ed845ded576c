"""Replaces endpoint URLs in error messages, so that URLs and the secrets in their paths are not shown; users know an endpoint by its name."""

from __future__ import annotations

import re

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.client import is_below

__all__ = ["public_message", "redact_urls", "strip_urls"]

_ADDRESS = re.compile(r"'?(https?://[^\s')]*[^\s'):;,.])'?")
_DETAIL = re.compile(r" \(\w*(Error|Exception)\b.*?\)(?=[;,.]|$)", re.DOTALL)


def redact_urls(error: YggdrasillError, url: str) -> YggdrasillError:
    """Return the error without ``url``, that of the endpoint, and URLs below it. Other URLs remain, such as the source of a model file."""
    details = {name: value for name, value in error.details.items() if not (isinstance(value, str) and is_below(value, url))}
    return type(error)(strip_urls(error.message, url), **details)


def public_message(error: YggdrasillError) -> str:
    """Return the message of an error with the name of the endpoint and without its URL."""
    message, endpoint = strip_urls(error.message), error.details.get("endpoint")
    return message if endpoint is None or repr(endpoint) in message else f"endpoint {endpoint!r}: {message}"


def strip_urls(text: str, below: str | None = None) -> str:
    """Return a message without its URLs, or without those at or below the URL ``below``."""

    def replacement(found: re.Match[str]) -> str:
        return "its url" if below is None or is_below(found[1], below) else found[0]

    return _DETAIL.sub("", _ADDRESS.sub(replacement, text).replace("' at its url", "'"))
