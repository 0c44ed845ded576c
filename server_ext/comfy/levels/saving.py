"""Saves configs as files in the data folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation.kinds import kind_of
from yggdrasill.server_ext.comfy.levels.host_paths import data_folder
from yggdrasill.values.files import write_file

__all__ = ["save_config"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(yaml|yml|json)")


def save_config(config: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Write a config below ``configs`` in the data folder, replacing a file of that name. Return the file's name and text.

    Raises:
        InvalidArgument: the name is not valid. StorageFailed: the file is unchanged.
    """
    kind = kind_of(config, "graph")
    file = name.strip() or f"{kind.id_of(config)}.yaml"
    if not _NAME.fullmatch(file):
        raise InvalidArgument(
            f"{file[:100]!r} is not a valid file name. Use letters, digits, '.', '_' and '-', and end it with .yaml or .json."
        )
    text = json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"
    if not file.endswith(".json"):
        from yaml import safe_dump

        text = safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
    folder = data_folder() / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / file, text.encode("utf-8"))
    return file, text
