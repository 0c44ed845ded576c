"""The entry from ComfyUI into the extension. It checks ComfyUI's version before anything of ComfyUI is imported."""

from __future__ import annotations

from yggdrasill.errors import UnsupportedVersion
from yggdrasill.server_ext.comfy import host_api

__all__ = ["check_version"]


def check_version() -> None:
    """Check that the extension supports this ComfyUI. ComfyUI's loader writes the message of an error to its log.

    Raises:
        UnsupportedVersion: this ComfyUI is too old.
    """
    problem = host_api.version_problem(host_api.comfy_version())
    if problem is not None:
        raise UnsupportedVersion(problem)
