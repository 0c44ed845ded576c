"""Files of the registry: endpoints.yaml and the secrets.yaml beside it, written completely or not at all; leading comments are
preserved.
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

__all__ = ["HEADER", "read_secrets", "secrets_path", "write_registry", "write_secrets"]

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


def write_registry(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write an endpoints.yaml. Comment lines at the top of an existing file are preserved.

    Raises:
        StorageFailed
    """
    import yaml

    file = Path(path)
    head = _comments(file) or HEADER
    lines = []
    for section in ("endpoints", "graphs"):
        entries = document.get(section) or {}
        lines.append(f"{section}:" if entries else f"{section}: {{}}")
        lines += [f"  {_key(name)}: {_flow(entry, yaml)}" for name, entry in entries.items()]
    lines.append(f"default: {_flow(document.get('default', 'local'), yaml)}")
    write_file(file, (head + "\n".join(lines) + "\n").encode("utf-8"), durable=True)


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
