"""Checks whether ComfyUI's version and command line flags support the extension."""

from __future__ import annotations

import importlib

from yggdrasill.server_ext.comfy.compat.server import command_line

__all__ = ["MINIMUM_VERSION", "TESTED_VERSION", "comfy_version", "flags_problem", "version_note", "version_problem"]

MINIMUM_VERSION = (0, 26)
"""The first version that can interrupt one prompt by its id."""
TESTED_VERSION = (0, 33)
"""The newest version that the test suite runs."""


def comfy_version() -> str | None:
    """Return ComfyUI's version, or None if it does not define one."""
    try:
        version = importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return None
    return str(version)


def version_problem(version: str | None) -> str | None:
    """Return why the extension does not support this version of ComfyUI, as a message for its owner, or None."""
    minimum = _text(MINIMUM_VERSION)
    if version is None:
        return f"This ComfyUI does not define its version, so it is older than {minimum}, the oldest version that Yggdrasill supports. Update ComfyUI."
    if _numbers(version) >= MINIMUM_VERSION:
        return None
    return f"This is ComfyUI {version}, but Yggdrasill requires {minimum} or later. Update ComfyUI, or remove Yggdrasill from custom_nodes."


def version_note(version: str | None) -> str | None:
    """Return a note for the owner of a ComfyUI that is newer than every tested version, or None."""
    if version is None or _numbers(version) <= TESTED_VERSION:
        return None
    return f"This is ComfyUI {version}; Yggdrasill is tested with {_text(MINIMUM_VERSION)} to {_text(TESTED_VERSION)}."


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; text without digits counts as 0."""
    numbers = []
    for part in version.strip().removeprefix("v").split(".")[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits) if digits else 0)
    return tuple(numbers)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def flags_problem() -> str | None:
    """Return what ComfyUI's command line flags imply for an endpoint that serves several graphs, as a warning for its owner, or None."""
    args = command_line()
    if args.cache_lru > 0 or len(args.cache_ram) > 1:
        return None
    return (
        "With the current flags ComfyUI unloads the models of one graph when another one runs. To keep the models of several served graphs, start "
        "ComfyUI with '--cache-lru 50', or with '--cache-ram 4 4' (GiB of memory to keep free)."
    )
