"""Errors about endpoints without their addresses: whoever reads them knows an endpoint by its name, and a path may be a key."""

from __future__ import annotations

import re

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.prefix import is_below

__all__ = ["public_message", "redact_urls", "strip_urls"]

_ADDRESS = re.compile(r"'?(https?://[^\s')]*[^\s'):;,.])'?")
_DETAIL = re.compile(r" \(\w*(Error|Exception)\b.*?\)(?=[;,.]|$)", re.DOTALL)


def redact_urls(error: YggdrasillError, url: str) -> YggdrasillError:
    """The same error without what lies at or below ``url``, the endpoint's; other addresses stay, such as a model file's source."""
    details = {name: value for name, value in error.details.items() if not (isinstance(value, str) and is_below(value, url))}
    return type(error)(strip_urls(error.message, url), **details)


def public_message(error: YggdrasillError) -> str:
    """A message that names the endpoint but not its address."""
    said, endpoint = strip_urls(error.message), error.details.get("endpoint")
    return said if endpoint is None or repr(endpoint) in said else f"endpoint {endpoint!r}: {said}"


def strip_urls(text: str, below: str | None = None) -> str:
    """A message without the addresses in it, or without those at or below one: it may come to stand where others see it."""

    def told(found: re.Match[str]) -> str:
        return "its url" if below is None or is_below(found[1], below) else found[0]

    return _DETAIL.sub("", _ADDRESS.sub(told, text).replace("' at its url", "'"))
