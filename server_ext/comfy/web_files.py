"""The editor's modules, which its page loads when it first needs them.

ComfyUI loads every script under ``WEB_DIRECTORY`` with the page, so only the beginning of the extension stands there. The path of
each file ends with ``.js``, for which ComfyUI forbids the browser to keep old ones.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

__all__ = ["WEB_PATH", "add_web_files"]

WEB_PATH = "/yggdrasill/web"


def add_web_files(router: web.UrlDispatcher) -> None:
    """Let ComfyUI's router give the files of the folder ``web``."""
    router.add_static(WEB_PATH, Path(__file__).parents[2] / "web")
