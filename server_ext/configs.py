"""Security checks of configs that arrive over a network: no paths, secrets or addresses of this host that its owner did not allow.

The levels themselves refuse ``ref`` (``allow_ref=False``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from yggdrasill.errors import InvalidConfig, UnknownBlockType, format_options
from yggdrasill.foundation.ports import ConfigField
from yggdrasill.foundation.registry import BlockRegistry

__all__ = ["HostRules", "check_config", "declared_settings", "legacy_world_folder"]

_MAX_DEPTH = 100
_UNDECLARED, _DATA = "undeclared", "data"
#: All other kinds are data. The keys inside a declared ``value`` are not declared themselves.
_CHECKED = ("path", "url", "secret", _UNDECLARED)
_PATH_KEY = re.compile(r"(^|_)((path|file|filename|dir|folder)s?|director(y|ies))$|^checkpoint_ref$", re.IGNORECASE)
_URL_KEY = re.compile(r"(^|_)(url|uri|endpoint|host|hostname|proxy|webhook)s?$", re.IGNORECASE)
_SECRET_KEY = re.compile(r"_env$", re.IGNORECASE)
_SECRET = re.compile(r"^\s*(env|secret|secrets)\s*:\s*\S", re.IGNORECASE)
_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:[/\\]")
_ROOTED = re.compile(r"\s*([/\\]|[A-Za-z]:[/\\]|~[^\s/\\]*([/\\]|$))")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class HostRules:
    """What configs may use on this host: paths under ``roots``, one folder per deployment under ``worlds``, and known endpoint urls."""

    roots: Sequence[Path]
    worlds: Path
    knows_url: Callable[[str], bool]
    #: Returns the declared settings of a block type, None if it declares none.
    settings: Callable[[str], Sequence[ConfigField] | None] = lambda block_type: declared_settings(
        BlockRegistry.global_registry(), block_type
    )


def declared_settings(registry: BlockRegistry, block_type: str) -> Sequence[ConfigField] | None:
    """Return the settings that a block type declares; None if it declares none or is unknown, which its construction reports."""
    try:
        return cast("Sequence[ConfigField] | None", getattr(registry.get(block_type), "settings", None))
    except UnknownBlockType:
        return None


def check_config(config: Mapping[str, Any], rules: HostRules, folder: str | None = None) -> dict[str, Any]:
    """Return a copy of ``config`` with allowed paths made absolute. A world stores its states in ``folder`` of the worlds' folder.

    ``folder`` belongs to one deployment, so that worlds with equal ids do not share their states; without it a world cannot store any.

    Raises:
        InvalidConfig: it names a path outside the roots, a secret or an unknown url, or it is nested too deeply.
    """
    checked: dict[str, Any] = _structure(config, "config", rules, 0)
    if "stages" in checked:
        if isinstance(checked.get("checkpoint_ref"), str):
            checked["checkpoint_ref"] = _path(checked["checkpoint_ref"], "config.checkpoint_ref", rules)
        if isinstance(checked.get("storage"), dict):
            checked["storage"] = _storage(checked["storage"], checked.get("world_id", "world"), rules, folder)
    return checked


def _structure(value: Any, where: str, rules: HostRules, depth: int) -> Any:
    """Check levels, entries and nodes. Everything except the configs of nodes is structure."""
    _check_depth(depth, where)
    if isinstance(value, Mapping):
        is_node = "block_type" in value and isinstance(value.get("config"), Mapping)
        checked = {}
        for key, item in value.items():
            path = f"{where}.{key}"
            if is_node and key == "config":
                checked[key] = _node_config(item, path, rules, value["block_type"], depth + 1)
            elif key == "endpoint_url" and item is not None:
                checked[key] = _url(item, path, rules)
            else:
                checked[key] = _structure(item, path, rules, depth + 1)
        return checked
    if isinstance(value, list):
        return [_structure(item, f"{where}[{index}]", rules, depth + 1) for index, item in enumerate(value)]
    return value


def _node_config(config: Mapping[str, Any], where: str, rules: HostRules, block_type: Any, depth: int) -> dict[str, Any]:
    """Check the settings of a block: declared ones by their kind, others by their name and by what their value looks like."""
    declared = {field.name: field.kind for field in (rules.settings(block_type) if isinstance(block_type, str) else None) or ()}
    checked = {}
    for key, item in config.items():
        kind = declared.get(key, _UNDECLARED)
        name = "" if key in declared else str(key)
        checked[key] = _setting(item, f"{where}.{key}", rules, kind if kind in _CHECKED else _DATA, depth + 1, name)
    return checked


def _setting(value: Any, where: str, rules: HostRules, kind: str, depth: int, key: str = "") -> Any:
    """Check a value of one kind. An undeclared ``key`` that names a path, url or secret gives the value and those inside it that kind."""
    _check_depth(depth, where)
    if kind in (_UNDECLARED, _DATA):
        kind = "secret" if _SECRET_KEY.search(key) else "path" if _PATH_KEY.search(key) else "url" if _URL_KEY.search(key) else kind
    if isinstance(value, Mapping):
        if kind == _UNDECLARED:
            for name in value:
                _refuse_foreign(str(name), where, rules)
        return {name: _setting(item, f"{where}.{name}", rules, kind, depth + 1, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_setting(item, f"{where}[{index}]", rules, kind, depth + 1) for index, item in enumerate(value)]
    if not isinstance(value, str) or not value:
        return value
    _refuse_secret(value, where, always=kind == "secret")
    if kind == "path":
        return _path(value, where, rules)
    if kind == "url":
        return _url(value, where, rules)
    if kind == _UNDECLARED:
        _refuse_foreign(value, where, rules)
    return value


def _refuse_foreign(text: str, where: str, rules: HostRules) -> None:
    """Raise `InvalidConfig` if a text looks like an absolute path, a path upwards or an unknown url."""
    is_foreign = _ROOTED.match(text) or _URL.match(text) or any(part.strip() == ".." for part in re.split(r"[/\\]", text))
    if is_foreign and not rules.knows_url(text):
        raise InvalidConfig(
            f"{where} is {text[:100]!r}, which looks like a path or an address, and the block does not declare this setting. "
            "Declare it in the settings of the block class: kind 'path', 'url', or 'text' for plain data."
        )


def _refuse_secret(text: str, where: str, *, always: bool) -> None:
    if always or _SECRET.match(text):
        raise InvalidConfig(
            f"{where} is a secret or refers to one of this host, which a config sent over a network may not do. The host's owner binds "
            "credentials to urls."
        )


def _url(url: Any, where: str, rules: HostRules) -> Any:
    if not isinstance(url, str) or not rules.knows_url(url):
        raise InvalidConfig(
            f"{where} is {str(url)[:100]!r}, which is not an endpoint known to this host. Its owner can add it to endpoints.yaml."
        )
    return url


def _path(text: str, where: str, rules: HostRules) -> str:
    names = [str(root) for root in rules.roots]
    if "://" not in text and not text.startswith("~") and "\x00" not in text:
        for root in rules.roots:
            path = (root / text).resolve()
            if path.is_relative_to(root.resolve()) and (len(rules.roots) == 1 or path.exists()):
                return str(path)
    raise InvalidConfig(f"{where} is {text[:100]!r}, which is not in a folder that this host allows. Available: {format_options(names)}.")


def legacy_world_folder(config: Mapping[str, Any]) -> str | None:
    """Return the folder in which earlier releases stored the states of a world, or None if it stores none: its world id."""
    world_id = config.get("world_id", "world")
    stores = "stages" in config and isinstance(config.get("storage"), Mapping) and _is_safe_name(world_id)
    return str(world_id) if stores else None


def _is_safe_name(name: Any) -> bool:
    return isinstance(name, str) and _SAFE_NAME.fullmatch(name) is not None and not name.endswith(".")


def _storage(storage: Mapping[str, Any], world_id: Any, rules: HostRules, own_folder: str | None) -> dict[str, Any]:
    """Return the storage settings with ``state_dir`` inside the world's folder on this host."""
    if own_folder is None:
        raise InvalidConfig(
            "config.storage is set, but only a deployed world can store its states on this host. Deploy it, or remove storage."
        )
    if not _is_safe_name(world_id):
        raise InvalidConfig(
            f"config.world_id is {str(world_id)[:100]!r}. For a world with storage on this host use letters, digits, '.', '_' and '-' only."
        )
    folder = storage.get("state_dir")
    if (
        not isinstance(folder, str)
        or PureWindowsPath(folder).drive
        or PurePosixPath(folder).is_absolute()
        or "://" in folder
        or "\x00" in folder
    ):
        raise InvalidConfig(
            f"config.storage.state_dir is {str(folder)[:100]!r}. On this host it must be a relative path inside the world's folder."
        )
    world_folder = (rules.worlds / own_folder).resolve()
    path = (world_folder / folder).resolve()
    if not path.is_relative_to(world_folder):
        raise InvalidConfig(f"config.storage.state_dir is {folder[:100]!r}, which is outside the world's folder.")
    return {**storage, "state_dir": str(path)}


def _check_depth(depth: int, where: str) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidConfig(f"{where[:100]}... is nested more than {_MAX_DEPTH} levels deep.")
