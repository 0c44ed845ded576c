"""Security checks of configs that arrive over a network: no paths, secrets or addresses of this host that its owner did not allow.

The levels themselves refuse ``ref`` (``allow_ref=False``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options

__all__ = ["HostRules", "check_config", "legacy_world_folder"]

_MAX_DEPTH = 100
_PATH_KEY = re.compile(r"(^|_)(path|file|filename|dir|directory|folder)$|^checkpoint_ref$", re.IGNORECASE)
_URL_KEY = re.compile(r"(^|_)(url|uri|base|endpoint|host)$", re.IGNORECASE)
_SECRET_KEY = re.compile(r"_env$", re.IGNORECASE)
_SECRET = re.compile(r"^\s*(env|secret|secrets)\s*:\s*\S", re.IGNORECASE)
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class HostRules:
    """What configs may use on this host: paths under ``roots``, one folder per deployment under ``worlds``, and known endpoint urls."""

    roots: Sequence[Path]
    worlds: Path
    knows_url: Callable[[str], bool]


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
                checked[key] = _node_value(item, path, rules, depth + 1)
            elif key == "endpoint_url" and item is not None:
                checked[key] = _url(item, path, rules)
            else:
                checked[key] = _structure(item, path, rules, depth + 1)
        return checked
    if isinstance(value, list):
        return [_structure(item, f"{where}[{index}]", rules, depth + 1) for index, item in enumerate(value)]
    return value


def _node_value(value: Any, where: str, rules: HostRules, depth: int) -> Any:
    _check_depth(depth, where)
    if isinstance(value, Mapping):
        return {key: _node_entry(str(key), item, f"{where}.{key}", rules, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_node_value(item, f"{where}[{index}]", rules, depth + 1) for index, item in enumerate(value)]
    if isinstance(value, str):
        _refuse_secret(value, where)
    return value


def _node_entry(key: str, item: Any, where: str, rules: HostRules, depth: int) -> Any:
    if isinstance(item, str) and item:
        if _SECRET_KEY.search(key):
            raise InvalidConfig(
                f"{where} refers to a secret of this host, which a config sent over a network may not do. The host's owner binds credentials to urls."
            )
        _refuse_secret(item, where)
        if _PATH_KEY.search(key):
            return _path(item, where, rules)
        if _URL_KEY.search(key) and "://" in item:
            return _url(item, where, rules)
    return _node_value(item, where, rules, depth)


def _refuse_secret(text: str, where: str) -> None:
    if _SECRET.match(text):
        raise InvalidConfig(
            f"{where} refers to a secret of this host, which a config sent over a network may not do. The host's owner binds credentials to urls."
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
    return world_id if "stages" in config and isinstance(config.get("storage"), Mapping) and _is_safe_name(world_id) else None


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
