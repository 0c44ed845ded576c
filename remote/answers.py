"""What an endpoint's answers mean: the protocol they speak, the JSON they hold, and the errors they stand for, under the endpoint's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yggdrasill.errors import AccessDenied, EndpointFailed, EndpointUnreachable, ProtocolMismatch, YggdrasillError, error_from_dict
from yggdrasill.remote.transports.transport import Response

__all__ = ["PROTOCOL", "check_protocol", "document_of", "failure", "named"]

PROTOCOL = 1


@contextmanager
def named(name: str) -> Iterator[None]:
    """Let the errors of a connection say which endpoint it was to: below that, only its url is known."""
    try:
        yield
    except (EndpointUnreachable, AccessDenied, ProtocolMismatch) as error:
        if "endpoint" not in error.details:
            error.details["endpoint"] = name
            if repr(name) not in error.message and name not in error.message:
                error.message = f"endpoint {name!r}: {error.message}"
        raise


def check_protocol(response: Response, name: str, url: str) -> None:
    """Raise `ProtocolMismatch` if the answer is of another protocol, or of none."""
    spoken = response.headers.get("X-Yggdrasill-Protocol")
    if spoken != str(PROTOCOL):
        said = "no Yggdrasill protocol" if spoken is None else f"protocol version {spoken}"
        raise ProtocolMismatch(
            f"endpoint {name!r} at {url} speaks {said}, this client version {PROTOCOL}; "
            + ("check the url and the port" if spoken is None else "install the same version of yggdrasill on both sides"),
            endpoint=name,
        )


def failure(response: Response, text: bytes, name: str, url: str) -> YggdrasillError:
    """The error that an answer with a bad status stands for."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("error"), dict):
        if response.status in (502, 503, 504):
            return EndpointUnreachable(f"endpoint {name!r} at {url} is not up (HTTP {response.status})", endpoint=name)
        check_protocol(response, name, url)
        return EndpointFailed(f"endpoint {name!r} at {url} answered HTTP {response.status} without saying why", endpoint=name)
    error = error_from_dict(document["error"])
    if isinstance(error, AccessDenied) and "endpoint" not in error.details:
        return AccessDenied(f"endpoint {name!r} at {url}: {error.message}", **error.details, endpoint=name)
    error.details.setdefault("endpoint", name)
    return error


def document_of(text: bytes, status: int, name: str, url: str) -> dict[str, Any]:
    """The JSON object that an answer holds.

    Raises:
        ProtocolMismatch: it holds none.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ProtocolMismatch(
            f"endpoint {name!r} at {url} answered HTTP {status} with something that is no JSON object; check the url and the port",
            endpoint=name,
        )
    return document
