"""Changes between two sets of measures, as numbers and as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.blocks.text.chance import pick
from yggdrasill.blocks.text.describe import number, percent

__all__ = ["Change", "find_changes", "flatten", "tell"]


@dataclass(frozen=True, slots=True)
class Change:
    """One measure before and after; ``weight`` is the size of the change in units of a noticeable change."""

    what: str
    before: float
    after: float
    weight: float


#: Measure -> (a noticeable change, relative or absolute; sentence for growth; sentence for decrease).
_TELLINGS: dict[str, tuple[float, bool, tuple[str, ...], tuple[str, ...]]] = {
    "land_share": (0.015, True,
        ("The land grew from {before} to {after} of the map.", "Where {before} of the map had been dry, it was {after} now.", "New shores brought the land from {before} to {after}."),
        ("The land shrank from {before} to {after} of the map.", "Of the {before} that had been dry, {after} remained.", "The coasts gave way: {before} of the map had been land, {after} was left.")),
    "lands": (1.0, False,
        ("Where there had been {before} lands there were {after}.", "The sea cut new straits, and {before} lands became {after}."),
        ("Of {before} lands {after} were left apart.", "Straits closed: {before} lands became {after}.")),
    "peak": (60.0, False,
        ("The highest summit climbed from {before} m to {after} m.", "Nothing had stood above {before} m; now something stood at {after} m."),
        ("The highest summit came down from {before} m to {after} m.", "The roof of the world lost height: {after} m, where it had been {before} m.")),
    "mean_height_m": (0.03, True,
        ("On the whole the ground rose, from a mean of {before} m to {after} m.", "The mean height of the land went up from {before} m to {after} m."),
        ("The land lay lower than before, {after} m in the mean after {before} m.", "Its mean height fell from {before} m to {after} m.")),
    "river_km": (0.05, True,
        ("The longest river reached {after} km, after {before} km.", "Rivers found longer ways: the longest now runs {after} km, once {before} km."),
        ("The longest river lost part of its way, {after} km after {before} km.", "Where the longest river had run {before} km it now runs {after} km.")),
    "rivers_km": (0.06, True,
        ("All running water together came to {after} km, from {before} km.", "The map gained blue lines: {after} km of rivers instead of {before} km."),
        ("Many a stream fell silent: {after} km of rivers were left of {before} km.", "Running water shrank from {before} km to {after} km.")),
    "mean_temperature": (0.5, False,
        ("The year grew milder, from {before} °C to {after} °C over land.", "A year on land had meant {before} °C; it came to mean {after} °C."),
        ("The year turned harsher, from {before} °C to {after} °C over land.", "Over land the mean went down to {after} °C, from {before} °C.")),
    "mean_rainfall": (0.05, True,
        ("The sky gave more, {after} mm in a year after {before} mm.", "Where {before} mm had fallen in a year, {after} mm fell."),
        ("The sky gave less, {after} mm in a year after {before} mm.", "Of {before} mm in a year only {after} mm kept falling.")),
    "lake_km2": (0.25, True,
        ("Still water spread inland, {after} km² after {before} km².", "The lakes grew to {after} km², from {before} km²."),
        ("The lakes drew in, {after} km² after {before} km².", "Of {before} km² of lakes {after} km² were left.")),
}  # fmt: skip

_COVER_GREW = (
    "{Name} spread from {before} to {after} of the land.",
    "{Name}, once {before} of the land, took {after}.",
    "More and more of the land became {name}: {after}, after {before}.",
)


def flatten(measures: Mapping[str, Any]) -> dict[str, float]:
    """Return the comparable numbers of measures by the names that `tell` supports; biomes as ``biome:<name>``."""
    peaks, rivers, lakes = measures.get("peaks") or [], measures.get("rivers") or {}, measures.get("lakes") or {}
    flat = {
        name: measures[name] for name in ("land_share", "lands", "mean_height_m", "mean_temperature", "mean_rainfall") if name in measures
    }
    if measures:
        flat |= {
            "peak": peaks[0]["height_m"] if peaks else 0,
            "river_km": rivers.get("longest_km", 0),
            "rivers_km": rivers.get("total_km", 0),
        }
        flat |= {"lake_km2": lakes.get("km2", 0)}
        flat |= {f"biome:{name}": share for name, share in (measures.get("biomes") or {}).items()}
    return {name: float(value) for name, value in flat.items()}


def find_changes(before: Mapping[str, Any], after: Mapping[str, Any], least: float = 0.2) -> list[Change]:
    """Return the changes of at least ``least`` noticeable units, largest first; empty if either set is empty."""
    if not before or not after:
        return []
    old, new = flatten(before), flatten(after)
    changes = []
    for name in sorted({*old, *new}):
        a, b = old.get(name, 0.0), new.get(name, 0.0)
        if name.startswith("biome:"):
            weight = (b - a) / 0.035
        else:
            step, relative, _, _ = _TELLINGS[name]
            weight = abs(b - a) / (step * max(abs(a), 1e-3) if relative else step)
        if weight >= least:
            changes.append(Change(name, a, b, round(weight, 3)))
    return sorted(changes, key=lambda change: (-change.weight, change.what))


def tell(change: Change, turn: int) -> str:
    """Return one sentence about the change with both numbers."""
    if change.what.startswith("biome:"):
        name = change.what.partition(":")[2]
        return pick(_COVER_GREW, turn, name).format(
            name=name, Name=name.capitalize(), before=percent(change.before), after=percent(change.after)
        )
    _, _, grew, shrank = _TELLINGS[change.what]
    if change.what == "land_share":
        before, after = (f"{value * 100:.1f} %" for value in (change.before, change.after))
    elif change.what == "mean_temperature":
        before, after = f"{change.before:.1f}", f"{change.after:.1f}"
    else:
        before, after = number(change.before), number(change.after)
    return pick(grew if change.after > change.before else shrank, turn, change.what).format(before=before, after=after)
