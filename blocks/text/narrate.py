"""`text/narrate`: the account of an episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from yggdrasill.blocks.text.chance import invent_name, pick
from yggdrasill.blocks.text.changes import Change, find_changes, tell
from yggdrasill.blocks.text.describe import number
from yggdrasill.blocks.text.episodes import episode_of, last_episode, measures_of, require_mapping, text_of
from yggdrasill.blocks.text.themes import THEMES, find_themes
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["Narrate"]

_OPENINGS = (
    "The chronicle had it as \u201c{title}\u201d.",
    "They would speak of it as \u201c{title}\u201d.",
    "What was to come had been called \u201c{title}\u201d, and it came.",
    "So began the time remembered as \u201c{title}\u201d.",
    "In the book it stands under \u201c{title}\u201d.",
)
_FIRST = (
    "Before this there is no page, so whoever draws the first map has to name what is on it.",
    "Nobody had looked before; the first to look wrote down what was there.",
    "The first page of a world is an inventory, and a kind of greeting.",
)
_UNFULFILLED = (
    "What had been announced left hardly a mark that can be measured.",
    "Much had been expected, but the instruments saw little of it.",
    "It passed almost without a trace, as announced things sometimes do.",
)
_STILL = (
    "For the rest, the map could have been kept.",
    "Otherwise the coasts lay as they had lain.",
    "Beyond that, the old charts still served.",
)
_ENDINGS = (
    "Then it was evening, and the ink dried.",
    "Those who lived through it said it had been quieter than it sounds.",
    "The gulls took no notice.",
    "Children born that year never knew it otherwise.",
    "Somebody carved the date into a stone above the harbour.",
    "After that, for a while, nothing needed to be written.",
    "The old maps were kept, for love, in a drawer.",
)
_SUMMITS: tuple[str, ...] = (
    "Its highest summit, {height} m in {where}, became {name}.",
    "The highest summit, {height} m, looks over {where} and was named {name}.",
    "{name}, {height} m, was named first, because it can be seen from everywhere; it stands in {where}.",
)
_PEAKS: tuple[str, ...] = (
    "A height of {height} m in {where} got the name {name}.",
    "In {where} they called the height of {height} m {name}.",
    "{name} is what they call the {height} m in {where}.",
    "{name} entered the list of heights: {height} m, in {where}.",
)
_RIVERS: tuple[str, ...] = (
    "The longest river, {length} km of it, was called the {name}.",
    "On {length} km of river the boatmen agreed on one name: the {name}.",
    "The {name}, {length} km to its mouth in {where}, was now the longest river.",
    "No water ran farther than the {name} with its {length} km.",
    "To the sea in {where} went the {name}, and no river was longer: {length} km.",
)
_REMAINS = (
    "{name} stood over it all, {height} m now.",
    "From {name}, {height} m, one could have seen most of it.",
    "Over {where} {name} kept its {height} m, give or take a stone.",
)
#: The distance that a place may move and keep its name, as a share of the map.
_NEAR = 0.09


class Narrate(AbstractBaseBlock):
    """Writes the account of an episode from its measures, compared with the last episode and the announcement.

    In: ``happening`` (block 1), ``description`` (block 4, with the measures), ``configuration`` (block 2) and ``world``, the
    content before this episode, both optional. Out: ``account`` dict (block 5) of ``episode``, ``title``,
    ``text``, ``changes`` (list of ``what``, ``before``, ``after``) and ``places`` (list of ``name``, ``kind``, ``x``, ``y``,
    ``since``): peaks and the longest river keep their names in the world's ``places``, new ones get a name.
    """

    block_type = "text/narrate"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("happening", PortDirection.IN, PortType.ANY)
        yield Port("description", PortDirection.IN, PortType.ANY)
        yield Port("configuration", PortDirection.IN, PortType.DICT, optional=True)
        yield Port("world", PortDirection.IN, PortType.DICT, optional=True)
        yield Port("account", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        world = require_mapping(inputs.get("world"), "world", self.block_type)
        configuration = require_mapping(inputs.get("configuration"), "configuration", self.block_type)
        happening, description = inputs["happening"], inputs["description"]
        episode, measures = episode_of(happening, world), measures_of(description)
        key = configuration.get("seed", world.get("title") or text_of(happening))
        places = _places(measures, world.get("places") or [], episode, key)
        title = str(happening.get("title") or "") if isinstance(happening, Mapping) else ""
        last = last_episode(world)
        before = measures_of(last.get("description")) or require_mapping(last.get("measures"), "world", self.block_type)
        changes = find_changes(before, measures)
        parts = [pick(_OPENINGS, episode, "opening", key).format(title=title)] if title else []
        parts += _later(text_of(happening), changes, episode) if before else [pick(_FIRST, episode, key)]
        parts += _naming(measures, places, episode, first=not before)
        if not measures:
            parts.append(text_of(description))
        parts.append(pick(_ENDINGS, episode, "ending", key))
        account = {
            "episode": episode,
            "title": title,
            "text": " ".join(part for part in parts if part),
            "changes": [
                {"what": change.what, "before": change.before, "after": change.after} for change in changes if change.weight >= 1.0
            ],
            "places": places,
        }
        return {"account": account}


def _later(announced: str, changes: list[Change], turn: int) -> list[str]:
    """Return whether the announcement came true, for which a small change is enough, then other large changes; at most four sentences."""
    expected = {pair for mention in find_themes(announced) for pair in THEMES[mention.theme].expects}
    true = [change for change in changes if (change.what, 1 if change.after > change.before else -1) in expected]
    others = [change for change in changes if change not in true and change.weight >= 1.0]
    parts = [tell(change, turn) for change in true[:3]]
    if expected and not true:
        parts.append(pick(_UNFULFILLED, turn, "unfulfilled"))
    parts += [tell(change, turn) for change in others[: max(4 - len(parts), 1)]]
    return parts if len(parts) > 1 else [*parts, pick(_STILL, turn, "still")]


def _naming(measures: Mapping[str, Any], places: list[dict[str, Any]], episode: int, *, first: bool) -> list[str]:
    """Return sentences about two peaks and the river that were named in this episode, else one about a mountain with a name."""
    parts: list[str] = []
    for place in places:
        if place["since"] != episode:
            continue
        if place["kind"] == "river":
            length = (measures.get("rivers") or {}).get("longest_km", 0)
            parts.append(pick(_RIVERS, episode, "river").format(length=number(length), where=place["where"], name=place["name"]))
        elif len(parts) < 2:
            options, turn = (_SUMMITS, episode) if first and not parts else (_PEAKS, episode + len(parts))
            parts.append(pick(options, turn, "peak").format(height=number(place["height_m"]), where=place["where"], name=place["name"]))
    known = [place for place in places if place["kind"] == "peak" and place["since"] < episode]
    if known and not parts:
        facts = {"height": number(known[0]["height_m"]), "where": known[0]["where"], "name": known[0]["name"]}
        parts.append(pick(_REMAINS, episode, "remains").format(**facts))
    return parts


def _places(measures: Mapping[str, Any], known: list[Mapping[str, Any]], episode: int, key: object) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = [{"kind": "peak", **peak} for peak in measures.get("peaks") or []]
    mouth = (measures.get("rivers") or {}).get("mouth")
    if mouth:
        seen.append({"kind": "river", **mouth})
    taken: set[str] = set()
    for place in seen:
        near = [
            (distance, str(old["name"]), int(old.get("since", episode)))
            for old in known
            if {"name", "x", "y"} <= old.keys() and old.get("kind") == place["kind"] and old["name"] not in taken
            if (distance := (old["x"] - place["x"]) ** 2 + (old["y"] - place["y"]) ** 2) < _NEAR**2
        ]
        if near:
            _, place["name"], place["since"] = min(near)
        else:
            name = invent_name(key, place["kind"], place["x"], place["y"])
            place["name"], place["since"] = (f"Mount {name}" if place["kind"] == "peak" else name), episode
        taken.add(place["name"])
    return seen
