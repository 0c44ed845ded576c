"""Whether the extension can work in the ComfyUI around it, as far as its version and its flags tell."""

from __future__ import annotations

import importlib

__all__ = ["MINIMUM_VERSION", "comfy_version", "flags_problem", "version_problem"]

MINIMUM_VERSION = (0, 25)


def comfy_version() -> str | None:
    """The version text of the ComfyUI around this process, or None where it does not say."""
    try:
        version = importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return None
    return str(version)


def version_problem(version: str | None) -> str | None:
    """Why the extension cannot work in this version of ComfyUI, in words for its owner; None if it can."""
    wanted = ".".join(map(str, MINIMUM_VERSION))
    if version is None:
        return f"this ComfyUI does not say its version, so it is older than {wanted}, the oldest that Yggdrasill works with; update ComfyUI"
    numbers = []
    for part in version.strip().removeprefix("v").split(".")[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits) if digits else 0)
    if tuple(numbers) >= MINIMUM_VERSION:
        return None
    return (
        f"this is ComfyUI {version}, and Yggdrasill works with {wanted} and later; update ComfyUI, or remove Yggdrasill from custom_nodes"
    )


def flags_problem() -> str | None:
    """What the command line of this ComfyUI means for an endpoint that serves several graphs; None if nothing."""
    args = importlib.import_module("comfy.cli_args").args
    if args.cache_lru > 0 or len(args.cache_ram) > 1:
        return None
    return (
        "ComfyUI started like this forgets the models of one graph when another one runs; an endpoint that serves several graphs keeps them "
        "with '--cache-lru 50', or with '--cache-ram 4 4' (GiB of memory to keep free)"
    )
