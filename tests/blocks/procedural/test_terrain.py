"""The terrain blocks: plausible, repeatable ground, water and pictures, and clear errors for invalid configurations."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.blocks.procedural.configuration import FEATURE_KINDS, KEYS, read_terrain
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph

SMALL = {"seed": 3, "size": 96}


def block(block_type: str, **config: Any) -> AbstractBaseBlock:
    return BlockRegistry().build({"block_type": block_type, **config})


def digest(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256("".join(f"{key}{digest(part)}" for key, part in value.items()).encode()).hexdigest()
    if isinstance(value, list):
        return hashlib.sha256("".join(map(digest, value)).encode()).hexdigest()
    return repr(value)


def map_of(creator: Graph, **changes: Any) -> dict[str, Any]:
    return creator.run({"configuration": {**SMALL, **changes}})


def land_share(outputs: dict[str, Any]) -> float:
    return float((outputs["elevation"] > 0).double().mean())


def test_the_wiring_is_valid(creator: Graph) -> None:
    assert creator.validate(strict=False).errors == []


def test_the_same_configuration_gives_the_same_bits_again(creator: Graph) -> None:
    assert digest(map_of(creator)["artifacts"]) == digest(map_of(creator)["artifacts"])
    assert digest(map_of(creator)["artifacts"]) != digest(map_of(creator, seed=4)["artifacts"])


def test_another_process_gives_the_same_bits(creator: Graph) -> None:
    script = """
import sys, hashlib, json
from yggdrasill.foundation import Graph
graph = Graph.from_config(json.loads(sys.stdin.read()))
outputs = graph.run({"configuration": {"seed": 3, "size": 96}})
names = ("elevation", "discharge", "image")
print(hashlib.sha256(b"".join(outputs[name].numpy().tobytes() for name in names)).hexdigest())
"""
    config = json.dumps(creator.to_config())
    done = subprocess.run([sys.executable, "-c", script], input=config, capture_output=True, text=True, encoding="utf-8", check=True)
    here = map_of(creator)
    parts = b"".join(here[name].numpy().tobytes() for name in ("elevation", "discharge", "image"))
    assert done.stdout.strip() == hashlib.sha256(parts).hexdigest()


def test_the_picture_is_an_image(creator: Graph) -> None:
    image = map_of(creator)["image"]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (1, 96, 96, 3))
    assert 0.0 <= float(image.min()) < 0.5 < float(image.max()) <= 1.0


features = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(FEATURE_KINDS),
        "x": st.floats(0, 1),
        "y": st.floats(0, 1),
        "radius": st.floats(0.005, 0.5),
        "height": st.floats(10, 6000),
        "angle": st.floats(0, 360),
    }
)


@settings(max_examples=25, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {name: st.integers(int(key.low), int(key.high)) if key.whole else st.floats(key.low, key.high) for name, key in KEYS.items()}
        | {"size": st.integers(32, 72), "features": st.lists(features, max_size=3)}
    )
)
def test_every_allowed_configuration_gives_finite_ground(values: dict[str, Any]) -> None:
    ground = block("procedural/heightfield").run({"configuration": values})["elevation"]
    worn = block("procedural/erosion").run({"ground": ground, "configuration": values})["elevation"]
    climate = block("procedural/climate").run({"elevation": worn, "configuration": values})
    water = block("procedural/rivers").run({"elevation": worn, "rainfall": climate["rainfall"], "configuration": values})
    fields = {"elevation": worn, **climate, **water}
    image = block("procedural/shade").run({**fields, "configuration": values})["image"]
    assert all(torch.isfinite(field.double()).all() for field in (ground, *fields.values(), image))
    assert bool((image >= 0).all() and (image <= 1).all())


def test_a_rising_sea_floods_land_and_a_falling_sea_uncovers_it(creator: Graph) -> None:
    shares = [land_share(map_of(creator, sea_level=level)) for level in (-300, -100, 0, 100, 300)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] + 0.05


@pytest.mark.parametrize("land", [0.15, 0.3, 0.5])
def test_the_configured_share_of_the_map_is_land(creator: Graph, land: float) -> None:
    assert land_share(map_of(creator, land=land)) == pytest.approx(land, abs=0.02)


def test_water_runs_downhill_to_the_sea_from_everywhere(creator: Graph) -> None:
    outputs = map_of(creator)
    filled, receiver = outputs["filled"].ravel().numpy(), outputs["receiver"].ravel().numpy()
    moving = receiver != np.arange(receiver.size)
    assert (filled[receiver[moving]] < filled[moving]).all()
    assert (outputs["filled"] >= outputs["elevation"]).all()
    rows, columns = outputs["filled"].shape
    at = np.flatnonzero(outputs["elevation"].numpy().ravel() > 0)
    for _ in range(receiver.size):
        if (receiver[at] == at).all():
            break
        at = receiver[at]
    y, x = at // columns, at % columns
    at_the_rim = (y == 0) | (x == 0) | (y == rows - 1) | (x == columns - 1)
    assert ((filled[at] <= 0) | at_the_rim).all()


def test_discharge_grows_downstream(creator: Graph) -> None:
    outputs = map_of(creator)
    discharge, receiver = outputs["discharge"].ravel().numpy(), outputs["receiver"].ravel().numpy()
    moving = receiver != np.arange(receiver.size)
    assert (discharge[receiver[moving]] >= discharge[moving]).all()
    assert bool(outputs["rivers"].any())


def test_a_pit_becomes_a_lake_that_drains() -> None:
    y, x = np.mgrid[0:40, 0:40]
    cone = 300.0 - 16.0 * np.hypot(y - 20, x - 20)
    cone[15:20, 15:20] -= 150.0
    water = block("procedural/rivers").run({"elevation": cone, "rainfall": np.full((40, 40), 900.0), "configuration": {"size": 40}})
    assert bool(water["lakes"][16:19, 16:19].all())
    assert not bool((water["lakes"].numpy() & (cone <= 0)).any())


def test_erosion_lowers_mountains_more_with_age(creator: Graph) -> None:
    heights = [float(map_of(creator, erosion=age)["elevation"].clamp(min=0).mean()) for age in (0.0, 0.4, 0.9)]
    assert heights[0] > heights[1] > heights[2]


def test_it_is_colder_up_in_the_mountains_and_in_the_north() -> None:
    hill = np.full((48, 48), 10.0)
    hill[24, 24] = 3000.0
    climate = block("procedural/climate").run({"elevation": hill, "configuration": {"size": 48}})
    temperature = climate["temperature"]
    assert float(temperature[24, 24]) < float(temperature[24, 20]) - 15.0
    assert float(temperature[:8].mean()) < float(temperature[-8:].mean())


def test_a_mountain_wall_has_a_rain_shadow() -> None:
    wall = np.full((64, 64), 50.0)
    wall[:, :12] = -100.0
    wall[:, 28:34] = 2500.0
    climate = block("procedural/climate").run({"elevation": wall, "configuration": {"size": 64, "wind": 270.0}})
    assert float(climate["rainfall"][:, 22:28].mean()) > 1.2 * float(climate["rainfall"][:, 36:44].mean())


@pytest.mark.parametrize("kind, sign", [("volcano", 1), ("range", 1), ("basin", -1), ("crater", -1)])
def test_a_feature_changes_the_ground_only_at_its_position(kind: str, sign: int) -> None:
    feature = {"kind": kind, "x": 0.3, "y": 0.6, "radius": 0.12, "height": 1500.0}
    heights = [
        block("procedural/heightfield").run({"configuration": {**SMALL, "features": features}})["elevation"] for features in ([], [feature])
    ]
    change = heights[1] - heights[0]
    assert sign * float(change[56:60, 27:31].mean()) > 200.0
    assert bool((change[:20, 60:] == 0).all())


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"sea_level": 900}, r"'sea_level' is 900; it must be a number from -600 to 600 m"),
        ({"size": 8}, r"'size' is 8; it must be a whole number from 32 to 2048 pixels"),
        ({"seed": 1.5}, r"'seed' is 1.5; it must be a whole number"),
        ({"seed": float("inf")}, r"'seed' is inf; it must be a whole number"),
        ({"land": float("nan")}, r"'land' is nan; it must be a number from 0.05 to 0.95"),
        ({"land": True}, r"'land' is True"),
        ({"relief": "high"}, r"'relief' is 'high'"),
        ({"sea_levl": 3}, r"Unknown configuration key 'sea_levl'. Available: 'sea_level'"),
        ({"features": {}}, r"'features' must be a list of at most 64 dicts"),
        ({"features": [{"kind": "tower"}]}, r"'features\[0\].kind' is 'tower'; available: 'basin', 'crater', 'range', 'volcano'"),
        (
            {"features": [{"kind": "range", "x": 2, "y": 0, "radius": 0.1, "height": 9}]},
            r"'features\[0\].x' is 2; it must be a number from 0 to 1",
        ),
        ("a map", r"the configuration is a str; expected a dict"),
    ],
)
def test_a_bad_configuration_is_named_with_its_allowed_range(bad: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        block("procedural/heightfield").run({"configuration": bad})


@pytest.mark.parametrize(
    "block_type, name", [("procedural/rivers", "source"), ("procedural/shade", "relief"), ("procedural/measure", "peaks")]
)
def test_a_bad_setting_of_a_block_is_named(creator: Graph, block_type: str, name: str) -> None:
    artifacts = map_of(creator)["artifacts"]
    with pytest.raises(InvalidArgument, match=f"{block_type}: config '{name}' is 'much'; it must be a (whole )?number from"):
        block(block_type, **{name: "much"}).run({**artifacts, "artifacts": artifacts, "configuration": SMALL})


def test_fields_of_two_maps_are_refused(creator: Graph) -> None:
    small, large = map_of(creator), map_of(creator, size=128)
    with pytest.raises(InvalidArgument, match=r"rainfall is \[128, 128\], elevation \[96, 96\]"):
        block("procedural/rivers").run(
            {"elevation": small["elevation"], "rainfall": large["artifacts"]["rainfall"], "configuration": SMALL}
        )


def test_terrain_blocks_do_not_change_their_inputs(creator: Graph) -> None:
    configuration = {**SMALL, "features": [{"kind": "volcano", "x": 0.5, "y": 0.5, "radius": 0.1, "height": 900.0}]}
    before = copy.deepcopy(configuration)
    outputs = creator.run({"configuration": configuration})
    assert configuration == before
    fields = {
        name: outputs["artifacts"][name] for name in ("elevation", "temperature", "rainfall", "discharge", "receiver", "rivers", "lakes")
    }
    kept = digest(fields)
    block("procedural/shade").run({**fields, "configuration": configuration})
    block("procedural/erosion").run({"ground": fields["elevation"], "configuration": configuration})
    block("procedural/measure").run({"artifacts": outputs["artifacts"]})
    assert digest(fields) == kept


def test_a_configuration_may_have_a_note_and_no_other_key() -> None:
    terrain = read_terrain({"note": "as the architect wished"}, "here")
    assert (terrain.size, terrain.seed, terrain.features) == (512, 0, ())
