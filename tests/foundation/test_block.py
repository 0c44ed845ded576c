"""Blocks, and the nodes and edges they are put in and linked by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.blocks import Accumulate, Add, Composite, Double, Identity, Linear
from yggdrasill.errors import CheckpointMismatch, DuplicateName, InvalidCheckpoint, MissingFile, UnsupportedFormat
from yggdrasill.foundation import AbstractBaseBlock, Edge, Node, Port, PortDirection
from yggdrasill.foundation.checkpoints import pack_state


class Twice(AbstractBaseBlock):
    """Declares one port twice."""

    def declare_ports(self) -> Iterable[Port]:
        return [Port("x", PortDirection.IN), Port("x", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Careless(AbstractBaseBlock):
    """InFlightArtifacts its weight whether frozen or not."""

    def __init__(self, block_id: str | None = None) -> None:
        super().__init__(block_id)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def declare_ports(self) -> Iterable[Port]:
        return []

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}

    def trainable_parameters(self) -> Any:
        yield self.weight


class Holder(AbstractBaseBlock):
    """Has one part."""

    def __init__(self, part: AbstractBaseBlock) -> None:
        super().__init__()
        self.part = part

    def declare_ports(self) -> Iterable[Port]:
        return []

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}

    def get_sub_blocks(self) -> dict[str, AbstractBaseBlock]:
        return {"part": self.part}


def test_a_block_type_is_the_class_name_unless_it_says_otherwise() -> None:
    assert Twice.block_type == "Twice"
    assert Add.block_type == "sample/add"


def test_a_block_without_an_id_gets_one_of_its_own() -> None:
    first, second = Add(), Add()
    assert first.block_id.startswith("sample_add-")
    assert first.block_id != second.block_id
    assert Add("mine").block_id == "mine"


@pytest.mark.parametrize("block_id", ["", "  ", 3], ids=repr)
def test_a_blank_block_id_is_refused(block_id: Any) -> None:
    with pytest.raises(ValueError, match="block_id must be a non-empty string"):
        Add(block_id)


def test_the_config_is_a_copy() -> None:
    config: dict[str, Any] = {"offset": 1, "deep": {"list": [1]}}
    block = Add(config=config)
    config["deep"]["list"].append(2)
    assert block.config == {"offset": 1, "deep": {"list": [1]}}


def test_run_is_forward() -> None:
    assert Add().run({"a": 1, "b": 2}) == Add().forward({"a": 1, "b": 2}) == {"out": 3}


def test_ports_are_found_by_direction_and_name() -> None:
    block = Add()
    assert [port.name for port in block.get_input_ports()] == ["a", "b"]
    assert [port.name for port in block.get_output_ports()] == ["out"]
    assert block.get_port("a") == Port("a", PortDirection.IN)
    assert block.get_port("z") is None


def test_port_names_are_unique_in_a_block() -> None:
    with pytest.raises(DuplicateName, match="declares port 'x' twice"):
        Twice().get_input_ports()


def test_a_block_starts_in_training_mode_and_unfrozen() -> None:
    assert Add().training is True
    assert Add().frozen is False


def test_modes_return_the_block_and_reach_its_parts() -> None:
    block = Composite()
    assert block.eval() is block
    assert [part.training for part in (block, *block.get_sub_blocks().values())] == [False] * 4
    assert block.train() is block
    assert block.twice.training is True


def test_freezing_reaches_parts_and_leaves_nothing_to_train() -> None:
    block = Composite()
    assert len(list(block.trainable_parameters())) == 2
    assert block.freeze() is block
    assert block.linear.frozen
    assert list(block.trainable_parameters()) == []
    assert len(list(block.unfreeze().trainable_parameters())) == 2


def test_a_frozen_part_gives_no_parameters_even_if_it_offers_them() -> None:
    block = Holder(Careless())
    assert len(list(block.trainable_parameters())) == 1
    block.part.freeze()
    assert list(block.trainable_parameters()) == []


def test_the_state_of_parts_has_their_name_as_prefix_and_finds_back() -> None:
    block = Composite(config={"offset": 4, "seed": 1})
    assert sorted(block.state_dict()) == ["linear.bias", "linear.weight", "sum.offset"]
    other = Composite(config={"seed": 2})
    other.load_state_dict(block.state_dict())
    assert other.sum.offset == 4
    assert torch.equal(other.linear.weight, block.linear.weight)


@pytest.mark.parametrize("block_class", [Identity, Add, Composite, Linear, Accumulate])
def test_a_state_with_a_key_too_many_is_refused_and_changes_nothing(block_class: type[AbstractBaseBlock]) -> None:
    block = block_class()
    before = {key: torch.as_tensor(value).clone() for key, value in block.state_dict().items()}
    changed = {key: value + 1 for key, value in before.items()}
    with pytest.raises(KeyError, match="stray"):
        block.load_state_dict({**changed, "stray": 1})
    if block_class is Composite:
        assert all(torch.equal(torch.as_tensor(value), before[key]) for key, value in block.state_dict().items())


@pytest.mark.parametrize("block_class", [Add, Composite, Linear, Accumulate])
def test_a_state_with_a_key_too_few_is_refused(block_class: type[AbstractBaseBlock]) -> None:
    with pytest.raises(KeyError):
        block_class().load_state_dict({})


def test_loading_not_strictly_takes_what_fits() -> None:
    block = Composite(config={"offset": 1})
    block.load_state_dict({"sum.offset": 9, "stray": 1, "twice.stray": 2}, strict=False)
    assert block.sum.offset == 9


@pytest.mark.parametrize("backend", ["json", "safetensors"])
def test_a_block_loads_its_own_checkpoint(tmp_path: Path, backend: str) -> None:
    source = Composite(config={"offset": 3, "seed": 5})
    file = tmp_path / f"block.{backend}"
    file.write_bytes(pack_state(source.state_dict(), backend))
    block = Composite()
    assert block.load_from_checkpoint(file) is block
    assert block.sum.offset == 3
    assert torch.equal(block.linear.weight, source.linear.weight)


def test_a_block_refuses_the_checkpoint_of_another_and_keeps_its_state(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(pack_state({"sum.offset": 7, "stray": 1}))
    block = Composite(config={"offset": 1})
    with pytest.raises(CheckpointMismatch, match=r"missing \['linear.bias', 'linear.weight'\], unexpected \['stray'\]"):
        block.load_from_checkpoint(tmp_path / "a.json")
    assert block.sum.offset == 1


def test_a_checkpoint_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"checkpoint .*none\.json' does not exist"):
        Add().load_from_checkpoint(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"offset": ', encoding="utf-8")
    with pytest.raises(InvalidCheckpoint, match="not a json checkpoint"):
        Add().load_from_checkpoint(tmp_path / "cut.json")
    with pytest.raises(UnsupportedFormat, match="'pt' is not supported"):
        Add().load_from_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("node_id", ["", " ", None], ids=repr)
def test_a_node_needs_an_id(node_id: Any) -> None:
    with pytest.raises(ValueError, match="node_id must be a non-empty string"):
        Node(node_id, Add())


def test_a_node_holds_exactly_one_block_and_has_its_ports() -> None:
    node = Node("n", Add())
    assert node.block_type == "sample/add"
    assert [port.name for port in node.get_input_ports() + node.get_output_ports()] == ["a", "b", "out"]
    assert node.get_port("b") == Port("b", PortDirection.IN)
    with pytest.raises(ValueError, match="needs a block, got str"):
        Node("n", "sample/add")  # type: ignore[arg-type]


def test_a_nodes_defaults_come_from_the_block_and_must_be_a_mapping() -> None:
    assert Node("n", Add(config={"defaults": {"b": 1}})).defaults == {"b": 1}
    with pytest.raises(ValueError, match="'defaults' must map port names to values"):
        Node("n", Add(config={"defaults": [1]}))


@pytest.mark.parametrize("blank", range(4))
@pytest.mark.parametrize("value", ["", " ", None], ids=repr)
def test_an_edge_has_no_blank_field(blank: int, value: Any) -> None:
    fields = ["a", "x", "b", "y"]
    fields[blank] = value
    with pytest.raises(ValueError, match="must be a non-empty string"):
        Edge(*fields)


def test_an_edge_prints_as_the_way_it_goes() -> None:
    assert str(Edge("a", "x", "b", "y")) == "a.x -> b.y"


def test_blocks_do_not_change_their_inputs() -> None:
    inputs = {"x": [1]}
    assert Double().forward(inputs) == {"y": [1, 1]}
    assert inputs == {"x": [1]}
