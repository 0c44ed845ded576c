"""Placements as data: the values of ``graphs`` in endpoints.yaml, and the rules by which its keys name parts of a project."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, UnknownEndpoint, format_options, unknown_name
from yggdrasill.foundation.kinds import kinds

__all__ = [
    "LOCAL",
    "MODELS",
    "POLICIES",
    "SPLITS",
    "WHOLE",
    "Placement",
    "ProjectPart",
    "check_urgency",
    "config_keys",
    "match_keys",
    "name_of",
]

LOCAL = "local"
POLICIES = ("least_busy", "first", "round_robin")
WHOLE = "*"
"""The key for all transferable nodes of a ComfyUI prompt that no other key places; it names no part of a project."""
SPLITS = ("list", "batch", "none")
MODELS = ("same", "theirs")
"""Whether an endpoint's model files must have the bytes of the files of the same names here, or may be other ones."""


def check_urgency(priority: Any = 0, deadline: Any = None) -> None:
    """Raise `InvalidArgument` unless ``priority`` is an integer from -1000 to 1000 and ``deadline`` None or a positive number."""
    if not isinstance(priority, int) or isinstance(priority, bool) or not -1000 <= priority <= 1000:
        raise InvalidArgument(f"priority must be an integer from -1000 to 1000, got {priority!r}")
    if deadline is not None and (not isinstance(deadline, (int, float)) or isinstance(deadline, bool) or not 0 < deadline < float("inf")):
        raise InvalidArgument(f"deadline must be a number of seconds greater than 0, got {deadline!r}")


@dataclass(frozen=True)
class Placement:
    """Endpoints by name; none means this process. ``policy`` chooses among several; ``fallback`` applies if none answers.

    An endpoint with more than ``max_queued`` queued jobs is skipped. ``split``: whether the values of a call to a part of a ComfyUI
    workflow may go to several endpoints: the values of a ``list``, also the images of a ``batch``, or ``none``. Jobs of a higher
    ``priority`` (-1000 to 1000) run first at the endpoint; a call's job must finish there within ``deadline`` seconds. ``models``:
    whether the endpoint's model files must be the ``same`` as those of this server under their names, or are used whatever they contain
    (``theirs``).
    """

    endpoints: tuple[str, ...] = ()
    policy: str = "least_busy"
    fallback: str = "fail"
    max_queued: int | None = None
    split: str = "list"
    priority: int = 0
    deadline: float | None = None
    models: str = "same"

    @property
    def is_local(self) -> bool:
        """Return whether the part runs in this process."""
        return not self.endpoints

    @classmethod
    def of(cls, value: Any, known: Collection[str], where: str) -> Placement:
        """Build from ``local``, an endpoint's name, or ``{replicas, policy?, fallback?, max_queued?, split?, priority?, deadline?, models?}``.

        Raises:
            InvalidConfig: another shape.
            UnknownEndpoint: a name that is not in ``known``.
        """
        if isinstance(value, Placement):
            return value
        if value == LOCAL:
            return cls()
        names = [value] if isinstance(value, str) else value.get("replicas") if isinstance(value, Mapping) else None
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            raise InvalidConfig(f"{where}: must be 'local', an endpoint's name, or {{replicas: [names], policy, fallback}}, got {value!r}")
        for name in names:
            if name not in known:
                error = unknown_name("endpoint", name, known, f"It is named in {where}; add it under 'endpoints'.", UnknownEndpoint)
                raise error
        rest = {key: item for key, item in value.items() if key != "replicas"} if isinstance(value, Mapping) else {}
        for key, item in rest.items():
            if key == "max_queued" and isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                continue
            if key in ("priority", "deadline"):
                try:
                    check_urgency(**{key: item})
                except InvalidArgument as error:
                    raise InvalidConfig(f"{where}: {error.message}") from None
                continue
            options = {"policy": POLICIES, "fallback": (LOCAL, "fail"), "split": SPLITS, "models": MODELS}.get(key)
            if options is None or item not in options:
                raise InvalidConfig(
                    f"{where}: {key!r} is {item!r}; replicas take policy ({format_options(POLICIES)}), fallback ('local', 'fail'), "
                    f"split ({format_options(SPLITS)}), models ({format_options(MODELS)}), max_queued, priority and deadline (numbers)"
                )
        return cls(tuple(names), **rest)

    def to_config(self) -> Any:
        """Return the JSON form."""
        if self.is_local:
            return LOCAL
        if len(self.endpoints) == 1 and self == Placement(self.endpoints):
            return self.endpoints[0]
        rest: dict[str, Any] = {"max_queued": self.max_queued} if self.max_queued is not None else {}
        rest |= {"split": self.split} if self.split != "list" else {}
        rest |= {"priority": self.priority} if self.priority else {}
        rest |= {"deadline": self.deadline} if self.deadline is not None else {}
        rest |= {"models": self.models} if self.models != "same" else {}
        return {"replicas": list(self.endpoints), "policy": self.policy, "fallback": self.fallback, **rest}


@dataclass(frozen=True)
class ProjectPart:
    """A part of a project: ids from the outermost level down, the part's id in its config if that differs, and its children."""

    path: tuple[str, ...]
    own_id: str | None = None
    children: tuple[ProjectPart, ...] = ()

    @property
    def name(self) -> str:
        """Return the path as written in keys and messages."""
        return "/".join(self.path)

    def walk(self) -> Iterator[ProjectPart]:
        """Yield this part and everything below."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def _paths(self) -> tuple[tuple[str, ...], ...]:
        """Return the path, and the one that ends in the config's id."""
        return (self.path, (*self.path[:-1], self.own_id)) if self.own_id else (self.path,)

    def is_at(self, key: str) -> bool:
        """Return whether a key is this part's whole path, by either id."""
        return tuple(key.split("/")) in self._paths

    def is_named_by(self, key: str) -> bool:
        """Return whether a key is this part's path or a suffix of it, by either id."""
        words = tuple(key.split("/"))
        return any(words == path[len(path) - len(words) :] for path in self._paths if len(words) <= len(path))

    @classmethod
    def of_config(cls, path: tuple[str, ...], config: Any) -> ProjectPart:
        """Build the part at ``path`` from its entry or config, of any level. Referenced files are not read."""
        if not isinstance(config, Mapping):
            return cls(path)
        inner = next((config[key] for key in config_keys() if key in config), config)
        if not isinstance(inner, Mapping):
            return cls(path)
        own_id = name_of(inner)
        return cls(path, own_id if path and own_id != path[-1] else None, tuple(_children(path, inner)))


def config_keys() -> tuple[str, ...]:
    """Return the keys under which an entry of any level holds its child's config."""
    return tuple(kind.children.config_key for kind in kinds() if kind.children is not None)


def name_of(config: Mapping[str, Any]) -> str | None:
    """Return the id that a config of any kind has, or None."""
    return next((config[kind.id_key] for kind in kinds() if isinstance(config.get(kind.id_key), str)), None)


def _children(path: tuple[str, ...], config: Mapping[str, Any]) -> Iterator[ProjectPart]:
    for keys in (kind.children for kind in kinds() if kind.children is not None):
        entries = config.get(keys.key)
        if keys.id_key is None:
            for child_id, entry in entries.items() if isinstance(entries, Mapping) else ():
                yield ProjectPart.of_config((*path, str(child_id)), entry)
            continue
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get(keys.id_key), str):
                yield ProjectPart.of_config((*path, entry[keys.id_key]), entry)


def match_keys(
    keys: Iterable[str], parts: Iterable[ProjectPart], project: str | None = None
) -> tuple[dict[tuple[str, ...], str], list[str]]:
    """Return the key of each placed part by path, the most specific of several; and the keys that name nothing.

    A key that names a part and others inside it means the outermost: it is placed whole. A key that begins with the id of the
    ``project`` names what its remainder names from the outermost level down, so a stage's parts have one key, in a world and alone.

    Raises:
        InvalidConfig: a key that is not a whole path names several parts.
    """
    found: dict[tuple[str, ...], str] = {}
    everything = list(parts)
    unused = []
    for key in sorted(set(keys) - {WHOLE}, key=lambda key: key.count("/")):
        inside = key[len(project) + 1 :] if project is not None and key.startswith(f"{project}/") else None
        exact = [part for part in everything if part.name == key]
        if inside and not exact:
            exact = [part for part in everything if part.is_at(inside)]
        named = exact or [part for part in everything if part.is_named_by(key)]
        named = [part for part in named if not any(part.path[: len(o.path)] == o.path != part.path for o in named)]
        if len(named) > 1:
            raise InvalidConfig(
                f"graphs: {key!r} is ambiguous; it can be {format_options(part.name for part in named)}. Write the path.", key=key
            )
        for part in named:
            found[part.path] = key
        if not named:
            unused.append(key)
    return found, unused
