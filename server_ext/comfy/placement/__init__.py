"""Runs parts of ordinary workflows at endpoints, from POST /prompt to the messages and the history.

All messages use the node ids of the posted prompt, as if every node ran locally.
"""

from __future__ import annotations

__all__: list[str] = []
