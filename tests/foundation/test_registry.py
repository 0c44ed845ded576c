"""The registry: types by name, built-ins and installed packages on first use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.blocks import Add
from samples.graphs import sample_registry
from yggdrasill.errors import InvalidConfig, UnknownBlockType
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph, register_block
from yggdrasill.foundation import registry as registry_module

PLUGIN = """
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection

class Shout(AbstractBaseBlock):
    def declare_ports(self):
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs):
        return {"y": inputs["x"].upper()}
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with entry points of the group: one good, one whose module is missing."""
    (tmp_path / "shouting_plugin.py").write_text(PLUGIN, encoding="utf-8")
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n", encoding="utf-8")
    points = "[yggdrasill.blocks]\nplugin/shout = shouting_plugin:Shout\nplugin/broken = no_such_module_here:Block\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry_module._installed.cache_clear()
    yield
    registry_module._installed.cache_clear()
    sys.modules.pop("shouting_plugin", None)


def test_a_registered_type_is_built_with_the_rest_of_its_config() -> None:
    block = sample_registry().build({"block_type": "sample/add", "block_id": "a", "offset": 2})
    assert isinstance(block, Add)
    assert (block.block_id, block.config) == ("a", {"offset": 2})


def test_type_is_another_word_for_block_type() -> None:
    assert isinstance(sample_registry().build({"type": "sample/add"}), Add)


def test_beside_block_type_a_key_called_type_belongs_to_the_block() -> None:
    assert sample_registry().build({"block_type": "sample/add", "type": "soft"}).config == {"type": "soft"}


def test_a_config_without_a_type_is_refused() -> None:
    with pytest.raises(KeyError, match="needs 'block_type'"):
        sample_registry().build({"offset": 1})


@pytest.mark.parametrize("name", ["", "  ", None], ids=repr)
def test_a_blank_type_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="non-empty string"):
        BlockRegistry().register(name, Add)


def test_only_what_can_be_called_is_registered() -> None:
    with pytest.raises(ValueError, match="needs a class or factory"):
        BlockRegistry().register("x", 3)  # type: ignore[arg-type]


def test_an_unknown_type_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownBlockType, match=r"Unknown block type 'sample/ad'. Available: 'sample/add', .*Did you mean 'sample/add'\?"):
        sample_registry().build({"block_type": "sample/ad"})


def test_in_and_types_know_what_can_be_built() -> None:
    registry = sample_registry()
    assert "sample/add" in registry
    assert "backbone/identity" in registry
    assert "sample/ad" not in registry
    assert {"sample/add", "backbone/identity"} <= set(registry.types())


def test_a_bare_registry_knows_only_what_was_registered() -> None:
    registry = BlockRegistry(built_ins=False)
    registry.register("one", Add)
    assert registry.types() == ["one"]
    assert "backbone/identity" not in registry
    with pytest.raises(KeyError):
        registry.get("backbone/identity")


def test_the_global_registry_is_one() -> None:
    assert BlockRegistry.global_registry() is BlockRegistry.global_registry()
    assert Graph().registry is BlockRegistry.global_registry()


def test_the_decorator_registers_a_class_and_gives_it_back() -> None:
    registry = BlockRegistry(built_ins=False)

    @register_block("mine/add", registry)
    class Mine(Add):
        pass

    assert registry.get("mine/add") is Mine
    assert registry.build({"type": "mine/add"}).block_type == "mine/add"


def test_a_factory_may_be_a_function_but_must_give_a_block() -> None:
    registry = BlockRegistry(built_ins=False)
    registry.register("made", lambda block_id, config: Add(block_id, config={**config, "offset": 9}))
    not_a_block: Any = str
    registry.register("wrong", lambda block_id, config: not_a_block("a block"))
    assert registry.build({"type": "made"}).config == {"offset": 9}
    with pytest.raises(ValueError, match="returned str, not a block"):
        registry.build({"type": "wrong"})


def test_a_block_that_refuses_its_config_names_its_type() -> None:
    with pytest.raises(
        InvalidConfig, match=r"'sample/linear' cannot be built from config \['size'\]: ValueError: invalid literal"
    ) as caught:
        sample_registry().build({"type": "sample/linear", "size": "large"})
    assert isinstance(caught.value.__cause__, ValueError)


def test_built_ins_are_imported_when_first_asked_for() -> None:
    script = (
        "import sys; from yggdrasill.foundation import BlockRegistry; registry = BlockRegistry(); assert 'text/join' in registry;"
        "before = any(name.startswith('yggdrasill.blocks.') for name in sys.modules); registry.get('text/join');"
        "print(before, 'yggdrasill.blocks.text.join' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.stdout.strip(), done.stderr) == ("False True", "")


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_types_by_its_entry_points() -> None:
    registry = BlockRegistry()
    assert "plugin/shout" in registry
    assert "plugin/shout" in registry.types()
    assert "shouting_plugin" not in sys.modules, "listing imports nothing"
    block = registry.build({"type": "plugin/shout"})
    assert isinstance(block, AbstractBaseBlock)
    assert block.forward({"x": "hey"}) == {"y": "HEY"}


@pytest.mark.usefixtures("installed")
def test_an_entry_point_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(UnknownBlockType, match="'plugin/broken' comes from the entry point 'no_such_module_here:Block'"):
        BlockRegistry().get("plugin/broken")
