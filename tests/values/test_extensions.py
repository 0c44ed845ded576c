"""Types that are registered with the codec, and types that are not."""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction
from typing import Any

import pytest
import torch

from samples.values import same
from yggdrasill.errors import CannotTravel, CorruptData, DuplicateName, InvalidArgument, LimitExceeded
from yggdrasill.values import Opaque, dumps, encode, from_json, loads, register_type, to_json


class Mesh:
    def __init__(self, vertices: torch.Tensor, name: str) -> None:
        self.vertices = vertices
        self.name = name


register_type("test.mesh", Mesh, lambda mesh: {"vertices": mesh.vertices, "name": mesh.name}, lambda state: Mesh(**state))


def test_a_registered_type_comes_back_at_any_depth() -> None:
    mesh = Mesh(torch.rand(4, 3).t(), "hill")
    back = loads(dumps({"meshes": [mesh]}))["meshes"][0]
    assert type(back) is Mesh
    assert back.name == "hill"
    assert same(mesh.vertices, back.vertices)


def test_a_class_is_matched_by_name_whatever_its_module_is_called() -> None:
    strange = type("FromAnOddFile", (), {"__module__": "/home/odd path/nodes.py"})
    register_type("test.odd", "FromAnOddFile", lambda value: value.points, lambda state: ("rebuilt", state))
    value = strange()
    value.points = [1, (2, 3)]
    assert loads(dumps([value])) == [("rebuilt", [1, (2, 3)])]


def test_a_subclass_is_another_type() -> None:
    class Special(Mesh):
        pass

    with pytest.raises(CannotTravel, match="Special"):
        dumps(Special(torch.zeros(1), "x"))


def test_a_later_version_is_written_and_the_earlier_stays_readable() -> None:
    class Point:
        def __init__(self, x: float, y: float) -> None:
            self.x, self.y = x, y

    register_type("test.point", Point, lambda point: [point.x, point.y], lambda state: Point(*state))
    old = to_json(Point(1.0, 2.0))
    register_type("test.point", Point, lambda point: {"x": point.x, "y": point.y}, lambda state: Point(**state), version=2)
    assert to_json(Point(1.0, 2.0)) == {"$ext": ["test.point", 2, {"x": 1.0, "y": 2.0}]}
    assert from_json(old).y == 2.0


def test_an_unknown_type_stays_opaque_and_encodes_to_the_same_bytes() -> None:
    sent = {"seen": [Opaque("unknown.type", 3, {"bits": torch.rand(3, 2).t(), "k": (1, {2: b"x" * 600})}), 5]}
    data = dumps(sent)
    kept = loads(data)
    assert type(kept["seen"][0]) is Opaque
    assert (kept["seen"][0].tag, kept["seen"][0].version) == ("unknown.type", 3)
    assert dumps(kept) == data


def test_a_version_from_the_future_stays_opaque() -> None:
    value = from_json({"$ext": ["fraction", 2, "half"]})
    assert type(value) is Opaque
    assert to_json(value) == {"$ext": ["fraction", 2, "half"]}


def test_a_taken_tag_and_a_bad_tag_are_refused() -> None:
    with pytest.raises(DuplicateName, match="fraction"):
        register_type("fraction", Mesh, lambda value: value, lambda state: state)
    for tag, version in (("", 1), ("x", 0)):
        with pytest.raises(InvalidArgument):
            register_type(tag, Mesh, lambda value: value, lambda state: state, version=version)


def test_a_failure_to_pack_names_the_place_and_to_unpack_is_corrupt() -> None:
    broken = Mesh(torch.zeros(1), "x")
    del broken.vertices
    with pytest.raises(CannotTravel, match=r'value\["m"\] is a Mesh') as caught:
        dumps({"m": broken})
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(CorruptData, match=r"test\.mesh"):
        from_json({"$ext": ["test.mesh", 1, {"wrong": 1}]})


def test_a_part_of_a_packed_value_is_named_with_its_place() -> None:
    stray: Any = object()
    with pytest.raises(CannotTravel) as caught:
        encode([Mesh(torch.zeros(1), stray)])
    assert caught.value.details["place"] == 'value[0]<test.mesh>["name"]'


def test_fractions_and_ordered_dicts_are_built_in() -> None:
    value = [Fraction(-3, 7), OrderedDict([("b", torch.zeros(2)), ("a", 1)])]
    assert same(value, loads(dumps(value)))


@pytest.mark.parametrize("state", [[1, 0], [2, 4], [1.0, 2], [1], 3, [1, True]])
def test_fractions_that_no_encoder_writes_are_corrupt(state: Any) -> None:
    with pytest.raises(CorruptData):
        from_json({"$ext": ["fraction", 1, state]})


def test_a_fraction_too_long_to_reduce_safely_is_refused_on_both_sides() -> None:
    with pytest.raises(LimitExceeded):
        dumps(Fraction(1, 3**20_000))
    with pytest.raises(LimitExceeded):
        from_json({"$ext": ["fraction", 1, [1, {"$int": hex(3**20_000)}]]})
