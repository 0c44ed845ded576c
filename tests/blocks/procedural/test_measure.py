"""`procedural/measure`: measures of known maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yggdrasill.blocks.procedural.measure import compass, label_bodies
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph


@pytest.fixture
def measure() -> AbstractBaseBlock:
    return BlockRegistry().build({"block_type": "procedural/measure"})


def flat_map() -> dict[str, Any]:
    """A 40 km map of 40 pixels: a square island, one river of nine steps, a peak in the north-west."""
    elevation = np.full((40, 40), -50.0)
    elevation[5:15, 5:15] = 100.0
    elevation[7, 7] = 900.0
    receiver = np.arange(1600).reshape(40, 40)
    rivers = np.zeros((40, 40), dtype=bool)
    receiver[10, 6:15] = receiver[10, 7:16]
    rivers[10, 6:15] = True
    discharge = np.where(rivers, np.arange(40)[None, :], 0.0)
    biomes = np.where(elevation > 0, 5, 0)
    calm = np.full((40, 40), 10.0)
    return {
        "width_km": 40.0,
        "elevation": elevation,
        "temperature": calm,
        "rainfall": 80 * calm,
        "discharge": discharge,
        "receiver": receiver,
        "rivers": rivers,
        "lakes": np.zeros((40, 40), dtype=bool),
        "biomes": biomes,
    }


def test_the_measures_of_a_hand_drawn_map_are_as_drawn(measure: AbstractBaseBlock) -> None:
    measures = measure.run({"artifacts": flat_map()})["measures"]
    assert measures["land_share"] == 0.0625
    assert measures["land_km2"] == 100
    assert measures["lands"] == 1
    assert measures["largest_land_share"] == 1.0
    assert measures["deepest_m"] == 50
    assert (measures["mean_temperature"], measures["mean_rainfall"]) == (10.0, 800)
    assert measures["peaks"][0] == {"height_m": 900, "x": 0.1875, "y": 0.1875, "where": "the north-west"}
    assert measures["biomes"] == {"temperate forest": 1.0}
    assert measures["rivers"]["longest_km"] == 9
    assert measures["rivers"]["total_km"] == 9
    assert (measures["rivers"]["count"], measures["rivers"]["discharge_m3s"]) == (1, 14)


def test_a_map_without_land_has_measures_too(measure: AbstractBaseBlock) -> None:
    drowned = flat_map()
    drowned["elevation"] = np.full((40, 40), -50.0)
    drowned["rivers"] = np.zeros((40, 40), dtype=bool)
    measures = measure.run({"artifacts": drowned})["measures"]
    assert (measures["land_share"], measures["peaks"], measures["lands"]) == (0.0, [], 0)
    assert measures["rivers"] == {"count": 0, "total_km": 0, "longest_km": 0}


def test_bodies_are_connected_along_edges() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=bool)
    assert label_bodies(mask).tolist() == [[0, 0, -1, -1], [-1, 0, -1, 7], [-1, -1, 7, 7], [12, -1, -1, 7]]


@pytest.mark.parametrize(
    "x, y, where", [(0.5, 0.5, "the middle"), (0.9, 0.1, "the north-east"), (0.5, 0.9, "the south"), (0.1, 0.5, "the west")]
)
def test_places_have_names(x: float, y: float, where: str) -> None:
    assert compass(x, y) == where


def test_a_missing_field_of_the_artifacts_is_named(measure: AbstractBaseBlock) -> None:
    artifacts = flat_map()
    del artifacts["biomes"]
    with pytest.raises(InvalidArgument, match="the artifacts lack 'biomes'"):
        measure.run({"artifacts": artifacts})


def test_measures_are_plain_values(creator: Graph, measure: AbstractBaseBlock) -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(part) for key, part in value.items())
        return all(map(plain, value)) if isinstance(value, list) else type(value) in {int, float, str}

    assert plain(measure.run(creator.run({"configuration": {"size": 64}}))["measures"])
