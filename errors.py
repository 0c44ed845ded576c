"""Every exception Yggdrasill raises on purpose.

Each class also is the builtin that a caller would expect, so ``except ValueError`` and ``except KeyError`` keep working.
A message says what is wrong, what exists, and what to do; ``details`` holds the same facts for programs::

    YggdrasillError
    ├── InvalidArgument (ValueError)        a builder was called with something it cannot take
    │   ├── DuplicateName
    │   └── InvalidEdge
    ├── InvalidStructure (ValueError)       validate() found errors
    │   └── CycleFound                      a cycle where only a DAG may be
    ├── UnknownName (KeyError)              nothing has that name
    │   ├── UnknownBlockType
    │   ├── UnknownGraph
    │   ├── UnknownEndpoint
    │   ├── UnknownJob
    │   └── UnknownArtifact
    ├── InvalidConfig (ValueError)          a config's text, shape or values
    │   ├── UnsupportedVersion
    │   └── MissingFile (FileNotFoundError)
    ├── InvalidCheckpoint (ValueError)      a weights file that cannot be read
    │   └── CheckpointMismatch (KeyError)   weights of something else
    ├── UnsupportedFormat (NotImplementedError)
    ├── CodecError (ValueError)
    │   ├── CorruptData                     truncated, altered or not ours
    │   ├── LimitExceeded                   larger or deeper than the receiver allows
    │   └── CannotTravel (TypeError)        a value that has no lossless form
    ├── RunError (RuntimeError)
    │   ├── BlockFailed                     user code raised; ``node`` says where
    │   │   └── MissingInput                ... over a required input nothing fed
    │   ├── HookFailed
    │   ├── Cancelled
    │   └── TimedOut (TimeoutError)
    ├── PartitionError (ValueError)             a part of a workflow that cannot be cut out of it
    ├── InvalidState (ValueError)           a state outside its schema
    ├── StorageFailed (OSError)             a snapshot or a save that could not be written or read
    └── RemoteError (RuntimeError)
        ├── EndpointUnreachable (ConnectionError)
        ├── AccessDenied (PermissionError)
        ├── ProtocolMismatch
        ├── BuildMismatch                   another torch build, whose results may differ in the last bits
        ├── PayloadTooLarge
        ├── JobConflict                     the job key was used for another call
        ├── QueueFull
        └── EndpointFailed                  the endpoint broke in a way it has no name for
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "AccessDenied",
    "BlockFailed",
    "BuildMismatch",
    "Cancelled",
    "CannotTravel",
    "CheckpointMismatch",
    "CodecError",
    "CorruptData",
    "CycleFound",
    "DuplicateName",
    "EndpointFailed",
    "EndpointUnreachable",
    "HookFailed",
    "InvalidArgument",
    "InvalidCheckpoint",
    "InvalidConfig",
    "InvalidEdge",
    "InvalidState",
    "InvalidStructure",
    "JobConflict",
    "LimitExceeded",
    "MissingFile",
    "MissingInput",
    "PartitionError",
    "PayloadTooLarge",
    "ProtocolMismatch",
    "QueueFull",
    "RemoteError",
    "RunError",
    "StorageFailed",
    "TimedOut",
    "UnknownArtifact",
    "UnknownBlockType",
    "UnknownEndpoint",
    "UnknownGraph",
    "UnknownJob",
    "UnknownName",
    "UnsupportedFormat",
    "UnsupportedVersion",
    "YggdrasillError",
    "error_from_dict",
    "format_options",
    "unknown_name",
]

_BY_NAME: dict[str, type[YggdrasillError]] = {}


class YggdrasillError(Exception):
    """Root of the tree: a ``message`` for people and ``details`` (JSON values) for programs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __name__:
            _BY_NAME[cls.__name__] = cls

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """JSON form ``{"type", "message", "details"}``, read back by `error_from_dict` on the other side of a wire."""
        return {"type": type(self).__name__, "message": self.message, "details": self.details}


class InvalidArgument(YggdrasillError, ValueError):
    """A builder was called with something it cannot take."""


class DuplicateName(InvalidArgument):
    """The name is taken."""


class InvalidEdge(InvalidArgument):
    """An edge that cannot be: a missing end, a wrong direction, types that do not fit."""


class InvalidStructure(YggdrasillError, ValueError):
    """``validate()`` found errors; ``details["errors"]`` lists them."""


class CycleFound(InvalidStructure):
    """A cycle where only a directed acyclic graph may be."""


class UnknownName(YggdrasillError, KeyError):
    """Nothing has that name; the message lists what has, nearest first."""


class UnknownBlockType(UnknownName):
    """No block type of that name is registered."""


class UnknownGraph(UnknownName):
    """The endpoint serves no graph of that id."""


class UnknownEndpoint(UnknownName):
    """The registry of endpoints has no such name."""


class UnknownJob(UnknownName):
    """The endpoint has no job of that id."""


class UnknownArtifact(UnknownName):
    """The endpoint holds no artifact of that hash."""


class InvalidConfig(YggdrasillError, ValueError):
    """A config that cannot be read: the message names the file and the place in it."""


class UnsupportedVersion(InvalidConfig):
    """A config, file or message written by a newer version."""


class MissingFile(InvalidConfig, FileNotFoundError):
    """A config, ``ref`` or weights file that does not exist."""


class InvalidCheckpoint(YggdrasillError, ValueError):
    """A weights file that cannot be read."""


class CheckpointMismatch(InvalidCheckpoint, KeyError):
    """Weights that belong to something else: keys missing or unexpected."""


class UnsupportedFormat(YggdrasillError, NotImplementedError):
    """A file format that is refused on purpose, such as pickle."""


class CodecError(YggdrasillError, ValueError):
    """A value could not be encoded or decoded."""


class CorruptData(CodecError):
    """Bytes that are truncated, altered, or not ours."""


class LimitExceeded(CodecError):
    """Larger, longer or deeper than the receiver allows."""


class CannotTravel(CodecError, TypeError):
    """A value that has no lossless form; the message names its type and place."""


class RunError(YggdrasillError, RuntimeError):
    """A run that began and did not end well."""


class BlockFailed(RunError):
    """A block raised; ``details["node"]`` is its path and ``__cause__`` the original exception."""


class MissingInput(BlockFailed):
    """A block raised while a required input was absent; ``details["ports"]`` names it."""


class HookFailed(RunError):
    """A callback raised."""


class Cancelled(RunError):
    """The run was cancelled."""


class TimedOut(RunError, TimeoutError):
    """The run took longer than it was allowed to."""


class PartitionError(YggdrasillError, ValueError):
    """A part of a workflow cannot be cut out of it; ``details["part"]`` names the part and ``details["nodes"]`` the node ids."""


class InvalidState(YggdrasillError, ValueError):
    """A state with a hole, an unknown block, or a value outside its schema."""


class StorageFailed(YggdrasillError, OSError):
    """A snapshot or a save that could not be written or read; what was there before is still there."""


class RemoteError(YggdrasillError, RuntimeError):
    """A call to an endpoint did not end well."""


class EndpointUnreachable(RemoteError, ConnectionError):
    """Nothing answers at the endpoint's url, or the connection broke."""


class AccessDenied(RemoteError, PermissionError):
    """The endpoint refuses the token, Host or Origin."""


class ProtocolMismatch(RemoteError):
    """The other side speaks another protocol version, or no Yggdrasill at all."""


class BuildMismatch(RemoteError):
    """The endpoint runs another torch build, so its results may differ in the last bits."""


class JobConflict(RemoteError):
    """The job key was used for a call with another body."""


class QueueFull(RemoteError):
    """The endpoint takes no more jobs for now."""


class PayloadTooLarge(RemoteError):
    """A body over the endpoint's limit."""


class EndpointFailed(RemoteError):
    """The endpoint broke in a way it has no name for."""


def format_options(names: Iterable[str], *, near: str | None = None, limit: int = 12) -> str:
    """``'a', 'b', 'c'`` for a message, those closest to ``near`` first; ``nothing`` if there are none."""
    options = sorted(names)
    if near is not None:
        close = difflib.get_close_matches(near, options, n=3, cutoff=0.5)
        options = close + [name for name in options if name not in close]
    shown = ", ".join(repr(name) for name in options[:limit])
    if len(options) > limit:
        shown += f" and {len(options) - limit} more"
    return shown or "nothing"


def unknown_name(what: str, name: object, existing: Iterable[str], hint: str = "", kind: type[UnknownName] = UnknownName) -> UnknownName:
    """The error for a name nothing has: ``unknown_name("node", "b", graph.node_ids)``, with near matches first."""
    names = list(existing)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    did_you_mean = f" Did you mean {close[0]!r}?" if close else ""
    return kind(
        f"unknown {what} {name!r}; there is {format_options(names, near=str(name))}.{did_you_mean}{' ' + hint if hint else ''}",
        name=str(name),
    )


def error_from_dict(payload: Mapping[str, Any]) -> YggdrasillError:
    """Rebuild an error from its JSON form; a class this version does not know becomes `EndpointFailed`."""
    message = str(payload.get("message", "no message"))
    details = payload.get("details")
    facts = {str(key): value for key, value in details.items()} if isinstance(details, Mapping) else {}
    name = payload.get("type")
    cls = _BY_NAME.get(name) if isinstance(name, str) else None
    if cls is None:
        return EndpointFailed(message, **{**facts, "type": name})
    return cls(message, **facts)
