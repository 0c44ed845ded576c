"""What a config that came over a network may say: no code, no path, secret or address of this host that its owner did not allow.

``ref`` is refused by the levels themselves (``allow_ref=False``); here is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options

__all__ = ["HostRules", "check_config"]

_DEPTH = 100
_PATH_KEY = re.compile(r"(^|_)(path|file|filename|dir|directory|folder)$|^checkpoint_ref$", re.IGNORECASE)
_URL_KEY = re.compile(r"(^|_)(url|uri|base|endpoint|host)$", re.IGNORECASE)
_SECRET_KEY = re.compile(r"_env$", re.IGNORECASE)
_SECRET = re.compile(r"^\s*(env|secret|secrets)\s*:\s*\S", re.IGNORECASE)
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class HostRules:
    """What this host allows: ``roots`` that checkpoint paths may lie under, the folder of worlds, and urls it knows."""

    roots: Sequence[Path]
    worlds: Path
    knows_url: Callable[[str], bool]


def check_config(config: Mapping[str, Any], rules: HostRules) -> dict[str, Any]:
    """A copy of ``config`` to build from, its allowed paths made absolute.

    Raises:
        InvalidConfig: it names a path outside the roots, a secret, or an address the host does not know; or it nests too deeply.
    """
    checked: dict[str, Any] = _structure(config, "config", rules, 0)
    if "stages" in checked:
        if isinstance(checked.get("checkpoint_ref"), str):
            checked["checkpoint_ref"] = _path(checked["checkpoint_ref"], "config.checkpoint_ref", rules)
        if isinstance(checked.get("storage"), dict):
            checked["storage"] = _storage(checked["storage"], checked.get("world_id", "world"), rules)
    return checked


def _structure(value: Any, where: str, rules: HostRules, depth: int) -> Any:
    """Levels, entries and nodes: everything but the nodes' own configs is structure."""
    _check_depth(depth, where)
    if isinstance(value, Mapping):
        is_node = "block_type" in value and isinstance(value.get("config"), Mapping)
        found = {}
        for key, item in value.items():
            place = f"{where}.{key}"
            if is_node and key == "config":
                found[key] = _node_value(item, place, rules, depth + 1)
            elif key == "endpoint_url" and item is not None:
                found[key] = _url(item, place, rules)
            else:
                found[key] = _structure(item, place, rules, depth + 1)
        return found
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
                f"{where} names a secret of this host; a config that comes over a network may not. Its owner binds credentials to urls"
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
            f"{where} names a secret of this host; a config that comes over a network may not. Its owner binds credentials to urls"
        )


def _url(url: Any, where: str, rules: HostRules) -> Any:
    if not isinstance(url, str) or not rules.knows_url(url):
        raise InvalidConfig(f"{where} is {str(url)[:100]!r}, no endpoint this host knows; its owner can add it to endpoints.yaml")
    return url


def _path(text: str, where: str, rules: HostRules) -> str:
    names = [str(root) for root in rules.roots]
    if "://" not in text and not text.startswith("~") and "\x00" not in text:
        for root in rules.roots:
            path = (root / text).resolve()
            if path.is_relative_to(root.resolve()) and (len(rules.roots) == 1 or path.exists()):
                return str(path)
    raise InvalidConfig(
        f"{where} is {text[:100]!r}, which is under none of the folders this host serves files from ({format_options(names)})"
    )


def _storage(storage: Mapping[str, Any], world_id: Any, rules: HostRules) -> dict[str, Any]:
    """The world's own folder below the host's folder of worlds."""
    if not isinstance(world_id, str) or not _SAFE_NAME.fullmatch(world_id) or world_id.endswith("."):
        raise InvalidConfig(
            f"config.world_id is {str(world_id)[:100]!r}; a world with storage on this host needs letters, digits, '.', '_' or '-'"
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
            f"config.storage.state_dir is {str(folder)[:100]!r}; on this host it must be relative, and lies in the world's own folder"
        )
    home = (rules.worlds / world_id).resolve()
    path = (home / folder).resolve()
    if not path.is_relative_to(home):
        raise InvalidConfig(f"config.storage.state_dir is {folder[:100]!r}, which leaves the world's own folder")
    return {**storage, "state_dir": str(path)}


def _check_depth(depth: int, where: str) -> None:
    if depth > _DEPTH:
        raise InvalidConfig(f"{where[:100]}... nests more than {_DEPTH} deep, which is no config")
