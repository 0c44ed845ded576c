"""References to artifacts: a payload's description and name in place of its bytes, and the handle a graph sees.

Handles: a value's description in place of the value, so that data can stay where it was made until somebody needs it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from yggdrasill.values.payload import ArraySpec, Payload, corrupt

__all__ = ["ArtifactHandle", "ArtifactRef", "Handle", "Loader", "load_handles"]

_HASH = re.compile(r"[0-9a-f]{64}")
_STORE = re.compile(r"[0-9A-Za-z_.-]{1,64}")
_URL = re.compile(r"https?://[!-~]{1,4000}")


@dataclass(frozen=True)
class ArtifactRef:
    """One payload by reference: the blake3 of its bytes, how to read them, and where they may be had.

    ``url`` gives the bytes over HTTP; ``store`` is the id of a store that had them when the reference was written.
    """

    hash: str
    description: ArraySpec
    url: str | None = None
    store: str | None = None

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.description.nbytes

    @property
    def dtype(self) -> str:
        """The dtype as `ArraySpec` spells it; ``bytes`` for a byte string."""
        return self.description.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.description.shape

    def to_json(self) -> dict[str, Any]:
        """The description's fields with ``artifact`` and, if known, ``url`` and ``store``."""
        entry = {**self.description.to_json(), "artifact": self.hash}
        if self.url is not None:
            entry["url"] = self.url
        if self.store is not None:
            entry["store"] = self.store
        return entry

    @classmethod
    def from_json(cls, data: Any) -> ArtifactRef:
        """Read `to_json`'s form; anything else is `CorruptData`."""
        if type(data) is not dict:
            raise corrupt("a payload has no description")
        rest = dict(data)
        hash, url, store = rest.pop("artifact", None), rest.pop("url", None), rest.pop("store", None)  # noqa: A001
        if type(hash) is not str or not _HASH.fullmatch(hash):
            raise corrupt("a payload's artifact is named by no blake3")
        if url is not None and (type(url) is not str or not _URL.fullmatch(url)):
            raise corrupt(f"artifact {hash} has a url that is none")
        if store is not None and (type(store) is not str or not _STORE.fullmatch(store)):
            raise corrupt(f"artifact {hash} has a store id that is none")
        if "hash" in rest:
            raise corrupt(f"artifact {hash} has a second name")
        return cls(hash, ArraySpec.from_json(rest), url, store)


Loader = Callable[[ArtifactRef], memoryview]
"""Gives the bytes of a reference, their hash checked; writable memory becomes the tensor's own, other memory is copied."""


class ArtifactHandle:
    """A `Handle` for a tensor that is an artifact: its bytes stay where they are until `load`.

    Handles are equal if they stand for the same bytes read the same way, wherever those can be had.
    """

    def __init__(self, ref: ArtifactRef, loader: Loader) -> None:
        self.ref = ref
        self._loader = loader
        self._lock = threading.Lock()
        self._value: Any = None

    @property
    def dtype(self) -> str:
        """The tensor's dtype as torch spells it, such as ``float32``."""
        return self.ref.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.ref.shape

    @property
    def hash(self) -> str:
        """The blake3 of the bytes in hex."""
        return self.ref.hash

    @property
    def nbytes(self) -> int:
        """Length of the bytes."""
        return self.ref.nbytes

    @property
    def loaded(self) -> bool:
        """Whether `load` has the value already."""
        return self._value is not None

    def load(self) -> Any:
        """The tensor; the same object at every call. Raises what the loader raises, and `CorruptData` if the bytes do not fit."""
        with self._lock:
            if self._value is None:
                from yggdrasill.values.tensors import decode_tensor

                self._value = decode_tensor(Payload(self.ref.description, self._loader(self.ref), self.ref.hash))
            return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArtifactHandle):
            return NotImplemented
        return (self.ref.hash, self.ref.description) == (other.ref.hash, other.ref.description)

    def __hash__(self) -> int:
        return hash((self.ref.hash, self.ref.description))

    def __repr__(self) -> str:
        place = "loaded" if self.loaded else self.ref.url or f"store {self.ref.store}"
        return f"ArtifactHandle({self.dtype} {list(self.shape)}, {self.hash[:12]}, {place})"


@runtime_checkable
class Handle(Protocol):
    """A reference that may stand on an edge for a tensor; immutable, named by its content."""

    @property
    def dtype(self) -> str:
        """The tensor's dtype as torch spells it, such as ``float32``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    @property
    def hash(self) -> str:
        """The name of the bytes."""
        ...

    def load(self) -> Any:
        """The value itself; fetched once, however often it is asked for."""
        ...


def load_handles(value: Any) -> Any:
    """``value`` with every handle in it, at any depth of lists, tuples and dicts, replaced by what it stands for.

    A container without handles comes back as the same object.
    """
    if isinstance(value, (str, bytes, int, float, type(None))):
        return value
    if isinstance(value, Mapping) and type(value) is dict:
        loaded = {key: load_handles(item) for key, item in value.items()}
        return value if all(loaded[key] is value[key] for key in value) else loaded
    if type(value) in (list, tuple):
        items = [load_handles(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    return value.load() if isinstance(value, Handle) else value
