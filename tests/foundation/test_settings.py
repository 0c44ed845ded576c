from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from yggdrasill import foundation
from yggdrasill.blocks import BUILT_IN
from yggdrasill.errors import InvalidArgument, UnknownName
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, ConfigField, Port, PortDirection


class Warm(AbstractBaseBlock):
    block_type = "example/warm"
    settings = (ConfigField("degrees", "number", 20.0, -50, 50), ConfigField("mode", "choice", "dry", options=("dry", "wet")))

    def declare_ports(self) -> Iterable[Port]:
        yield Port("out", PortDirection.OUT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": (self.setting("degrees"), self.setting("mode"))}


def test_a_setting_is_the_configs_value_or_its_default() -> None:
    assert Warm().run({}) == {"out": (20.0, "dry")}
    assert Warm(config={"degrees": -3, "mode": "wet"}).run({}) == {"out": (-3.0, "wet")}


@pytest.mark.parametrize(
    "config, said",
    [
        ({"degrees": 51}, "'degrees' is 51; it must be a number from -50 to 50"),
        ({"degrees": True}, "must be a number"),
        ({"mode": "hot"}, "it can be 'dry', 'wet'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_does(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match="example/warm") as caught:
        Warm(config=config).run({})
    assert said in caught.value.message


@pytest.mark.parametrize("kind, value", [("integer", 1.5), ("boolean", 1), ("text", 3)])
def test_each_kind_refuses_the_others(kind: str, value: Any) -> None:
    with pytest.raises(InvalidArgument):
        ConfigField("x", kind).read({"x": value}, "block")


def test_a_setting_that_is_not_declared_has_no_value() -> None:
    with pytest.raises(UnknownName, match="degrees"):
        Warm().setting("degree")


def test_a_declaration_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="kind"):
        ConfigField("x", "colour")
    with pytest.raises(InvalidArgument, match="options"):
        ConfigField("x", "choice")


@pytest.mark.parametrize("block_type", sorted(BUILT_IN))
def test_every_built_in_block_declares_what_its_config_holds(block_type: str) -> None:
    settings = BlockRegistry.global_registry().settings(block_type)
    assert settings is not None
    for setting in settings:
        assert setting.meaning
        assert setting.default is None or setting.read({}, block_type) == setting.default


def test_the_first_name_of_a_config_field_still_works() -> None:
    assert foundation.Setting is ConfigField
    assert foundation.Setting("x", "integer", 1).read({}, "block") == 1


@pytest.mark.parametrize("kind", ["path", "url", "secret"])
def test_a_field_that_names_something_on_a_host_is_a_text(kind: str) -> None:
    field = ConfigField("x", kind)
    assert field.read({"x": "a"}, "block") == "a"
    assert field.read({}, "block") is None
    with pytest.raises(InvalidArgument, match="must be a text"):
        field.read({"x": 3}, "block")
