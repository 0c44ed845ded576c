"""Which ids can be file names, on every system."""

from __future__ import annotations

import re
from collections.abc import Iterable

from yggdrasill.errors import InvalidArgument

__all__ = ["file_name", "file_names"]

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.+$|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def file_names(word: str, child_ids: Iterable[str]) -> dict[str, str]:
    """File names by id, each its own also where upper and lower case are one."""
    names: dict[str, str] = {}
    for child_id in child_ids:
        other = names.setdefault(file_name(word, child_id).casefold(), child_id)
        if other != child_id:
            raise InvalidArgument(
                f"{word} ids {other!r} and {child_id!r} would be one file on some systems; rename one or use format='single'"
            )
    return {child_id: child_id for child_id in names.values()}


def file_name(word: str, child_id: str) -> str:
    """``child_id`` if it can be a file name on every system.

    Raises:
        InvalidArgument: it has a path separator or another character some system refuses.
    """
    if _UNSAFE.search(child_id):
        raise InvalidArgument(
            f"{word} id {child_id!r} cannot be a file name (path separators and <>:\"|?* are refused); rename it or use format='single'"
        )
    return child_id
