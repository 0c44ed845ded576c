"""A script for the Python of ComfyUI: which lines of a requirements text this Python does not meet.

It reads the text from standard input and prints a JSON list of ``[requirement, reason]``. It needs the standard library, and compares versions
with the package ``packaging`` or the copy of it in pip; without both, only exact versions are compared.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from typing import Any

__all__ = ["unmet"]

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*([^;@]*)(@[^;]*)?(?:;(.*))?")
_EXACT = re.compile(r"==\s*([^\s,*]+)")


def _packaging() -> tuple[Any, Any] | None:
    """Return the class of requirements and its error, if they are installed."""
    for name in ("packaging", "pip._vendor.packaging"):
        try:
            module = importlib.import_module(f"{name}.requirements")
        except ImportError:
            continue
        return module.Requirement, module.InvalidRequirement
    return None


def unmet(text: str) -> list[tuple[str, str]]:
    """Return ``(requirement, reason)`` for every line that is not met. Options, files and comments are passed over."""
    found, tools = [], _packaging()
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        requirement = re.sub(r"(^|\s)#.*$", "", line).strip()
        requirement = re.sub(r"\s--(hash|config-settings)\b.*$", "", requirement)
        if not requirement or requirement.startswith("-"):
            continue
        reason = _reason(requirement, tools)
        if reason is not None:
            found.append((requirement, reason))
    return found


def _reason(requirement: str, tools: tuple[Any, Any] | None) -> str | None:
    parts = _LINE.fullmatch(requirement)
    if parts is None:
        return None  # a file or a url without a name
    name, versions = parts[1], parts[2].strip()
    specifier: Any = None
    if tools is not None:
        try:
            parsed = tools[0](requirement)
        except tools[1]:
            return "is not a valid requirement"
        if parsed.marker is not None and not parsed.marker.evaluate():
            return None
        specifier = parsed.specifier
    try:
        present = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
    if specifier is not None:
        return None if specifier.contains(present, prereleases=True) else f"version {present} is installed"
    exact = _EXACT.fullmatch(versions)
    return None if exact is None or exact[1] == present else f"version {present} is installed"


if __name__ == "__main__":
    print(json.dumps(unmet(sys.stdin.read())))  # noqa: T201 - the result
