"""Handles: a tensor's description in its place, so that data can stay where it was made until it is needed."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from yggdrasill.values.payload import ArtifactRef, Payload

__all__ = ["ArtifactHandle", "Handle", "Loader", "find_handles", "load_handles"]


class Handle(ABC):
    """A reference to a tensor, in place of the tensor on an edge; immutable, named by its content."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The tensor's dtype as torch spells it, such as ``float32``."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""

    @property
    @abstractmethod
    def hash(self) -> str:
        """The name of the bytes."""

    @abstractmethod
    def load(self) -> Any:
        """Return the tensor; fetched once, then the same object at every call."""


Loader = Callable[[ArtifactRef], memoryview]
"""Returns the verified bytes of a reference. Writable memory becomes the tensor's memory; other memory is copied."""


class ArtifactHandle(Handle):
    """A `Handle` for a tensor that is an artifact: its bytes are fetched at the first `load`.

    Two handles are equal if they refer to the same bytes with the same spec, wherever those bytes are available.
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
        """The BLAKE3 of the bytes in hex."""
        return self.ref.hash

    @property
    def nbytes(self) -> int:
        """Length of the bytes."""
        return self.ref.nbytes

    @property
    def loaded(self) -> bool:
        """Whether the tensor is in memory."""
        return self._value is not None

    def load(self) -> Any:
        """Return the tensor, the same object at every call.

        Raises what the loader raises, and `CorruptData` if the bytes do not fit the spec.
        """
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
        source = "loaded" if self.loaded else self.ref.url or f"store {self.ref.store}"
        return f"ArtifactHandle({self.dtype} {list(self.shape)}, {self.hash[:12]}, {source})"


def load_handles(value: Any) -> Any:
    """Return ``value`` with every handle in it, at any depth of lists, tuples and dicts, replaced by the tensor it refers to.

    A container without handles is returned as the same object, and so is every part without handles of one that has some. Depth
    is not limited, each container is visited once, and containers that contain themselves stay so.
    """
    if isinstance(value, Handle):
        return value.load()
    containers, has_handles = _scan(value)
    return _Replacement(containers).of(value) if has_handles else value


def find_handles(value: Any) -> list[ArtifactHandle]:
    """Return the handles in ``value``, at any depth of lists, tuples, dicts and their subclasses; each container is visited once."""
    found: list[ArtifactHandle] = []
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, ArtifactHandle):
            found.append(item)
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item.values() if isinstance(item, dict) else item)
    return found


# Types whose values neither are handles nor contain any; only a shortcut for the most frequent ones.
_LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_CONTAINERS = frozenset({list, tuple, dict})


def _scan(root: Any) -> tuple[list[Any], bool]:
    """Return every container in ``root`` once, and whether any of them has a handle."""
    containers = [root] if type(root) in _CONTAINERS else []
    seen = {id(root)}
    has_handles = False
    for container in containers:  # grows while it is walked
        items = _items(container)
        if _LEAVES.issuperset(map(type, items)):
            continue
        for item in items:
            kind = type(item)
            if kind in _CONTAINERS:
                if id(item) not in seen:
                    seen.add(id(item))
                    containers.append(item)
            elif kind not in _LEAVES and isinstance(item, Handle):
                has_handles = True
    return containers, has_handles


def _items(container: Any) -> Iterable[Any]:
    return container.values() if type(container) is dict else container


class _Replacement:
    """Copies of those containers that lead to a handle, with tensors for handles."""

    def __init__(self, containers: list[Any]) -> None:
        changed = self._leading_to_handles(containers)
        # Lists and dicts first, empty: a tuple in a cycle contains itself only through one of them.
        self._copies: dict[int, Any] = {key: type(item)() for key, item in changed.items() if type(item) is not tuple}
        for key, item in changed.items():
            if type(item) is tuple:
                self._copy_tuple(key, changed)
        for key, item in changed.items():
            if type(item) is list:
                self._copies[key].extend(map(self.of, item))
            elif type(item) is dict:
                self._copies[key].update((name, self.of(part)) for name, part in item.items())

    def of(self, item: Any) -> Any:
        """Return the tensor of a handle, the copy of a container that has one, or ``item`` itself."""
        return item.load() if isinstance(item, Handle) else self._copies.get(id(item), item)

    @staticmethod
    def _leading_to_handles(containers: list[Any]) -> dict[int, Any]:
        parents: dict[int, list[Any]] = {}
        pending = []
        for container in containers:
            for item in _items(container):
                if type(item) in _CONTAINERS:
                    parents.setdefault(id(item), []).append(container)
                elif isinstance(item, Handle):
                    pending.append(container)
        found: dict[int, Any] = {}
        while pending:
            container = pending.pop()
            if id(container) not in found:
                found[id(container)] = container
                pending += parents.get(id(container), ())
        return found

    def _copy_tuple(self, key: int, changed: dict[int, Any]) -> None:
        """Copy the tuple ``key`` after the tuples in it."""
        pending = [key]
        while pending:
            current = pending[-1]
            inner = [id(item) for item in changed[current] if type(item) is tuple and id(item) in changed and id(item) not in self._copies]
            if current in self._copies or not inner:
                pending.pop()
                if current not in self._copies:
                    self._copies[current] = tuple(map(self.of, changed[current]))
            else:
                pending += inner
