"""`text/describe`: measures as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from yggdrasill.blocks.text.chance import pick
from yggdrasill.blocks.text.episodes import episode_of, require_mapping
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["Describe", "number", "percent"]


class Describe(AbstractBaseBlock):
    """Describes a map from its measures alone.

    In: ``measures`` dict (`procedural/measure`); ``happening``, optional, of which only the number of the episode is
    used, so that two episodes are described in different words. Out: ``text``; ``description`` dict of ``text`` and
    ``measures`` (state block 4).
    """

    block_type = "text/describe"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("measures", PortDirection.IN, PortType.DICT)
        yield Port("happening", PortDirection.IN, PortType.ANY, optional=True)
        yield Port("text", PortDirection.OUT, PortType.TEXT)
        yield Port("description", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        measures = require_mapping(inputs["measures"], "measures", self.block_type)
        turn = episode_of(inputs.get("happening"), {})
        parts = (_land(measures, turn), _peaks(measures, turn), _rivers(measures, turn), _cover(measures, turn), _weather(measures, turn))
        text = " ".join(part for part in parts if part)
        return {"text": text, "description": {"text": text, "measures": dict(measures)}}


def number(value: float) -> str:
    """Return ``12345.0`` as ``12,345``."""
    return f"{round(value):,}"


def percent(share: float) -> str:
    """Return ``0.371`` as ``37 %``; below one percent with a decimal."""
    return f"{share * 100:.1f} %" if 0 < share < 0.0095 else f"{share * 100:.0f} %"


def _land(measures: Mapping[str, Any], turn: int) -> str:
    share, lands = float(measures.get("land_share", 0.0)), int(measures.get("lands", 0))
    facts = {
        "share": percent(share),
        "area": number(measures.get("land_km2", 0)),
        "lands": number(lands),
        "largest": percent(measures.get("largest_land_share", 0.0)),
    }
    if share <= 0.0:
        return "There is nothing but sea."
    if lands <= 1:
        options = (
            "A single land covers {share} of the map, {area} km² under an open sky.",
            "One land, {area} km² of it, holds {share} of the map against the sea.",
            "{share} of the map is dry, and all of it is one land of {area} km².",
        )
    else:
        options = (
            "Land covers {share} of the map: {area} km² in {lands} bodies, the largest holding {largest} of it.",
            "{lands} lands rise from the sea, {share} of the map together, {area} km² in all; the largest has {largest} of that.",
            "The sea leaves {share} of the map dry, {area} km² shared by {lands} lands, {largest} of it in the greatest.",
        )
    return pick(options, turn, "land").format(**facts)


def _peaks(measures: Mapping[str, Any], turn: int) -> str:
    peaks = measures.get("peaks") or []
    if not peaks:
        return ""
    first = {"height": number(peaks[0]["height_m"]), "where": peaks[0]["where"]}
    options = (
        "The highest ground stands in {where}, {height} m above the waves",
        "A summit of {height} m in {where} looks down on everything",
        "Nothing is higher than the {height} m reached in {where}",
    )
    rest = [f"{number(peak['height_m'])} m in {peak['where']}" for peak in peaks[1:3]]
    tail = {0: "", 1: "; next comes {0}", 2: "; after it come {0} and {1}"}[len(rest)].format(*rest)
    return pick(options, turn, "peaks").format(**first) + tail + "."


def _rivers(measures: Mapping[str, Any], turn: int) -> str:
    rivers, lakes = measures.get("rivers") or {}, measures.get("lakes") or {}
    longest = float(rivers.get("longest_km", 0))
    if longest <= 0 or "source" not in rivers:
        return "No river runs the year round."
    facts = {
        "count": number(rivers["count"]),
        "length": number(longest),
        "source": rivers["source"]["where"],
        "mouth": rivers["mouth"]["where"],
        "total": number(rivers["total_km"]),
    }
    same = facts["source"] == facts["mouth"]
    course = "without leaving {source}" if same else "from {source} to {mouth}"
    options = (
        f"The longest river runs {{length}} km {course}; all the rivers together measure {{total}} km.",
        f"Of {{total}} km of running water the longest course is {{length}} km, {course}.",
        f"Water gathers into {{total}} km of rivers, the longest of them {{length}} km {course}.",
    )
    text = pick(options, turn, "rivers").format(**facts)
    if int(lakes.get("count", 0)) > 0:
        text += f" {'A lake lies' if lakes['count'] == 1 else number(lakes['count']) + ' lakes lie'} inland, {number(lakes['km2'])} km² of still water."
    return text


def _cover(measures: Mapping[str, Any], turn: int) -> str:
    biomes = list((measures.get("biomes") or {}).items())[:4]
    if not biomes:
        return ""
    parts = [f"{name} ({percent(share)})" for name, share in biomes if share >= 0.005] or [biomes[0][0]]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return pick(("The land wears {0}.", "Seen from above it is {0}.", "What covers it is {0}."), turn, "cover").format(listed)


def _weather(measures: Mapping[str, Any], turn: int) -> str:
    if "mean_temperature" not in measures:
        return ""
    facts = {"warmth": f"{measures['mean_temperature']:.1f}", "rain": number(measures.get("mean_rainfall", 0))}
    options = (
        "A year on land averages {warmth} °C and {rain} mm of rain.",
        "Over the land the year means {warmth} °C, with {rain} mm of rain.",
        "Its air averages {warmth} °C, its sky gives {rain} mm of rain a year.",
    )
    return pick(options, turn, "weather").format(**facts)
