"""The HTTP status of every error class."""

from __future__ import annotations

from yggdrasill.errors import (
    AccessDenied,
    BuildMismatch,
    CodecError,
    EndpointFailed,
    EndpointUnreachable,
    InvalidArgument,
    InvalidCheckpoint,
    InvalidConfig,
    InvalidState,
    InvalidStructure,
    JobConflict,
    PayloadTooLarge,
    ProtocolMismatch,
    QueueFull,
    RemoteError,
    RunError,
    StorageFailed,
    UnknownArtifact,
    UnknownName,
    UnsupportedFormat,
    UploadConflict,
    VersionIncomplete,
    YggdrasillError,
)

__all__ = ["STATUS", "status_of"]

#: The first class in an error's method resolution order that has an entry determines its status.
STATUS: dict[type[YggdrasillError], int] = {
    YggdrasillError: 500,
    InvalidArgument: 400,
    InvalidStructure: 400,
    InvalidConfig: 400,
    InvalidCheckpoint: 400,
    UnsupportedFormat: 400,
    CodecError: 400,
    InvalidState: 400,
    UnknownName: 404,
    RunError: 422,
    VersionIncomplete: 422,
    StorageFailed: 507,
    RemoteError: 502,
    AccessDenied: 401,
    ProtocolMismatch: 426,
    BuildMismatch: 409,
    JobConflict: 409,
    UploadConflict: 409,
    PayloadTooLarge: 413,
    QueueFull: 429,
    EndpointFailed: 500,
}


def status_of(error: YggdrasillError) -> int:
    """Return the HTTP status for ``error``.

    Some cases depend on the details: an endpoint that is shutting down (``details["reason"]``) is 503, because the call succeeds later; access
    denied because of Host, Origin, a role or an owner's graph is 403, because a token does not help, and 429 after too many wrong tokens; missing input artifacts of a job (``details["missing"]`` without ``details["hash"]``) are 409, because the url itself is right.
    """
    if isinstance(error, AccessDenied) and error.details.get("reason") in ("host", "origin", "owner", "role"):
        return 403
    if isinstance(error, EndpointUnreachable) and error.details.get("reason") == "shutdown":
        return 503
    if isinstance(error, AccessDenied) and error.details.get("reason") == "guesses":
        return 429
    if isinstance(error, UnknownArtifact) and "missing" in error.details and "hash" not in error.details:
        return 409
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
