"""The one way from ComfyUI into the extension: its version is checked before anything of ComfyUI is imported."""

from __future__ import annotations

from yggdrasill.errors import UnsupportedVersion
from yggdrasill.server_ext.comfy import host_api

__all__ = ["check_version"]


def check_version() -> None:
    """Return if the extension works in this ComfyUI, whose loader writes the message of an error into its log.

    Raises:
        UnsupportedVersion: this ComfyUI is too old.
    """
    problem = host_api.version_problem(host_api.comfy_version())
    if problem is not None:
        raise UnsupportedVersion(problem)
