"""`text/develop`: the announcement of the next episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from yggdrasill.blocks.text.chance import pick, seed_of
from yggdrasill.blocks.text.episodes import last_episode, measures_of, require_mapping, text_of
from yggdrasill.blocks.text.happenings import ACTION_OPENINGS, BEGINNINGS, FALLBACK_BEGINNING, HAPPENINGS
from yggdrasill.blocks.text.themes import find_themes
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType, current_run

__all__ = ["Develop", "choose_theme"]

_PARTS = (
    "the north",
    "the north-east",
    "the east",
    "the south-east",
    "the south",
    "the south-west",
    "the west",
    "the north-west",
    "the middle",
)


class Develop(AbstractBaseBlock):
    """Writes block 1 of the next episode from the world's content, which is unchanged.

    In: ``world`` dict, optional; ``action`` text, optional. Out: ``happening`` dict of ``episode`` (1 for the first),
    ``title``, ``text`` and ``action`` (None without one). The first episode has the world's ``initial_story``. Later the
    run's generator draws the event, with weights against extremes (drowned lands, frost, drought), and never the same theme
    twice within three episodes. An action replaces the drawn event.
    """

    block_type = "text/develop"
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("world", PortDirection.IN, PortType.DICT, optional=True)
        yield Port("action", PortDirection.IN, PortType.TEXT, optional=True)
        yield Port("happening", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        world = require_mapping(inputs.get("world"), "world", self.block_type)
        action = str(inputs.get("action") or "").strip() or None
        episode = int(last_episode(world).get("episode", 0)) + 1
        title, text = self._open(world, episode) if action is None or episode == 1 else ("", "")
        if action is not None:
            title = _headline(action)
            text = f"{text} {pick(ACTION_OPENINGS, episode, 'action')} {_sentence(action)}".strip()
        return {"happening": {"episode": episode, "title": title, "text": text, "action": action}}

    def _open(self, world: Mapping[str, Any], episode: int) -> tuple[str, str]:
        rng = current_run().rng("develop", episode)
        if episode == 1:
            story = str(world.get("initial_story") or world.get("story") or "").strip()
            turn = int(rng.integers(len(FALLBACK_BEGINNING)))
            return str(world.get("title") or BEGINNINGS[turn]), _sentence(story) if story else FALLBACK_BEGINNING[turn]
        theme = choose_theme(world, rng)
        where = _PARTS[int(rng.integers(len(_PARTS)))]
        titles, texts = HAPPENINGS[theme]
        told = sum(1 for entry in world.get("chronicle", ()) if theme in _themes(entry))
        start = seed_of(world.get("title"), theme)
        title = pick(titles, told, start).format(Where="the " + where[4:].title())
        return title, pick(texts, told, start).format(where=where)


def choose_theme(world: Mapping[str, Any], rng: np.random.Generator) -> str:
    """Return the next theme, drawn with weights that pull the world back from its extremes."""
    weights = dict.fromkeys(HAPPENINGS, 1.0) | {"comet": 0.35}
    measures = measures_of(last_episode(world).get("description")) or last_episode(world).get("measures") or {}
    for theme, name, sign, limit in (
        ("ebb", "land_share", -1, 0.25), ("flood", "land_share", 1, 0.42), ("warm", "mean_temperature", -1, 4.0),
        ("cold", "mean_temperature", 1, 21.0), ("rain", "mean_rainfall", -1, 500.0), ("drought", "mean_rainfall", 1, 1400.0),
    ):  # fmt: skip
        value = measures.get(name)
        if isinstance(value, int | float):
            weights[theme] *= 2.5 if sign * (value - limit) > 0 else 0.4 if sign * (value - limit) < -0.35 * abs(limit) else 1.0
    recent = {theme for entry in list(world.get("chronicle", ()))[-3:] for theme in _themes(entry)}
    for theme in recent & weights.keys():
        weights[theme] = 0.0
    names = sorted(weights)
    line = np.cumsum([weights[name] for name in names])
    if line[-1] <= 0.0:
        return names[int(rng.integers(len(names)))]
    return names[int(np.searchsorted(line, rng.random() * line[-1], side="right"))]


def _themes(entry: Any) -> set[str]:
    happening = entry.get("happening") if isinstance(entry, Mapping) else None
    return {mention.theme for mention in find_themes(text_of(happening))}


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else text + "."


def _headline(action: str) -> str:
    line = " ".join(action.split("\n", maxsplit=1)[0].rstrip(".!?").split())
    short = line if len(line) <= 60 else f"{line[:60].rsplit(' ', 1)[0]} …"
    return short[:1].upper() + short[1:]
