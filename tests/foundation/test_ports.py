"""Ports: what may be declared, and which may be linked."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from yggdrasill.foundation import Port, PortAggregation, PortDirection, PortType

DTYPES = ["any", "tensor", "dict", "image", "text", "audio", "video", "comfy/LATENT"]


def test_a_port_has_defaults() -> None:
    port = Port("x", PortDirection.IN)
    assert (port.dtype, port.optional, port.aggregation) == ("any", False, PortAggregation.SINGLE)


def test_a_port_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Port("x", PortDirection.IN).name = "y"  # type: ignore[misc]


def test_port_types_are_plain_strings() -> None:
    assert [kind.value for kind in PortType] == ["tensor", "dict", "any", "image", "text", "audio", "video"]
    assert type(Port("x", PortDirection.IN, PortType.IMAGE).dtype) is str
    assert Port("x", PortDirection.IN, PortType.IMAGE) == Port("x", PortDirection.IN, "image")


def test_directions_and_policies_may_be_given_by_value() -> None:
    port: Any = Port
    assert port("x", "in", aggregation="sum") == Port("x", PortDirection.IN, aggregation=PortAggregation.SUM)


def test_is_input_and_is_output_say_the_direction() -> None:
    assert Port("x", PortDirection.IN).is_input
    assert not Port("x", PortDirection.IN).is_output
    assert Port("x", PortDirection.OUT).is_output


@pytest.mark.parametrize("name", ["", " ", "\t\n", None, 3], ids=repr)
def test_a_blank_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        Port(name, PortDirection.IN)


@pytest.mark.parametrize("dtype", ["", "  ", None, 3], ids=repr)
def test_a_blank_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be a non-empty string"):
        Port("x", PortDirection.IN, dtype)


@pytest.mark.parametrize("policy", [policy for policy in PortAggregation if policy is not PortAggregation.SINGLE])
def test_an_output_cannot_aggregate(policy: PortAggregation) -> None:
    with pytest.raises(ValueError, match="SINGLE"):
        Port("x", PortDirection.OUT, aggregation=policy)


@pytest.mark.parametrize("field, value, options", [("direction", "up", "'in', 'out'"), ("aggregation", "mean", "'concat', 'dict'")])
def test_an_unknown_direction_or_policy_names_the_known_ones(field: str, value: str, options: str) -> None:
    facts: dict[str, Any] = {"direction": "in", field: value}
    with pytest.raises(ValueError, match=f"unknown {field} '{value}'. Available: {options}"):
        Port("x", **facts)


@pytest.mark.parametrize("source, target", [pytest.param(a, b, id=f"{a} to {b}") for a, b in itertools.product(DTYPES, DTYPES)])
def test_dtypes_fit_if_they_are_equal_or_one_is_any(source: str, target: str) -> None:
    fits = source == target or "any" in {source, target}
    assert Port("x", PortDirection.OUT, source).compatible_with(Port("y", PortDirection.IN, target)) is fits


@pytest.mark.parametrize("source, target", [("in", "in"), ("in", "out"), ("out", "out")])
def test_values_go_from_an_output_to_an_input_only(source: str, target: str) -> None:
    assert not Port("x", PortDirection(source)).compatible_with(Port("y", PortDirection(target)))
