"""`text/architect`: from the announced event to the configuration that realizes it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from yggdrasill.blocks.procedural.configuration import KEYS, read_terrain
from yggdrasill.blocks.text.chance import seed_of
from yggdrasill.blocks.text.episodes import last_episode, require_mapping, text_of
from yggdrasill.blocks.text.themes import THEMES, Mention, find_themes
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType, current_run

__all__ = ["Architect", "begin", "change"]

_MOST_FEATURES = 48


class Architect(AbstractBaseBlock):
    """Reads the words of block 1 and writes block 2, a terrain configuration.

    In: ``happening``, a dict with ``text`` or a text; ``world``, the world's content, optional. Out: ``configuration``
    dict (`procedural.configuration.KEYS`). Without a chronicle, the text and the world's ``initial_story`` describe a new
    world. With a chronicle, the text changes its last configuration, so the seed, and with it the world, stays the same.
    The seed of a new world is that of the config, else of the world (``seed``), else one drawn from the run.
    Config: any key of the configuration (``size``, ``seed``, ...) keeps that value.
    """

    block_type = "text/architect"
    settings = tuple(
        ConfigField(
            name, "integer" if key.whole else "number", None, key.low, key.high, meaning=", ".join(filter(None, (key.meaning, key.unit)))
        )
        for name, key in KEYS.items()
    )

    def declare_ports(self) -> Iterable[Port]:
        yield Port("happening", PortDirection.IN, PortType.ANY)
        yield Port("world", PortDirection.IN, PortType.DICT, optional=True)
        yield Port("configuration", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        world = require_mapping(inputs.get("world"), "world", self.block_type)
        fixed = {name: value for name, value in self.config.items() if name in KEYS or name == "features"}
        text = text_of(inputs["happening"])
        last = last_episode(world)
        before = last.get("configuration") if last else None
        if isinstance(before, Mapping):
            configuration = copy.deepcopy(dict(before))
            change(configuration, find_themes(text), seed_of(text, len(world.get("chronicle", ()))))
        else:
            story = str(world.get("initial_story") or world.get("story") or "")
            words = text if story in text else f"{story}. {text}"
            configuration = begin(find_themes(words), self._seed(world, story or text))
        configuration.update(copy.deepcopy(fixed))
        read_terrain(configuration, self.block_type)
        return {"configuration": configuration}

    def _seed(self, world: Mapping[str, Any], story: str) -> int:
        for source in (self.config, world):
            if source.get("seed") is not None:
                return int(source["seed"])
        return seed_of(current_run().derived_seed("world"), story) % 2**31


def begin(mentions: list[Mention], seed: int) -> dict[str, Any]:
    """Return the configuration of a new world by the mentions; two mentions of one key give the value halfway between."""
    configuration: dict[str, Any] = {name: int(key.default) if key.whole else key.default for name, key in KEYS.items()}
    configuration["seed"] = seed
    rng = np.random.Generator(np.random.PCG64(seed))
    configuration["continents"] = int(rng.integers(2, 5))
    configuration["wind"] = round(float(rng.uniform(0.0, 360.0)))
    configuration["features"] = []
    mentioned: set[str] = set()
    for mention in mentions:
        for name, value in THEMES[mention.theme].first.items():
            share = 0.5 if name in mentioned else min(mention.strength, 1.2)
            _set(configuration, name, configuration[name] + (value - configuration[name]) * share)
            mentioned.add(name)
        if THEMES[mention.theme].feature and (mention.place or not THEMES[mention.theme].first):
            configuration["features"].append(_feature(mention, seed))
    return configuration


def change(configuration: dict[str, Any], mentions: list[Mention], seed: int) -> None:
    """Change ``configuration`` in place by the mentions; every episode also ages it a little."""
    _set(configuration, "erosion", float(configuration.get("erosion", KEYS["erosion"].default)) + 0.006)
    for mention in mentions:
        for name, value in THEMES[mention.theme].later.items():
            _set(configuration, name, float(configuration.get(name, KEYS[name].default)) + value * mention.strength)
        if THEMES[mention.theme].feature:
            configuration["features"] = [*configuration.get("features", []), _feature(mention, seed)][-_MOST_FEATURES:]


def _set(configuration: dict[str, Any], name: str, value: float) -> None:
    key = KEYS[name]
    value = min(max(value, key.low), key.high)
    configuration[name] = round(value) if key.whole else round(value, 4)


def _feature(mention: Mention, seed: int) -> dict[str, Any]:
    kind, height, radius = THEMES[mention.theme].feature or ("range", 1000.0, 0.1)
    rng = np.random.Generator(np.random.PCG64(seed_of(seed, mention.theme)))
    x, y = mention.place or (float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.3, 0.7)))
    grow = mention.strength**0.5
    return {
        "kind": kind,
        "x": round(min(max(x + float(rng.uniform(-0.07, 0.07)), 0.0), 1.0), 4),
        "y": round(min(max(y + float(rng.uniform(-0.07, 0.07)), 0.0), 1.0), 4),
        "radius": round(radius * grow * float(rng.uniform(0.85, 1.15)), 4),
        "height": round(height * grow * float(rng.uniform(0.85, 1.1)), 1),
        "angle": round(float(rng.uniform(0.0, 180.0)), 1),
    }
