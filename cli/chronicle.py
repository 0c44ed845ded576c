"""A world's chronicle as one HTML page: what should happen, the picture, what really happened, pass after pass."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from yggdrasill.stage import State
from yggdrasill.world import World

__all__ = ["chronicle_html"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 17px/1.55 Georgia, 'Times New Roman', serif; max-width: 46rem; margin: 3rem auto; padding: 0 1.2rem; }
h1 { font-size: 2rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; }
figure { margin: 1rem 0; } img { width: 100%; border-radius: 6px; }
.action { border-left: 3px solid #b5533c; padding-left: .8rem; font-style: italic; }
.label { font: 600 .72rem/1 system-ui, sans-serif; letter-spacing: .08em; text-transform: uppercase; opacity: .6; margin: 1.2rem 0 .3rem; }
"""


def chronicle_html(world: World, passes: Sequence[State], pictures: Mapping[int, Sequence[str]]) -> str:
    """The page; ``pictures`` names the image files of each pass, relative to it."""
    content = passes[-1].content if passes and isinstance(passes[-1].content, Mapping) else {}
    title = str(content.get("title") or world.world_id)
    told = {entry.get("episode"): entry for entry in content.get("chronicle", []) if isinstance(entry, Mapping)}
    sections = [_section(state, pictures.get(state.passes, ()), told.get(_episode(state))) for state in passes]
    story = content.get("story") or content.get("initial_story") or world.description
    begins = bool(passes) and str(story) in _words(passes[0][1])
    opening = f"<p>{html.escape(str(story))}</p>" if story and not begins else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>{opening}\n{''.join(sections)}</body></html>\n"
    )


def _episode(state: State) -> Any:
    opening = state[1]
    return opening.get("episode", state.passes) if isinstance(opening, Mapping) else state.passes


def _section(state: State, pictures: Sequence[str], told: Mapping[str, Any] | None) -> str:
    opening = state[1]
    heading = opening.get("title") if isinstance(opening, Mapping) else None
    parts = [f"<h2>{html.escape(str(_episode(state)))}. {html.escape(str(heading or 'Episode'))}</h2>"]
    if isinstance(opening, Mapping) and opening.get("action") and opening["action"] != heading:
        parts.append(f'<p class="action">{html.escape(str(opening["action"]))}</p>')
    parts.append(_told("What should happen", opening))
    parts += [f'<figure><img src="{html.escape(name)}" alt="The map of pass {state.passes}"></figure>' for name in pictures]
    if told is not None:
        parts.append(_told("What was seen", told.get("description")))
        parts.append(_told("What happened", told.get("account")))
    return "".join(parts) + "\n"


def _told(label: str, value: Any) -> str:
    text = _words(value)
    return f'<p class="label">{label}</p><p>{html.escape(text)}</p>' if text else ""


def _words(value: Any) -> str:
    """The words of a block: a text, or what a dict holds under ``text`` or ``words``."""
    text = value.get("text") or value.get("words") if isinstance(value, Mapping) else value
    return str(text) if text else ""
