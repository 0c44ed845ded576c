"""The configuration of a terrain (state block 2): its keys, units and ranges, checked once for every terrain block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument, format_options, unknown_message

__all__ = ["FEATURE_KINDS", "KEYS", "Feature", "Key", "Terrain", "read_terrain"]


@dataclass(frozen=True, slots=True)
class Key:
    """One number of the configuration: default, inclusive range, unit and meaning."""

    default: float
    low: float
    high: float
    unit: str
    meaning: str
    whole: bool = False


KEYS: dict[str, Key] = {
    "seed": Key(0, 0, 2**63 - 1, "", "the same seed is the same world", whole=True),
    "size": Key(512, 32, 2048, "pixels", "height and width of the map", whole=True),
    "width_km": Key(1200.0, 50.0, 20000.0, "km", "what the map is wide"),
    "continents": Key(3, 1, 16, "", "how many bodies of land the world began with", whole=True),
    "land": Key(0.36, 0.05, 0.95, "", "share of the map above the sea when sea_level is 0"),
    "sea_level": Key(0.0, -600.0, 600.0, "m", "rise of the sea since the beginning"),
    "relief": Key(3200.0, 100.0, 9000.0, "m", "height of the mountain ranges"),
    "mountains": Key(0.5, 0.0, 1.0, "", "how much of the land the ranges cover"),
    "roughness": Key(0.5, 0.0, 1.0, "", "strength of fine detail"),
    "octaves": Key(8, 1, 10, "", "layers of detail", whole=True),
    "warp": Key(0.5, 0.0, 1.0, "", "how winding the coasts are"),
    "erosion": Key(0.35, 0.0, 1.0, "", "age of the valleys"),
    "temperature": Key(14.0, -25.0, 40.0, "degrees C", "mean at sea level in the middle of the map"),
    "latitudes": Key(30.0, 0.0, 120.0, "degrees", "from the bottom of the map to its colder top"),
    "rainfall": Key(900.0, 0.0, 4000.0, "mm per year", "mean on land"),
    "wind": Key(250.0, 0.0, 360.0, "degrees", "where the wind comes from: 0 north, 90 east"),
}

FEATURE_KINDS = ("volcano", "range", "basin", "crater")

_FEATURE_RANGES = {"x": (0.0, 1.0), "y": (0.0, 1.0), "radius": (0.005, 0.5), "height": (10.0, 6000.0), "angle": (0.0, 360.0)}
_MOST_FEATURES = 64


@dataclass(frozen=True, slots=True)
class Feature:
    """A change of the ground: position and radius as shares of the map, height (or depth) in metres, angle in degrees."""

    kind: str
    x: float
    y: float
    radius: float
    height: float
    angle: float


@dataclass(frozen=True, slots=True)
class Terrain:
    """A checked configuration; `KEYS` gives units and meanings."""

    seed: int
    size: int
    width_km: float
    continents: int
    land: float
    sea_level: float
    relief: float
    mountains: float
    roughness: float
    octaves: int
    warp: float
    erosion: float
    temperature: float
    latitudes: float
    rainfall: float
    wind: float
    features: tuple[Feature, ...]

    @property
    def pixel_km(self) -> float:
        """Width of a pixel in kilometres."""
        return self.width_km / self.size


def read_terrain(configuration: Any, block: str, *, size: int | None = None) -> Terrain:
    """Return the checked configuration; absent keys get their defaults, ``note`` is free text, ``size`` overrides the map's size.

    Raises:
        InvalidArgument: not a mapping, an unknown key, or a value of a wrong type or outside its range.
    """
    if not isinstance(configuration, Mapping):
        raise InvalidArgument(
            f"{block}: the configuration is a {type(configuration).__name__}; expected a dict with the keys {format_options(KEYS, limit=20)}"
        )
    known = {*KEYS, "features", "note"}
    for name in configuration:
        if name not in known:
            raise InvalidArgument(f"{block}: {unknown_message('configuration key', name, known, limit=20)}")
    values: dict[str, Any] = {name: _number(configuration.get(name, key.default), name, key, block) for name, key in KEYS.items()}
    if size is not None:
        values["size"] = size
    features = configuration.get("features", ())
    if not isinstance(features, list | tuple) or len(features) > _MOST_FEATURES:
        raise InvalidArgument(f"{block}: configuration key 'features' must be a list of at most {_MOST_FEATURES} dicts")
    return Terrain(**values, features=tuple(_feature(entry, index, block) for index, entry in enumerate(features)))


def _number(value: Any, name: str, key: Key, block: str) -> float:
    unit = f" {key.unit}" if key.unit else ""
    kind = "a whole number" if key.whole else "a number"
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not key.low <= value <= key.high or (key.whole and value != int(value)):
        raise InvalidArgument(
            f"{block}: configuration key {name!r} is {value!r}; it must be {kind} from {key.low:g} to {key.high:g}{unit} ({key.meaning})",
            key=name,
        )
    return int(value) if key.whole else float(value)


def _feature(entry: Any, index: int, block: str) -> Feature:
    place = f"{block}: configuration key 'features[{index}]"
    if not isinstance(entry, Mapping):
        raise InvalidArgument(f"{place}' is a {type(entry).__name__}; expected a dict with kind, x, y, radius, height and optionally angle")
    if entry.get("kind") not in FEATURE_KINDS:
        raise InvalidArgument(f"{place}.kind' is {entry.get('kind')!r}; available: {format_options(FEATURE_KINDS)}")
    numbers: dict[str, float] = {}
    for name, (low, high) in _FEATURE_RANGES.items():
        value = entry.get(name, 0.0 if name == "angle" else None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidArgument(
                f"{place}.{name}' is {value!r}; it must be a number from {low:g} to {high:g}", key=f"features[{index}].{name}"
            )
        numbers[name] = float(value)
    return Feature(kind=str(entry["kind"]), **numbers)
