"""Versions of the protocol, the header that carries them, and the path of all routes."""

from __future__ import annotations

from yggdrasill.errors import ProtocolMismatch

__all__ = ["BASE_PATH", "OLDEST_PROTOCOL", "PROTOCOL", "PROTOCOL_HEADER", "REQUEST_VERSIONS", "check_request_version"]

BASE_PATH = "/yggdrasill/v1"
PROTOCOL_HEADER = "X-Yggdrasill-Protocol"
PROTOCOL = 2
"""The newest version that this package speaks."""
OLDEST_PROTOCOL = 1
"""The oldest version that this package speaks. In version 1 a request lasts as long as the work that it starts, see docs/protocol.md."""

REQUEST_VERSIONS: dict[str | None, int] = {None: PROTOCOL, **{str(version): version for version in range(OLDEST_PROTOCOL, PROTOCOL + 1)}}
"""The version of a request by its header as it is usually written; see `check_request_version` for others."""


def check_request_version(given: str | None) -> int:
    """Return the protocol version of a request; one without the header is of the newest version.

    Raises:
        ProtocolMismatch: the version is outside the supported range, which is in ``details`` (``oldest``, ``protocol``).
    """
    if given is None:
        return PROTOCOL
    version = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else 0
    if not OLDEST_PROTOCOL <= version <= PROTOCOL:
        raise ProtocolMismatch(
            f"The request has protocol version {given[:20]!r}; this endpoint supports {OLDEST_PROTOCOL} to {PROTOCOL}. "
            "Update yggdrasill on the side with the lower version.",
            oldest=OLDEST_PROTOCOL,
            protocol=PROTOCOL,
        )
    return version
