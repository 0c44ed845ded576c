"""Routes for the costs of the last run with placed parts: figures per endpoint, and a timeline as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from yggdrasill.draw.timeline import Span, draw_timeline
from yggdrasill.errors import UnknownName
from yggdrasill.server_ext.comfy.editor.route_guard import json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context

__all__ = ["figures", "run", "timeline"]

_KINDS = ("compute", "transfer", "wait")
_MOVED = ("bytes_sent", "bytes_received", "bytes_direct")


async def run(request: web.Request) -> web.Response:
    """Answer GET /run: see `figures`; ``{"places": []}`` before the first run."""
    last = extension_context().placement.timeline.last()
    return json_answer({"places": [], "seconds": 0.0} if last is None else figures(last))


async def timeline(request: web.Request) -> web.Response:
    """Answer GET /timeline?theme=dark: the last run as SVG, in ``{"svg"}``.

    Raises:
        UnknownName: no placed part has run yet.
    """
    last = extension_context().placement.timeline.last()
    if last is None or not last["calls"]:
        raise UnknownName("No part has run on an endpoint since this ComfyUI was started. Place a part of a workflow and run it.")
    spans = [
        Span(call["endpoint"], call["part"], span["kind"], span["start"], max(span["start"], span["end"]))
        for call in last["calls"]
        for span in call["spans"]
    ]
    theme = request.query.get("theme", "auto")
    return json_answer({"svg": draw_timeline(spans, title="Last run", theme=theme)})


def figures(last: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"places": [{"name", "compute", "transfer", "wait", "total", "bytes"}], "seconds"}``: seconds and bytes by endpoint.

    The last ``seconds`` is the time from the start of the first call to the end of the last one.
    """
    places: dict[str, dict[str, Any]] = {}
    for call in last["calls"]:
        place = places.setdefault(call["endpoint"], {"name": call["endpoint"], **dict.fromkeys(_KINDS, 0.0), "bytes": 0})
        for span in call["spans"]:
            place[span["kind"]] += span["end"] - span["start"]
        place["bytes"] += sum(call[moved] for moved in _MOVED)
    for place in places.values():
        place["total"] = sum(place[kind] for kind in _KINDS)
    starts, ends = [call["started"] for call in last["calls"]], [call["finished"] for call in last["calls"]]
    return {"places": list(places.values()), "seconds": max(ends) - min(starts) if starts else 0.0}
