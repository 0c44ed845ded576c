"""Drawing of a config of any kind: dispatch by the kind's ``drawing``, heading and legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.draw.config import Child, id_of, nested
from yggdrasill.draw.graph import draw_graph
from yggdrasill.draw.legend import Legend, framed
from yggdrasill.draw.levels import draw_box, draw_pipeline, draw_stage, summary_of
from yggdrasill.draw.palette import stylesheet
from yggdrasill.draw.places import Places
from yggdrasill.draw.svg import document
from yggdrasill.draw.world import draw_world
from yggdrasill.foundation.kinds import find_kind

__all__ = ["draw_config"]


def draw_config(config: Mapping[str, Any], *, places: Mapping[str, str] | None = None, title: str | None = None) -> str:
    """Return an SVG picture of a config of any kind, the same bytes for the same arguments.

    ``places`` says what runs where: a path of ids such as ``stage/pipeline/graph``, one of its ends, or one id, to a name such as
    ``local``. ``title`` replaces the id as heading. Ids may hold any text. `InvalidConfig` if the mapping describes no kind.
    """
    level, config = nested(config)
    name = id_of(config, level)
    legend = Legend(Places(places or {}, name))
    drawing = find_kind(level).drawing
    if drawing == "nodes":
        body = draw_graph(config, legend)
    elif drawing == "network":
        body = draw_pipeline(config, legend, level=level)
    elif drawing == "stage":
        body = draw_stage(config, legend)
    elif drawing == "ring":
        body = draw_world(config, legend)
    else:
        body = draw_box(config, legend, level)
    heading = title if title is not None else name
    caption = _caption(config, level, name)
    return document(framed(body, legend, heading=heading, caption=caption), name=f"{heading}: {caption}", style=stylesheet())


def _caption(config: Mapping[str, Any], level: str, name: str) -> str:
    if level == "world":
        stages = config.get("stages")
        count = len(stages) if isinstance(stages, Mapping) else 0
        return f"world · {count} stage{'' if count == 1 else 's'}"
    role = config.get("role") or config.get("graph_kind")
    return summary_of(Child(name, config, config), level) + (f" · {role}" if isinstance(role, str) else "")
