"""What a partition needs to know about this ComfyUI: traits of its node packs, and which texts name files of the user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yggdrasill.remote.model_names import is_model_file, same_path
from yggdrasill.remote.node_traits import TraitsTable, read_traits, shipped_traits
from yggdrasill.remote.partition.traits import HostFacts, is_place_input
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.model_files import model_files

__all__ = ["PACK_FILE", "USER_FILE", "LocalFacts", "names_user_file"]

USER_FILE = "node_traits.yaml"
"""The user's table, in the data folder of the extension."""
PACK_FILE = "yggdrasill_traits.yaml"
"""The table of a node pack, in the pack's folder."""

_ANNOTATION = re.compile(r" \[(input|output|temp)\]$")
_SUFFIX = re.compile(r"\.\w{1,8}$")
_PREFIX = re.compile(r"(?i)prefix")
_LONGEST = 1024
_OPTIONS = 40


class LocalFacts:
    """The facts of this ComfyUI. Tables are read again when their files change."""

    def __init__(self) -> None:
        self._packs: TraitsTable | None = None
        self._user: tuple[float, TraitsTable] = (0.0, TraitsTable())

    def facts(self) -> HostFacts:
        """Return the facts. The user's table has precedence over those of packs, and those over the shipped one.

        Raises:
            InvalidConfig, StorageFailed: the user's table is not valid.
        """
        table = shipped_traits() | self._pack_tables() | self._user_table()
        return HostFacts(table.nodes, table.types, names_user_file)

    def _pack_tables(self) -> TraitsTable:
        if self._packs is None:
            packs = TraitsTable()
            for folder in compat.pack_folders():
                for file in sorted(Path(folder).glob(f"*/{PACK_FILE}")):
                    with compat.shielded(f"the table {str(file)!r} could not be read"):
                        packs |= read_traits(file)
            self._packs = packs
        return self._packs

    def _user_table(self) -> TraitsTable:
        file = Path(compat.user_directory()) / "yggdrasill" / USER_FILE
        try:
            changed = file.stat().st_mtime
        except OSError:
            return TraitsTable()
        if self._user[0] != changed:
            self._user = changed, read_traits(file)
        return self._user[1]


def names_user_file(class_type: str, name: str, text: str) -> bool:
    """Return whether ``text`` at input ``name`` of a class names an existing file or folder of the user.

    Names below ComfyUI's input, output and temp folders count, also with an annotation such as ``[output]``; so do absolute paths, and
    paths relative to ComfyUI's folder. A word without separator or suffix counts only where the input's name or its options are files.
    """
    if not text.strip() or len(text) > _LONGEST or "\n" in text or "\0" in text or "://" in text:
        return False
    path = _ANNOTATION.sub("", text.strip())
    path = same_path(path) if os.sep == "/" else path
    if Path(path).is_absolute():
        return _is_there(Path(path))
    if _PREFIX.search(name) or not _exists(path, below_cwd="/" in same_path(path)):
        return False
    if is_model_file(text) and same_path(text) in {same_path(file) for files in model_files().values() for file in files}:
        return False
    if "/" in same_path(path) or _SUFFIX.search(path) or is_place_input(name):
        return True
    options = _options(class_type, name)
    return bool(options) and sum(_exists(str(option)) for option in options) * 2 > len(options)


def _exists(path: str, below_cwd: bool = False) -> bool:
    roots = [*compat.media_folders(), compat.temporary_folder()]
    if below_cwd:
        roots += [compat.base_folder(), Path.cwd()]
    return bool(path) and any(_is_there(root / path) for root in roots)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text that is too long, or not a name on this system
        return False


def _options(class_type: str, name: str) -> list[Any]:
    """Return the first options of a combo, or nothing."""
    with compat.shielded(f"the inputs of node class {class_type!r} could not be read"):
        node_class = compat.node_classes().get(class_type)
        inputs: dict[str, Any] = node_class.INPUT_TYPES() if node_class is not None else {}
        for group in ("required", "optional"):
            spec = (inputs.get(group) or {}).get(name)
            if spec is not None:
                choices = spec[0] if isinstance(spec[0], (list, tuple)) else (spec[1] if len(spec) > 1 else {}).get("options", ())
                return list(_first(choices))
    return []


def _first(choices: Iterable[Any]) -> Iterable[Any]:
    return (choice for index, choice in enumerate(choices) if index < _OPTIONS)
