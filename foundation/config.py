"""Config documents: JSON and YAML files, ``{"ref": path}`` in them, models that name the place of a mistake, and build options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from yggdrasill.errors import InvalidConfig, MissingFile, StorageFailed, UnsupportedVersion

if TYPE_CHECKING:
    from yggdrasill.foundation.contract import Resolver
    from yggdrasill.foundation.pool import ReusePool
    from yggdrasill.foundation.registry import BlockRegistry
    from yggdrasill.foundation.saving import Persistent

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_DOCUMENT_DEPTH",
    "BuildOptions",
    "check_version",
    "is_ref",
    "open_config",
    "parse_document",
    "read_document",
    "read_model",
    "resolve_ref",
]

#: Largest config file: a config is structure, and weights are in checkpoints.
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024

#: Deepest nesting of a YAML config.
MAX_DOCUMENT_DEPTH = 200

Model = TypeVar("Model")


def read_document(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a ``.json``, ``.yaml`` or ``.yml`` file (UTF-8).

    Raises:
        MissingFile, InvalidConfig (with line and column), StorageFailed
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InvalidConfig(
                f"{str(path)!r} is larger than {MAX_DOCUMENT_BYTES} bytes, the limit of a config; keep tensors in checkpoints"
            )
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFile(f"Config {str(path)!r} does not exist; check the path", path=str(path)) from None
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{str(path)!r} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise InvalidConfig(f"{str(path)!r} is not a valid file name: {error}") from error
    except OSError as error:
        raise StorageFailed(f"cannot read {str(path)!r}: {error.strerror or error}", path=str(path)) from error
    return parse_document(text, str(path), yaml=file.suffix.lower() in (".yaml", ".yml"))


def parse_document(text: str, where: str, *, yaml: bool) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML text; ``where`` names it in errors.

    Raises:
        InvalidConfig: with line and column where the text has them.
    """
    try:
        document = _load_yaml(text) if yaml else json.loads(text, object_pairs_hook=_unique_keys)
    except InvalidConfig as error:
        raise InvalidConfig(f"{where}{error.message}") from error.__cause__
    except json.JSONDecodeError as error:
        raise InvalidConfig(f"{where}, line {error.lineno}, column {error.colno}: {error.msg}; the file must hold JSON") from error
    except RecursionError:
        raise InvalidConfig(f"{where}: nested too deeply to be a config") from None
    except ValueError as error:
        raise InvalidConfig(f"{where}: {error}") from error
    if not isinstance(document, dict):
        raise InvalidConfig(f"{where}: a config is a mapping, got {type(document).__name__}")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InvalidConfig(f": duplicate key {key!r}; JSON would keep the last value silently")
        found[key] = value
    return found


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        _check_depth(text)
        return yaml.load(text, Loader=_yaml_loader())  # noqa: S506 - a safe loader, made stricter
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise InvalidConfig(f"{place}: {error.problem or error}; the file must hold YAML") from error
    except yaml.YAMLError as error:
        raise InvalidConfig(f": {error}; the file must hold YAML") from error


def _check_depth(text: str) -> None:
    """Raise `InvalidConfig` for deep nesting, counted in the flat stream of events: the C composer recurses without a limit."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=_yaml_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DOCUMENT_DEPTH:
                raise InvalidConfig(f": nested deeper than {MAX_DOCUMENT_DEPTH} levels, the limit of a config")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


@lru_cache(maxsize=1)
def _yaml_loader() -> Any:
    """Return the safe loader, which here refuses duplicate keys (YAML would keep the last) and leaves dates as text (JSON has no dates)."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # its C base has no stub
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key must be a scalar, not {type(key).__name__}", key_node.start_mark
                )
            if key in found:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            found[key] = loader.construct_object(value_node, deep=True)
        return found

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node))
    return Loader


def is_ref(value: Any) -> bool:
    """Return whether ``value`` is exactly ``{"ref": path}``."""
    return isinstance(value, Mapping) and set(value) == {"ref"}


def resolve_ref(value: Any, base_dir: str | Path | None, where: str, allow: bool = True) -> tuple[Any, Path | None]:
    """Return ``value`` and its base folder; an exact ``{"ref": path}`` is read from that file, relative to ``base_dir``.

    Raises:
        InvalidConfig: a ref that is not a string, leads back to itself, or is not allowed (a config from a network).
        MissingFile: the file does not exist.
    """
    base = None if base_dir is None else Path(base_dir)
    seen: list[Path] = []
    while is_ref(value):
        path = value["ref"]
        if not allow:
            raise InvalidConfig(f"{where}: 'ref' is not allowed in a config that comes over a network; send the config inline")
        if not isinstance(path, str) or not path:
            raise InvalidConfig(f"{where}: 'ref' must be a path, got {path!r}")
        file = (base or Path()) / path
        try:
            place = file.resolve()
        except (ValueError, RuntimeError) as error:
            raise InvalidConfig(f"{where}: 'ref' {path!r} is not a valid file name: {error}") from error
        if place in seen:
            raise InvalidConfig(f"{where}: 'ref' {path!r} leads back to itself through {' -> '.join(map(str, seen))}")
        seen.append(place)
        try:
            value = read_document(file)
        except MissingFile:
            raise MissingFile(
                f"{where}: 'ref' names {str(file)!r}, which does not exist; a ref is relative to the file that contains it", path=str(file)
            ) from None
        base = file.parent
    return value, base


def check_version(config: Mapping[str, Any], supported: str, where: str) -> None:
    """Raise `UnsupportedVersion` if the config's ``schema_version`` has a newer major number than ``supported``."""
    version = config.get("schema_version", supported)
    try:
        major = int(str(version).split(".", maxsplit=1)[0])
    except ValueError:
        raise InvalidConfig(f"{where}: schema_version is {version!r}; this version writes {supported!r}") from None
    if major > int(supported.split(".", maxsplit=1)[0]):
        raise UnsupportedVersion(
            f"{where}: schema_version {version!r} is newer than {supported!r}, the newest this version reads; update yggdrasill"
        )


def read_model(model: type[Model], config: Any, where: str) -> Model:
    """Return ``config`` as an instance of a pydantic model; an error names every mistake by its place (``nodes[2].block_type``).

    Raises:
        InvalidConfig
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(model).validate_python(config)
    except ValidationError as error:
        mistakes = [f"{_place(item['loc'])}: {item['msg']} (got {_short(item['input'])})" for item in error.errors(include_url=False)[:8]]
        raise InvalidConfig(f"{where}: " + "; ".join(mistakes), places=[_place(item["loc"]) for item in error.errors()]) from None


def _place(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the config"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options that building passes down from level to level.

    Attributes:
        registry: Builds blocks by type; None for the global one.
        pool: Shares blocks of one model; None for that of the process.
        base_dir: The folder that ``ref`` paths are relative to; None for the working directory.
        endpoints: Places parts on endpoints; None builds every part locally.
        path: The ids from the outermost level of the project down to this one.
        allow_ref: Whether ``ref`` may name files; False for a config that comes over a network.
    """

    registry: BlockRegistry | None = None
    pool: ReusePool | None = None
    base_dir: str | Path | None = None
    endpoints: Resolver | None = None
    path: tuple[str, ...] = ()
    allow_ref: bool = True

    def at(self, base_dir: str | Path | None) -> BuildOptions:
        """Return the options for a config in another folder."""
        return replace(self, base_dir=base_dir)

    def below(self, child_id: str, base_dir: str | Path | None) -> BuildOptions:
        """Return the options for a child whose config is in the folder ``base_dir``."""
        return replace(self, base_dir=base_dir, path=(*self.path, child_id))


def open_config(level: type[Persistent], config: Any, options: BuildOptions) -> tuple[dict[str, Any], str, BuildOptions]:
    """Return the document of a config of this level with its ref resolved, its name for messages, and the options for its children.

    Raises:
        InvalidConfig, UnsupportedVersion, MissingFile
    """
    document, base = resolve_ref(config, options.base_dir, f"{level.level} config", options.allow_ref)
    if not isinstance(document, Mapping):
        raise InvalidConfig(f"a {level.level} config is a mapping, got {type(document).__name__}")
    where = f"{level.level} {document.get(f'{level.level}_id', 'config')!r}"
    check_version(document, level.schema_version, where)
    rest = {key: value for key, value in document.items() if key != "kind" or value != level.level}
    return rest, where, options.at(base)
