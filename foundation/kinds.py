"""Registry of kinds: what a config can describe, and what builds it.

A kind is registered once, by the module that defines it, and everything that differs from kind to kind is a field of `Kind`:
building, command line, drawing, templates, placement and serving read this registry and keep no list of their own.

A kind that is not registered yet is looked up in three places: the table ``KIND_MODULES`` of the root package (names of modules
that register a kind when imported), the entry point group ``yggdrasill.kinds``, and the modules a program imports itself. So
this module names no package above it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yggdrasill
from yggdrasill.errors import InvalidArgument, InvalidConfig, format_options
from yggdrasill.foundation.config import BuildOptions, read_document, resolve_ref
from yggdrasill.foundation.contract import whole_project

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yggdrasill.foundation.container import Container
    from yggdrasill.foundation.pool import ReusePool
    from yggdrasill.foundation.registry import BlockRegistry

__all__ = [
    "ENTRY_POINT_GROUP",
    "KINDS",
    "ChildKeys",
    "Kind",
    "build_child",
    "build_children",
    "build_given",
    "build_project",
    "detect_kind",
    "find_kind",
    "kind_names",
    "kind_of",
    "kinds",
    "place_child",
    "register_kind",
]

ENTRY_POINT_GROUP = "yggdrasill.kinds"

#: How a runnable is called: ``ports`` takes inputs and returns outputs by name; ``state`` takes a state and returns the next one;
#: ``world`` is like ``state`` and keeps the state between calls.
Boundary = Literal["ports", "state", "world"]
#: How a config is drawn: nodes of a graph, boxes with their insides, a stage with its state blocks, a ring of stages, or one box.
Drawing = Literal["nodes", "network", "stage", "ring", "box"]


@dataclass(frozen=True, slots=True)
class ChildKeys:
    """Config keys of a kind's children: ``{key: [{id_key: id, config_key: config}]}``.

    ``id_key`` is None where ``key`` maps ids to configs. ``kind`` is the kind of a child whose config does not say which it is,
    and the word for a child in messages.
    """

    key: str
    id_key: str | None
    config_key: str
    kind: str


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of runnable.

    Attributes:
        name: The value of ``kind`` in a config, and of ``kind`` in a deployment.
        load_class: Returns the class; called only when an instance or its files are needed.
        build: Builds a runnable from a config and the options of the project around it.
        id_key: The config key that holds the id.
        marks: Config keys that only this kind has; a config with one of them need not say ``kind``.
        children: The config keys of its children; None for a kind whose parts are not runnables.
        boundary: How it is called; None for a kind that is known only once it is built.
        drawing: How its configs are drawn.
        servable: Whether an endpoint accepts a deployment of this kind.
        run_options: Options of ``run`` that a remote caller may set.
    """

    name: str
    load_class: Callable[[], Any]
    build: Callable[[Mapping[str, Any], BuildOptions], Any]
    id_key: str = "graph_id"
    marks: tuple[str, ...] = ()
    children: ChildKeys | None = None
    boundary: Boundary | None = "ports"
    drawing: Drawing = "box"
    servable: bool = True
    run_options: frozenset[str] = frozenset({"dry_run"})

    def id_of(self, config: Mapping[str, Any]) -> str:
        """Return the id in a config, or the kind's name if it has none."""
        return str(config.get(self.id_key) or self.name)


class _Kinds(dict[str, Kind]):
    """Kinds by name. One that is missing is looked up as `find_kind` says."""

    def __missing__(self, name: str) -> Kind:
        _import(name)
        kind = self.get(name)
        if kind is None:
            raise InvalidConfig(
                f"Unknown kind {name!r}. Available: {format_options(kind_names(), near=name)}. Import the module that registers it, or "
                f"install the package that declares it in the entry point group {ENTRY_POINT_GROUP!r}.",
                kind=name,
            )
        return kind


KINDS = _Kinds()
"""The registered kinds; ``KINDS[name]`` is `find_kind`, for code that runs with every call."""


def register_kind(kind: Kind) -> Kind:
    """Register a kind and return it; the same name again replaces it.

    Raises:
        InvalidArgument: a blank name.
    """
    if not isinstance(kind.name, str) or not kind.name.strip():
        raise InvalidArgument(f"A kind needs a non-empty name, got {kind.name!r}")
    KINDS[kind.name] = kind
    return kind


def kind_names() -> list[str]:
    """Return the names of all kinds, registered or not, the built-in ones first and from the innermost level outwards."""
    return list(dict.fromkeys([*yggdrasill.KIND_MODULES, *KINDS, *_installed()]))


def kinds() -> list[Kind]:
    """Return all kinds in the order of `kind_names`; imports the modules that define them.

    A kind of another package whose module cannot be imported is left out.
    """
    found = []
    for name in kind_names():
        try:
            found.append(find_kind(name))
        except InvalidConfig:
            if name in yggdrasill.KIND_MODULES:
                raise
    return found


def _loaded() -> list[Kind]:
    return list(KINDS.values())


def find_kind(name: str) -> Kind:
    """Return the kind of that name; imports the module that registers it if need be.

    Raises:
        InvalidConfig: no such kind, or its module cannot be imported.
    """
    return KINDS[name]


def _import(name: str) -> None:
    module = yggdrasill.KIND_MODULES.get(name) or _installed().get(name)
    if module is None:
        return
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InvalidConfig(
            f"Kind {name!r} is defined by module {module!r}, which cannot be imported: {error}. Repair or install the package.", kind=name
        ) from error


@lru_cache(maxsize=1)
def _installed() -> Mapping[str, str]:
    """Modules of other packages that register a kind, by its name."""
    from importlib.metadata import entry_points

    return {point.name: point.module for point in entry_points(group=ENTRY_POINT_GROUP)}


def detect_kind(config: object) -> Kind | None:
    """Return the kind that a config describes: by its ``kind``, else by a key that only one kind has, else by the key of its id.

    Raises:
        InvalidConfig: ``kind`` names an unknown kind.
    """
    if not isinstance(config, Mapping):
        return None
    if isinstance(config.get("kind"), str):
        return find_kind(config["kind"])
    # Kinds that are loaded first: a config of theirs makes no import of the others necessary.
    for load_kinds in (_loaded, kinds):
        for kind in reversed(load_kinds()):
            if any(mark in config for mark in kind.marks):
                return kind
    return next((kind for kind in kinds() if kind.id_key in config), None)


def kind_of(config: object, default: str) -> Kind:
    """Return the kind that a config describes, or the one named ``default``; see `detect_kind`."""
    return detect_kind(config) or find_kind(default)


# -- building ---------------------------------------------------------------------------------------------------------


def build_project(config: Mapping[str, Any], options: BuildOptions, default: str = "graph") -> Any:
    """Build the runnable of a config that is the outermost level of a project; the resolver is told about the whole project.

    Raises:
        InvalidConfig, UnsupportedVersion, MissingFile, UnknownBlockType, InvalidEdge
    """
    kind = kind_of(config, default)
    with whole_project(options.endpoints, options.path, config) as resolver:
        return kind.build(config, replace(options, endpoints=resolver))


def build_child(config: Any, options: BuildOptions, default: str) -> Any:
    """Build the runnable of a child's config, or of the file that its ``ref`` names; ``default`` is its kind if it does not say.

    Raises:
        InvalidConfig: also for a kind that is called in another way than ``default``, such as a stage in place of a graph.
    """
    document, base = resolve_ref(config, options.base_dir, f"{default} config", options.allow_ref)
    expected, kind = find_kind(default), kind_of(document, default)
    if kind.boundary not in (expected.boundary, None):
        raise InvalidConfig(
            f"{'/'.join(options.path) or default}: expected the config of a {default}, got one of a {kind.name}, which is run with "
            f"{'inputs' if kind.boundary == 'ports' else 'a state'}"
        )
    return kind.build(document, options.at(base))


def build_given(given: Any, default: str, registry: BlockRegistry | None, pool: ReusePool | None) -> Any:
    """Return ``given`` if it is neither a config nor the path of one; else the runnable built from it.

    Raises:
        InvalidConfig, MissingFile, and what building raises.
    """
    options = BuildOptions(registry, pool)
    if isinstance(given, (str, Path)):
        return build_child(read_document(given), options.at(Path(given).parent), default)
    return build_child(given, options, default) if isinstance(given, Mapping) else given


def place_child(child_id: str, entry: Mapping[str, Any], options: BuildOptions, base_dir: Any = None) -> Any | None:
    """Return what the resolver runs in place of a child, or None to build it locally.

    An entry with an ``endpoint_url`` that the resolver does not place is built by the kind which has that mark.
    """
    if base_dir is not None:
        entry = {**entry, "base_dir": base_dir}
    placed = None if options.endpoints is None else options.endpoints.resolve((*options.path, child_id), entry)
    if placed is None and entry.get("endpoint_url") is not None:
        placed = kind_of(entry, "graph").build(entry, options.below(child_id, base_dir))
    return placed


def build_children(level: type[Container], entries: Iterable[Any], where: str, options: BuildOptions) -> Iterator[tuple[Any, Any]]:
    """Yield each entry of a config's list of children with its runnable: the resolver's, else one built from its config.

    Entries are models with the fields of `ChildModel`, ``<child_word>_config`` and the level's ``child_id_field``.
    """
    key = f"{level.child_word}_config"
    for number, entry in enumerate(entries):
        child_id = getattr(entry, level.child_id_field)
        config, base = _entry_config(entry, key, f"{where}, {level.child_word}s[{number}]", options)
        facts = {key: config, "endpoint_url": entry.endpoint_url, "graph_id": entry.graph_id or child_id}
        placed = place_child(child_id, {name: value for name, value in facts.items() if value}, options, base)
        yield entry, build_child(config, options.below(child_id, base), level.child_word) if placed is None else placed


def _entry_config(entry: Any, key: str, where: str, options: BuildOptions) -> tuple[dict[str, Any], Any]:
    """Return the inline config of an entry that names exactly one of ``key``, ``ref`` and ``endpoint_url``, and its base folder."""
    given = [name for name in (key, "ref", "endpoint_url") if getattr(entry, name) is not None]
    if len(given) != 1:
        raise InvalidConfig(f"{where} needs exactly one of {key!r}, 'ref' and 'endpoint_url'; it has {given or 'none'}")
    if given[0] == "endpoint_url":
        return {}, options.base_dir
    value = {"ref": entry.ref} if entry.ref is not None else getattr(entry, key)
    config, base = resolve_ref(value, options.base_dir, f"{where}.{given[0]}", options.allow_ref)
    return config, base
