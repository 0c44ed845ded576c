"""Files of the registry: endpoints.yaml and the secrets.yaml beside it, written completely or not at all.

endpoints.yaml is also written by hand, so a change replaces the lines of the entries that it is about, and no others.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, StorageFailed
from yggdrasill.foundation.config import read_document
from yggdrasill.values.files import write_file

__all__ = ["HEADER", "edit_registry", "read_secrets", "secrets_path", "write_registry", "write_secrets"]

HEADER = "# Which graph runs where. A key under graphs is a graph id or a path stage/pipeline/graph.\n"
_PLAIN = re.compile(r"[A-Za-z_][\w.\-]*")


def secrets_path(path: str | Path) -> Path:
    """Return the path of the secrets.yaml that belongs to an endpoints.yaml."""
    return Path(path).parent / "secrets.yaml"


def read_secrets(path: Path) -> dict[str, str]:
    """Return tokens by endpoint name; empty if the file does not exist.

    Raises:
        InvalidConfig: not a mapping of texts, or readable by others.
    """
    if not path.exists():
        return {}
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise InvalidConfig(f"{str(path)!r} can be read by others; restrict it to your user: chmod 600 {path}", path=str(path))
    try:
        document = read_document(path)
    except InvalidConfig:
        # The original message would show the line, and with it a token.
        raise InvalidConfig(
            f"{str(path)!r} is not a YAML mapping of endpoint names to tokens; its text is not shown", path=str(path)
        ) from None
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in document.items()):
        raise InvalidConfig(f"{str(path)!r} must map endpoint names to tokens, each a text", path=str(path))
    return document


def write_secrets(path: Path, secrets: Mapping[str, str]) -> None:
    """Write tokens to a file that only its owner can read (mode 0600), or remove the file if there are no tokens.

    Raises:
        StorageFailed
    """
    import yaml

    if not secrets:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(yaml.safe_dump(dict(secrets), allow_unicode=True))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageFailed(
            f"cannot write {str(path)!r}: {error.strerror or error}; the previous file is unchanged", path=str(path)
        ) from error


def write_registry(path: str | Path, document: Mapping[str, Any], text: str | None = None) -> None:
    """Write an endpoints.yaml: ``text`` if given, else the document, below the comment lines at the top of an existing file.

    Raises:
        StorageFailed
    """
    import yaml

    file = Path(path)
    if text is not None:
        write_file(file, text.encode("utf-8"), durable=True)
        return
    head = _comments(file) or HEADER
    lines = []
    for section in ("endpoints", "graphs"):
        entries = document.get(section) or {}
        lines.append(f"{section}:" if entries else f"{section}: {{}}")
        lines += [f"  {_key(name)}: {_flow(entry, yaml)}" for name, entry in entries.items()]
    lines.append(f"default: {_flow(document.get('default', 'local'), yaml)}")
    write_file(file, (head + "\n".join(lines) + "\n").encode("utf-8"), durable=True)


def edit_registry(text: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the text of an endpoints.yaml with the entries changed that differ between two documents; all other lines stay as they are.

    ``before`` is the document of the text. Return None if the text has another layout than a block mapping of sections; a caller must check
    that the result has the document ``after``.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return None
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    sections = {key.value: (key, value) for key, value in root.value}
    edits: list[tuple[int, int, list[str]]] = []
    for name in ("endpoints", "graphs"):
        old, new = before.get(name) or {}, after.get(name) or {}
        if old == new:
            continue
        if name not in sections:
            edits.append((len(lines), len(lines), [f"{name}:\n", *_entry_lines(new, "  ", yaml)]))
        else:
            edits += _section_edits(lines, *sections[name], old, new, yaml)
    if before.get("default") != after.get("default"):
        line = f"default: {_flow(after.get('default'), yaml)}\n"
        key, value = sections.get("default", (None, None))
        span = (len(lines), len(lines)) if key is None else (key.start_mark.line, _last_line(value) + 1)
        edits.append((*span, [line]))
    for start, end, replacement in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[start:end] = replacement
    return "".join(lines)


def _section_edits(
    lines: list[str], key: Any, value: Any, old: Mapping[str, Any], new: Mapping[str, Any], yaml: Any
) -> list[tuple[int, int, list[str]]]:
    """Return the edits of one section as first line, line after the last, and the lines that replace them."""
    first, end = key.start_mark.line, _last_line(value) + 1
    if not isinstance(value, yaml.MappingNode) or value.flow_style or not value.value:
        return [(first, end, [f"{key.value}:\n" if new else f"{key.value}: {{}}\n", *_entry_lines(new, "  ", yaml)])]
    edits: list[tuple[int, int, list[str]]] = []
    indent = " " * value.value[0][0].start_mark.column
    for entry_key, entry in value.value:
        name, start, last = str(entry_key.value), entry_key.start_mark.line, _last_line(entry)
        if name not in new:
            edits.append((start, last + 1, []))
        elif old.get(name) != new[name]:
            comment = lines[last][entry.end_mark.column :] if entry.end_mark.line == last else "\n"
            edits.append((start, last + 1, [f"{indent}{_key(name)}: {_flow(new[name], yaml)}{comment}"]))
    added = {name: entry for name, entry in new.items() if name not in old}
    edits.append((end, end, _entry_lines(added, indent, yaml)))
    if not new:
        colon = lines[first].index(":", key.end_mark.column) + 1
        edits.append((first, first + 1, [f"{lines[first][:colon]} {{}}{lines[first][colon:]}"]))
    return edits


def _entry_lines(entries: Mapping[str, Any], indent: str, yaml: Any) -> list[str]:
    return [f"{indent}{_key(name)}: {_flow(entry, yaml)}\n" for name, entry in entries.items()]


def _last_line(node: Any) -> int:
    """Return the last line of a node. The end of a block mapping in YAML includes the comments after it, which belong to the next entry."""
    if isinstance(node.value, list) and node.value and not node.flow_style:
        return max(_last_line(part) for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
    mark = node.end_mark
    return int(mark.line if mark.column or mark.line == node.start_mark.line else mark.line - 1)


def _comments(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    comments = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        comments.append(line + "\n")
    return "".join(comments)


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _flow(value: Any, yaml: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
