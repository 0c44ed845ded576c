"""The messages between a caller and a serverless worker: the requests of the endpoint protocol and their results as the input and the output
of one job of a queue.

A request is ``{"type": "endpoint", "protocol", ...}`` with one of

- ``"request": {"method", "path", "body"?}``: a request that only reads, see `is_readable`;
- ``"deploy": {"graph_id", "kind", "config", "state", "idle_after"}``: a deployment, whose contract is returned;
- ``"call"``: the body of a call, with ``"graph_id"`` and, if the caller deployed the graph, ``"deploy"``; or with a ``"prompt"`` in the body.

The artifacts of ``state`` and ``inputs`` accompany it: ``"artifacts": {hash: base64}`` has their bytes, ``"stored": {hash: bytes}`` those that are in
the artifact store ``"store"``, which both sides reach. A result is ``{"endpoint": {"protocol", "version", ...}}`` with ``answer``, ``contract``, ``row`` or
``error``, and its artifacts in the same form.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import CorruptData, ProtocolMismatch
from yggdrasill.protocol.version import OLDEST_PROTOCOL, PROTOCOL
from yggdrasill.values.payload import blake3_hex

__all__ = [
    "ENVELOPE",
    "EVENTS",
    "REQUEST",
    "RUNSYNC_BYTES",
    "RUN_BYTES",
    "check_protocol",
    "encoded_bytes",
    "is_readable",
    "passing_place",
    "read_inline",
    "smallest_first",
    "without_places",
]

REQUEST = "endpoint"
"""The type of the request."""
ENVELOPE = "endpoint"
"""The key of the result."""
EVENTS = "events"
"""The type of a progress message, ``{"type", "seq", "events": [[seq, kind, data, number], ...]}``: the newest events of the job."""
RUN_BYTES = 10_000_000
RUNSYNC_BYTES = 20_000_000
"""The most bytes of a request, and of a result, of RunPod's /run and /runsync."""

_READABLE = re.compile(r"/(capabilities|nodes\?classes=[^/]*|graphs|graphs/[^/?]+|graphs/[^/?]+/contract)")
_ENTRY_BYTES = 80
"""The bytes of an inline artifact in JSON besides its base64: the hash, the quotes and the punctuation."""


def is_readable(method: str, path: str) -> bool:
    """Return whether a request only reads, so that a worker answers it without a job of its service."""
    return (method == "GET" and _READABLE.fullmatch(path) is not None) or (method == "POST" and path == "/checkpoints/fingerprints")


def check_protocol(version: object, side: str) -> None:
    """Raise `ProtocolMismatch` unless the version of a message from the ``side`` (``caller`` or ``worker``) is supported."""
    if isinstance(version, int) and not isinstance(version, bool) and OLDEST_PROTOCOL <= version <= PROTOCOL:
        return
    shown = version if isinstance(version, int) else "none"
    raise ProtocolMismatch(
        f"The message of the {side} has protocol version {shown}; this side supports {OLDEST_PROTOCOL} to {PROTOCOL}. Install the same version of "
        "yggdrasill in the caller and in the worker.",
        oldest=OLDEST_PROTOCOL,
        protocol=PROTOCOL,
    )


def encoded_bytes(nbytes: int) -> int:
    """Return the bytes of an inline artifact in a message."""
    return (nbytes + 2) // 3 * 4 + _ENTRY_BYTES


def smallest_first(sizes: Mapping[str, int], room: int) -> list[str]:
    """Return the hashes of the artifacts that fit into ``room`` bytes of a message, the smallest first."""
    chosen = []
    for name in sorted(sizes, key=lambda each: (sizes[each], each)):
        room -= encoded_bytes(sizes[name])
        if room < 0:
            break
        chosen.append(name)
    return chosen


def passing_place(kind: str, data: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what an event is about if of several such events only the newest matters: progress and previews. None for one that must not be lost."""
    if kind == "progress":
        return kind, str(data.get("place"))
    what = str(data.get("what")) if kind == "comfy" else ""
    return (what, str(data.get("node"))) if what in ("preview", "progress") else None


def read_inline(given: object) -> dict[str, bytes]:
    """Return the inline artifacts of a message by hash.

    Raises:
        CorruptData: another form, or bytes that do not match their hash.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise CorruptData("'artifacts' must map hashes to base64. Send the call again.")
    found = {}
    for name, text in given.items():
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            data = b""
        if not isinstance(name, str) or blake3_hex(memoryview(data)) != name:
            raise CorruptData(f"The bytes of artifact {str(name)[:64]!r} in the message do not match its hash. Send the call again.")
        found[name] = data
    return found


def without_places(wire: Any) -> Any:
    """Return a value in wire form without the URLs and store ids of its artifacts: they name places that the other side does not reach."""
    if not isinstance(wire, Mapping) or not isinstance(wire.get("payloads"), list):
        return wire
    entries = [
        {key: item for key, item in entry.items() if key not in ("url", "store")} if isinstance(entry, Mapping) else entry
        for entry in wire["payloads"]
    ]
    return {**wire, "payloads": entries}
