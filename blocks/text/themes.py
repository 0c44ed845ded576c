"""Themes: events of a world, with the words that mention them, their changes of a configuration, and their expected measures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["THEMES", "Mention", "Theme", "find_place", "find_themes"]


@dataclass(frozen=True, slots=True)
class Theme:
    """One event that a text can mention.

    ``words`` is a regular expression; ``first`` are values for a new world, ``later`` changes of an existing
    one; ``feature`` is a kind of `procedural.configuration.FEATURE_KINDS` that rises or falls, with its height in
    metres and its radius; ``expects`` names measures and the direction (+1, -1) in which one of them should change.
    """

    words: str
    first: dict[str, float] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)
    feature: tuple[str, float, float] | None = None
    expects: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Mention:
    """A theme found in a text; ``strength`` is 1, more after a word such as "great", less after one such as "small"."""

    theme: str
    strength: float
    place: tuple[float, float] | None


#: Searched in this order; words matched by one theme are not matched by the next.
THEMES: dict[str, Theme] = {
    "flood": Theme(
        r"floods?|flooded|flooding|deluges?|drown\w*|tidal waves?|high tides?|(?:sea|seas|ocean|waters?) (?:rises?|rose|rising|swells?|climbs?)|rising (?:sea|seas|waters?)",
        {"sea_level": 60.0},
        {"sea_level": 110.0},
        expects=(("land_share", -1),),
    ),
    "ebb": Theme(
        r"ebb\w*|(?:sea|seas|ocean|waters?) (?:falls?|fell|falling|sinks?|sank|retreats?|retreated|withdraws?|withdrew|recedes?)|(?:falling|retreating) (?:sea|seas|waters?)",
        {"sea_level": -60.0},
        {"sea_level": -110.0},
        expects=(("land_share", 1),),
    ),
    "volcano": Theme(
        r"volcan\w*|erupt\w*|lava|magma|fire mountains?",
        {},
        {},
        ("volcano", 4200.0, 0.07),
        (("peak", 1), ("mean_height_m", 1), ("land_share", 1)),
    ),
    "comet": Theme(r"comets?|meteor\w*|asteroids?|falling stars?|craters?", {}, {}, ("crater", 1300.0, 0.075)),
    "sinking": Theme(
        r"subsid\w*|collaps\w*|(?:land|ground|earth|plains?) (?:sinks?|sank|sinking)|rifts?|chasms?",
        {},
        {},
        ("basin", 700.0, 0.13),
        (("mean_height_m", -1), ("land_share", -1)),
    ),
    "uplift": Theme(
        r"earthquakes?|quakes?|uplift\w*|upheavals?|tremors?|new (?:range|ranges|mountains?)|(?:land|ground|earth) (?:rises?|rose|rising|lifts?|buckles?)",
        {"relief": 4200.0},
        {},
        ("range", 2300.0, 0.13),
        (("mean_height_m", 1), ("peak", 1), ("land_share", 1)),
    ),
    "archipelago": Theme(
        r"archipelagos?|islands|isles|atolls?|skerries",
        {"continents": 14.0, "land": 0.2, "roughness": 0.75, "warp": 0.7},
        {"sea_level": 60.0},
    ),
    "island": Theme(r"island|isle", {"continents": 2.0, "land": 0.18}, {}),
    "continent": Theme(r"continents?|mainland|supercontinent|pangaea", {"continents": 2.0, "land": 0.46}, {"sea_level": -40.0}),
    "mountains": Theme(
        r"mountain\w*|alpine|alps|peaks?|summits?|highlands?|ranges?",
        {"relief": 4000.0, "mountains": 0.72},
        {},
        ("range", 1900.0, 0.12),
        (("mean_height_m", 1), ("peak", 1), ("land_share", 1)),
    ),
    "plains": Theme(
        r"plains?|lowlands?|flat|prairies?|steppes?|meadows?", {"relief": 1900.0, "mountains": 0.2, "roughness": 0.4}, {"relief": -350.0}
    ),
    "drought": Theme(
        r"drought\w*|dry|drier|parched|thirst\w*|desert\w*|dunes?|arid|sands?",
        {"rainfall": 330.0, "temperature": 22.0},
        {"rainfall": -260.0, "temperature": 1.2},
        expects=(("mean_rainfall", -1),),
    ),
    "cold": Theme(
        r"cold\w*|winters?|frost\w*|frozen|freez\w*|ice|icy|glaci\w*|snow\w*|arctic|polar",
        {"temperature": 1.0},
        {"temperature": -4.5, "sea_level": -25.0},
        expects=(("mean_temperature", -1),),
    ),
    "warm": Theme(
        r"warm\w*|thaw\w*|summers?|hot|heat\w*|tropic\w*|melt\w*",
        {"temperature": 24.0},
        {"temperature": 3.5, "sea_level": 15.0},
        expects=(("mean_temperature", 1),),
    ),
    "rain": Theme(
        r"rain\w*|monsoons?|storms?|stormy|wet\w*|forests?|jungles?|green\w*|lush",
        {"rainfall": 1500.0},
        {"rainfall": 280.0},
        expects=(("mean_rainfall", 1),),
    ),
    "rivers": Theme(
        r"rivers?|streams?|deltas?|valleys?",
        {"rainfall": 1250.0, "erosion": 0.5},
        {"rainfall": 140.0, "erosion": 0.06},
        expects=(("rivers_km", 1), ("river_km", 1)),
    ),
    "erosion": Theme(
        r"erosion|erod\w*|weather(?:ed|s|ing)|worn|wears?|ancient|old|aged?|ages",
        {"erosion": 0.65},
        {"erosion": 0.16},
        expects=(("peak", -1), ("mean_height_m", -1)),
    ),
    "young": Theme(r"young|jagged|rugged|newborn", {"erosion": 0.15, "roughness": 0.65}, {"roughness": 0.05}),
}

_STRONG = re.compile(r"\b(?:great|vast|huge|terrible|mighty|enormous|immense|giant|endless|deep|very)\b")
_WEAK = re.compile(r"\b(?:small|slight|slightly|gentle|little|faint|mild|brief|some|low)\b")
_NONE = re.compile(r"\b(?:no|not|without|never|neither|nor)\b")
_PLACE = re.compile(
    r"\b(?:(?P<row>north|south)(?:ern)?(?:[- ]?(?P<side>west|east)(?:ern)?)?|(?P<column>west|east)(?:ern)?|(?P<middle>middle|cent(?:re|er)|heart))\b"
)
_COMPILED = {name: re.compile(rf"\b(?:{theme.words})\b") for name, theme in THEMES.items()}


def find_themes(text: str) -> list[Mention]:
    """Return the themes that ``text`` mentions, each once, in the order of the text; "no storms" does not mention storms."""
    rest = text.lower()
    found: list[tuple[int, Mention]] = []
    for name, pattern in _COMPILED.items():
        for match in list(pattern.finditer(rest)):
            rest = rest[: match.start()] + "_" * (match.end() - match.start()) + rest[match.end() :]
            before = " ".join(re.split(r"[.,;:!?]", rest[: match.start()])[-1].split()[-3:])
            if _NONE.search(before) or any(mention.theme == name for _, mention in found):
                continue
            strength = 1.6 if _STRONG.search(before) else 0.5 if _WEAK.search(before) else 1.0
            sentence = re.split(r"[.!?]", text.lower()[: match.start()])[-1] + re.split(r"[.!?]", text.lower()[match.start() :])[0]
            found.append((match.start(), Mention(name, strength, find_place(sentence))))
    return [mention for _, mention in sorted(found, key=lambda pair: pair[0])]


def find_place(text: str) -> tuple[float, float] | None:
    """Return the x and y (0..1) of the first part of the map that ``text`` names, such as "the north-east", or None."""
    match = _PLACE.search(text.lower())
    if match is None:
        return None
    column = match["side"] or match["column"]
    x = {"west": 0.27, "east": 0.73, None: 0.5}[column]
    y = {"north": 0.27, "south": 0.73, None: 0.5}[match["row"]]
    return x, y
