"""The entry from ComfyUI into the extension. It checks ComfyUI's version before anything of ComfyUI is imported."""

from __future__ import annotations

import logging

from yggdrasill.errors import UnsupportedVersion
from yggdrasill.server_ext.comfy import compat

__all__ = ["check_version"]

_LOG = logging.getLogger("yggdrasill.comfy")


def check_version() -> None:
    """Check that the extension supports this ComfyUI. ComfyUI's loader writes the message of an error to its log.

    Raises:
        UnsupportedVersion: this ComfyUI is too old.
    """
    version = compat.comfy_version()
    problem = compat.version_problem(version)
    if problem is not None:
        raise UnsupportedVersion(problem)
    note = compat.version_note(version)
    if note is not None:
        _LOG.warning("Yggdrasill: %s", note)
