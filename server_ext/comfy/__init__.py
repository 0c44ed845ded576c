"""The host inside ComfyUI: jobs run through ComfyUI's queue, values are ComfyUI's, and its web server serves the routes of an endpoint.

The terms are those of ``docs/glossary.md``: a *prompt* is a workflow in API format, a *part* the nodes that one placement names, a *call* a
node that runs part of a prompt at an endpoint, a *job* one remote execution, and a *nested* run one that ComfyUI executes inside a node
that waits.
"""

from __future__ import annotations

__all__: list[str] = []
