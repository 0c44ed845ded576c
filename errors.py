"""The exceptions that Yggdrasill raises, and the wording of their messages.

Each class also derives from the builtin that a caller would expect, so ``except ValueError`` and ``except KeyError`` keep
working. A message states what is wrong, what is available, and what to do; ``details`` holds the same facts for programs.
`unknown_message` and `unknown_name` word every "no such name" message, `error_context` adds where it happened::

    YggdrasillError
    ├── InvalidArgument (ValueError)        an argument that the callee does not accept
    │   ├── DuplicateName
    │   └── InvalidEdge
    ├── InvalidStructure (ValueError)       validate() found errors
    │   └── CycleFound                      a cycle in a structure that must be acyclic
    ├── UnknownName (KeyError)              a name that does not exist
    │   ├── UnknownBlockType
    │   ├── UnknownGraph
    │   ├── UnknownEndpoint
    │   ├── UnknownJob
    │   ├── UnknownArtifact
    │   └── UnknownVersion
    ├── InvalidConfig (ValueError)          a config's text, shape or values
    │   ├── UnsupportedVersion
    │   └── MissingFile (FileNotFoundError)
    ├── InvalidCheckpoint (ValueError)      a weights file that cannot be read
    │   └── CheckpointMismatch (KeyError)   weights of another model
    ├── UnsupportedFormat (NotImplementedError)
    ├── CodecError (ValueError)
    │   ├── CorruptData                     truncated, altered or foreign bytes
    │   ├── LimitExceeded                   larger or deeper than the receiver allows
    │   └── CannotTravel (TypeError)        a value that has no lossless form
    ├── RunError (RuntimeError)
    │   ├── BlockFailed                     a block raised; ``node`` is its path
    │   │   └── MissingInput                a block raised because a required input was absent
    │   ├── HookFailed
    │   ├── Cancelled
    │   └── TimedOut (TimeoutError)
    ├── PartitionError (ValueError)         a part of a workflow that cannot be split off
    ├── InvalidState (ValueError)           a state outside its schema
    ├── VersionIncomplete (RuntimeError)    a version spec whose models, nodes or packages are missing
    ├── StorageFailed (OSError)             a snapshot or save that could not be written or read
    └── RemoteError (RuntimeError)
        ├── EndpointUnreachable (ConnectionError)
        ├── AccessDenied (PermissionError)
        ├── ProtocolMismatch
        ├── BuildMismatch                   another torch build, whose results may differ in the last bits
        ├── PayloadTooLarge
        ├── JobConflict                     the job key was used for another call
        ├── UploadConflict                  a piece of an upload that does not begin at the upload's offset
        ├── QueueFull
        │   └── BudgetSpent                 a serverless endpoint on which a call may cost no more
        └── EndpointFailed                  an unexpected failure inside the endpoint
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = [
    "AccessDenied",
    "BlockFailed",
    "BudgetSpent",
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
    "UnknownVersion",
    "UnsupportedFormat",
    "UnsupportedVersion",
    "UploadConflict",
    "VersionIncomplete",
    "YggdrasillError",
    "error_context",
    "error_from_dict",
    "format_options",
    "unknown_message",
    "unknown_name",
]

_BY_NAME: dict[str, type[YggdrasillError]] = {}


class YggdrasillError(Exception):
    """Root of the tree: a ``message`` for people and ``details`` (JSON values) for programs.

    ``message`` is ``args[0]``, so that ``str``, ``repr``, ``args`` and pickles always agree; assigning it changes all of them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __name__:
            _BY_NAME[cls.__name__] = cls

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.details: dict[str, Any] = details

    @property
    def message(self) -> str:
        """What went wrong, for people."""
        return str(self.args[0])

    @message.setter
    def message(self, text: str) -> None:
        self.args = (text,)

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form ``{"type", "message", "details"}``, which `error_from_dict` reads."""
        return {"type": type(self).__name__, "message": self.message, "details": self.details}


class InvalidArgument(YggdrasillError, ValueError):
    """An argument that the callee does not accept."""


class DuplicateName(InvalidArgument):
    """A name that is already in use."""


class InvalidEdge(InvalidArgument):
    """An edge with a missing end, a wrong direction, or incompatible types."""


class InvalidStructure(YggdrasillError, ValueError):
    """Errors found by ``validate()``; ``details["errors"]`` lists them."""


class CycleFound(InvalidStructure):
    """A cycle in a structure that must be acyclic."""


class UnknownName(YggdrasillError, KeyError):
    """A name that does not exist; the message lists the available ones, nearest first."""


class UnknownBlockType(UnknownName):
    """A block type that is not registered."""


class UnknownGraph(UnknownName):
    """A graph id that the endpoint does not serve."""


class UnknownEndpoint(UnknownName):
    """An endpoint name that the registry does not contain."""


class UnknownJob(UnknownName):
    """A job id that the endpoint does not know."""


class UnknownArtifact(UnknownName):
    """An artifact hash that the endpoint does not hold."""


class UnknownVersion(UnknownName):
    """A version id for which no folder has a spec."""


class InvalidConfig(YggdrasillError, ValueError):
    """A config that cannot be read; the message names the file and the location in it."""


class UnsupportedVersion(InvalidConfig):
    """A config, file or message that a newer version wrote."""


class MissingFile(InvalidConfig, FileNotFoundError):
    """A config, ``ref`` or weights file that does not exist."""


class InvalidCheckpoint(YggdrasillError, ValueError):
    """A weights file that cannot be read."""


class CheckpointMismatch(InvalidCheckpoint, KeyError):
    """Weights of another model: keys are missing or unexpected."""


class UnsupportedFormat(YggdrasillError, NotImplementedError):
    """A file format that is not supported, such as pickle."""


class CodecError(YggdrasillError, ValueError):
    """A value that could not be encoded or decoded."""


class CorruptData(CodecError):
    """Bytes that are truncated, altered, or in a foreign format."""


class LimitExceeded(CodecError):
    """Data larger, longer or deeper than the receiver allows."""


class CannotTravel(CodecError, TypeError):
    """A value without a lossless encoded form; the message names its type and location."""


class RunError(YggdrasillError, RuntimeError):
    """A run that started and failed."""


class BlockFailed(RunError):
    """An exception raised by a block; ``details["node"]`` is the node path and ``__cause__`` the original exception."""


class MissingInput(BlockFailed):
    """An exception raised by a block whose required input was absent; ``details["ports"]`` lists the absent inputs."""


class HookFailed(RunError):
    """An exception raised by a callback."""


class Cancelled(RunError):
    """A run that was cancelled."""


class TimedOut(RunError, TimeoutError):
    """A run that exceeded its time limit."""


class PartitionError(YggdrasillError, ValueError):
    """A part that cannot be split off its workflow; ``details["part"]`` is its name and ``details["nodes"]`` the node ids."""


class InvalidState(YggdrasillError, ValueError):
    """A state with an empty block before a filled one, an unknown block, or a value outside its schema."""


class VersionIncomplete(YggdrasillError, RuntimeError):
    """A version that cannot run on this machine; ``details["missing"]`` lists every model, node and package that is missing, with the reason."""


class StorageFailed(YggdrasillError, OSError):
    """A snapshot or save that could not be written or read; older files are unchanged."""


class RemoteError(YggdrasillError, RuntimeError):
    """A call to an endpoint that failed."""


class EndpointUnreachable(RemoteError, ConnectionError):
    """An endpoint that does not answer, or a connection that broke."""


class AccessDenied(RemoteError, PermissionError):
    """A token, Host or Origin that the endpoint refuses."""


class ProtocolMismatch(RemoteError):
    """A server with another protocol version, or one that is not a Yggdrasill endpoint."""


class BuildMismatch(RemoteError):
    """An endpoint with another torch build, whose results may differ in the last bits."""


class JobConflict(RemoteError):
    """A job key that was used before for a call with another body, or a call of a graph that was replaced since its contract was read."""


class UploadConflict(RemoteError):
    """A piece of an upload that does not begin where the upload ends so far; ``details["offset"]`` is the byte to continue at."""


class QueueFull(RemoteError):
    """An endpoint whose queue is full."""


class BudgetSpent(QueueFull):
    """A serverless endpoint whose budget for attempts or seconds is spent; another endpoint, or a local fallback, may take the call."""


class PayloadTooLarge(RemoteError):
    """A request body larger than the endpoint's limit."""


class EndpointFailed(RemoteError):
    """An unexpected failure inside the endpoint."""


def format_options(names: Iterable[str], *, near: str | None = None, limit: int = 12) -> str:
    """Return ``'a', 'b', 'c'`` for a message, sorted, with those closest to ``near`` first; ``none`` without names."""
    options = sorted(names)
    if near is not None:
        close = difflib.get_close_matches(near, options, n=3, cutoff=0.5)
        options = close + [name for name in options if name not in close]
    shown = ", ".join(repr(name) for name in options[:limit])
    if len(options) > limit:
        shown += f" and {len(options) - limit} more"
    return shown or "none"


def unknown_message(what: str, name: object, existing: Iterable[str], hint: str = "", *, limit: int = 12) -> str:
    """Return ``Unknown node 'b'. Available: 'a', 'c'.``, then a near match and ``hint`` (a sentence) if there are any."""
    names = list(existing)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    parts = [f"Unknown {what} {name!r}.", f"Available: {format_options(names, near=str(name), limit=limit)}."]
    return " ".join([*parts, *([f"Did you mean {close[0]!r}?"] if close else []), *([hint] if hint else [])])


def unknown_name(what: str, name: object, existing: Iterable[str], hint: str = "", kind: type[UnknownName] = UnknownName) -> UnknownName:
    """Return the error for a name that does not exist, as ``unknown_name("node", "b", graph.nodes)``, with `unknown_message`."""
    return kind(unknown_message(what, name, existing, hint), name=str(name))


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Prefix the message of every `YggdrasillError` raised inside with ``where``, such as a file or a location in a config."""
    try:
        yield
    except YggdrasillError as error:
        error.message = f"{where}: {error.message}"
        raise


def error_from_dict(payload: Mapping[str, Any]) -> YggdrasillError:
    """Rebuild an error from its JSON form; a class that this version does not know becomes `EndpointFailed`."""
    message = str(payload.get("message", "no message"))
    details = payload.get("details")
    facts = {str(key): value for key, value in details.items()} if isinstance(details, Mapping) else {}
    name = payload.get("type")
    cls = _BY_NAME.get(name) if isinstance(name, str) else None
    if cls is None:
        return EndpointFailed(message, **{**facts, "type": name})
    return cls(message, **facts)
