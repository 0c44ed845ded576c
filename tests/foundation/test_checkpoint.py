"""Checkpoint files: json and safetensors, whole and per node, and everything that can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from samples.blocks import Accumulate, Add, Linear
from samples.graphs import bits, graph_of, sample_registry
from yggdrasill.errors import CheckpointMismatch, InvalidCheckpoint, MissingFile, StorageFailed, UnsupportedFormat
from yggdrasill.foundation import Graph
from yggdrasill.foundation.checkpoints import BACKENDS, pack_state, read_state, unpack_state

TENSORS = {
    "float": torch.tensor([1.5, -0.0, float("nan"), float("inf")]),
    "bfloat16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3) / 7,
    "half": torch.tensor(0.1, dtype=torch.float16),
    "int": torch.tensor([[2**62, -1]]),
    "bool": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "channels last": torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "permuted": torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4).permute(2, 0, 1),
}
STATE: dict[str, Any] = {
    "node.a": {"tensors": TENSORS, "list": [1, "two", None, torch.ones(2)], "big": 2**70, 3: "int key", "nan": float("nan")},
    "node": {"a.tensors": {"float": torch.zeros(1)}, "bytes": b"\x00\xff", "tuple": (1, 2), "empty": {}},
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_comes_back_bit_by_bit_with_types_and_memory_order(backend: str) -> None:
    assert bits(unpack_state(pack_state(STATE, backend), backend, "w")) == bits(STATE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_of_a_larger_tensor_brings_only_itself(backend: str) -> None:
    large = torch.arange(100_000.0)
    data = pack_state({"part": large[10:20:2], "spread": torch.ones(1).expand(3), "conjugate": torch.tensor([1 + 2j]).conj()}, backend)
    assert len(data) < 10_000
    loaded = unpack_state(data, backend, "w")
    assert loaded["part"].tolist() == [10, 12, 14, 16, 18]
    assert loaded["spread"].tolist() == [1, 1, 1]
    assert loaded["conjugate"].tolist() == [1 - 2j]


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_are_saved_as_plain_tensors(backend: str) -> None:
    loaded = unpack_state(pack_state({"w": torch.nn.Parameter(torch.ones(2))}, backend), backend, "w")
    assert type(loaded["w"]) is torch.Tensor
    assert not loaded["w"].requires_grad


def test_a_plain_safetensors_file_is_a_flat_state(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3, 3), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    block = Linear()
    block.load_from_checkpoint(tmp_path / "w.safetensors")
    assert block.bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("backend", ["torch", "pt", "pickle", "", "JSON"])
def test_other_backends_are_refused_for_saving_and_loading(backend: str, tmp_path: Path) -> None:
    graph = graph_of({"a": "add"})
    (tmp_path / "w.json").write_bytes(pack_state({"a": {"offset": 1}}))
    calls: list[Any] = [
        lambda: graph.save(tmp_path / "x", backend=backend),
        lambda: graph.save_checkpoint(tmp_path / "x", backend=backend),
        lambda: graph.save_checkpoint(tmp_path / "x", format="dir", backend=backend),
        lambda: graph.load_from_checkpoint(checkpoint_path=tmp_path / "w.json", backend=backend),
        lambda: graph.load_from_checkpoint(checkpoint_dir=tmp_path, backend=backend),
    ]
    for call in calls:
        with pytest.raises(UnsupportedFormat, match="is not supported"):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["w.json"]
    with pytest.raises(NotImplementedError):
        read_state(tmp_path / "weights.ckpt")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 40, -1])
def test_a_file_cut_short_is_refused(backend: str, cut: int) -> None:
    data = pack_state({"a": {"w": torch.ones(4)}}, backend)
    with pytest.raises(InvalidCheckpoint, match=f"w: not a {backend} checkpoint: .*; save it again"):
        unpack_state(data[:cut] if cut >= 0 else data[: -3 if backend == "json" else -1], backend, "w")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BACKENDS), st.data())
def test_a_file_altered_anywhere_is_a_state_or_refused(backend: str, data: st.DataObject) -> None:
    packed = bytearray(pack_state({"a": {"w": torch.ones(2), "n": [1, None]}}, backend))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        outcome: Any = unpack_state(bytes(packed), backend, "w")
    except InvalidCheckpoint:
        outcome = {}
    assert isinstance(outcome, dict)


@pytest.mark.parametrize(
    "skeleton",
    [
        [],
        3,
        "x",
        {},
        {"state": 3},
        {"state": {}, "strides": {}},
        {"state": {"$weight": "z"}, "strides": {}},
        {"state": {"$state": [1]}, "strides": {}},
    ],
    ids=repr,
)
def test_a_safetensors_file_with_a_wrong_description_is_refused(tmp_path: Path, skeleton: Any) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"yggdrasill": json.dumps(skeleton)})
    with pytest.raises(InvalidCheckpoint, match="not a safetensors checkpoint"):
        read_state(tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["[1]", "3", "null", "[" * 100_000])
def test_json_that_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidCheckpoint, match=r"not a json checkpoint|a checkpoint maps ids to states"):
        read_state(tmp_path / "w.json")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist; check the path"):
        read_state(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(StorageFailed, match=r"cannot read checkpoint"):
        read_state(tmp_path / "folder.json")


# -- a graph's checkpoints --------------------------------------------------------------------------------------


def trained() -> Graph:
    graph = graph_of({"a": ("add", {"offset": 5}), "l": ("linear", {"seed": 4}), "s": "accumulate", "i": "identity"})
    graph.get_node("s").block.load_state_dict({"total": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t()})
    return graph


def fresh() -> Graph:
    return graph_of({"a": "add", "l": "linear", "s": "accumulate", "i": "identity"})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["single", "dir"])
def test_a_graphs_checkpoint_comes_back(tmp_path: Path, form: str, backend: str) -> None:
    path = tmp_path / "w" if form == "dir" else tmp_path / f"w.{backend}"
    trained().save_checkpoint(path, format=form, backend=backend)
    if form == "dir":
        assert sorted(file.name for file in path.iterdir()) == [f"{name}.{backend}" for name in "als"]
        loaded = fresh().load_from_checkpoint(checkpoint_dir=path)
    else:
        loaded = fresh().load_from_checkpoint(checkpoint_path=path)
    assert bits(loaded.state_dict()) == bits(trained().state_dict())


def test_a_checkpoint_may_have_any_name_if_the_backend_is_told(tmp_path: Path) -> None:
    trained().save_checkpoint(tmp_path / "weights.bin", backend="safetensors")
    loaded = fresh().load_from_checkpoint(checkpoint_path=tmp_path / "weights.bin", backend="safetensors")
    assert bits(loaded.state_dict()) == bits(trained().state_dict())
    with pytest.raises(MissingFile):
        fresh().load_from_checkpoint(checkpoint_path=tmp_path / "none.bin", backend="json")


def test_saving_with_the_other_backend_leaves_no_older_file_to_be_loaded_instead(tmp_path: Path) -> None:
    graph = trained()
    for number, backend in enumerate(["json", "safetensors", "json"]):
        graph.load_state_dict({"a": {"offset": number}}, strict=False)
        graph.save_checkpoint(tmp_path / "dir", format="dir", backend=backend)
        graph.save(tmp_path / "save", backend=backend)
        assert fresh().load_from_checkpoint(checkpoint_dir=tmp_path / "dir").state_dict()["a"] == {"offset": number}
        assert Graph.load(tmp_path / "save", registry=sample_registry()).state_dict()["a"] == {"offset": number}
        blobs = [file.suffix for file in (tmp_path / "save" / "checkpoints" / "blobs").glob("*")]
        assert blobs == ([] if backend == "json" else [".safetensors"] * 3)


@pytest.mark.parametrize("node_id", ["a/b", "a\\b", "..", "a:b", "con", "NUL.x", "a ", "a?"])
def test_an_id_that_cannot_be_a_file_name_is_refused(tmp_path: Path, node_id: str) -> None:
    graph = graph_of({node_id: "add"})
    with pytest.raises(ValueError, match=r"cannot be a file name .* rename it or use format='single'"):
        graph.save_checkpoint(tmp_path / "w", format="dir")
    assert list(tmp_path.iterdir()) == []
    graph.save_checkpoint(tmp_path / "w.json")
    assert read_state(tmp_path / "w.json") == {node_id: {"offset": 0}}


def test_ids_that_differ_in_case_only_would_be_one_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="node ids 'a' and 'A' would be one file on some systems"):
        graph_of({"a": "add", "A": "add"}).save_checkpoint(tmp_path / "w", format="dir")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it can be 'single' or 'dir'"):
        trained().save_checkpoint(tmp_path / "w", format="zip")


@pytest.mark.parametrize("source", ["checkpoint", "checkpoint_path", "checkpoint_dir"])
def test_the_checkpoint_of_another_graph_is_refused_and_nothing_changes(tmp_path: Path, source: str) -> None:
    other = graph_of({"x": ("add", {"offset": 9}), "y": ("add", {"offset": 9})})
    other.save_checkpoint(tmp_path / "w.json")
    other.save_checkpoint(tmp_path / "dir", format="dir")
    given_as: dict[str, Any] = {
        "checkpoint": other.state_dict(),
        "checkpoint_path": tmp_path / "w.json",
        "checkpoint_dir": tmp_path / "dir",
    }
    graph = trained()
    before, config = bits(graph.state_dict()), graph.to_config()
    options: Iterable[dict[str, Any]] = ({}, {"config": graph_of({"q": "add"}).to_config(), "registry": sample_registry()})
    for more in options:
        with pytest.raises(CheckpointMismatch, match=r"has no node 'x', 'y'\. Available: .* This state belongs to another graph"):
            graph.load_from_checkpoint(**{source: given_as[source]}, **more)
        assert (bits(graph.state_dict()), graph.to_config()) == (before, config)


def test_loading_is_not_strict_about_nodes_and_may_rebuild_first(tmp_path: Path) -> None:
    source = graph_of({"a": ("add", {"offset": 1}), "new": ("add", {"offset": 2})}, [], ["a.a = x"], graph_id="rebuilt")
    source.save_config(tmp_path / "g.yaml")
    graph = trained()
    graph.load_from_checkpoint(checkpoint=source.state_dict())
    assert graph.state_dict()["a"] == {"offset": 1}
    pool = graph.pool
    assert graph.load_from_checkpoint(tmp_path / "g.yaml", checkpoint={"new": {"offset": 7}}, registry=sample_registry()) is graph
    assert (graph.graph_id, graph.node_ids, graph.state_dict()) == ("rebuilt", ["a", "new"], {"a": {"offset": 1}, "new": {"offset": 7}})
    assert graph.pool is pool
    assert graph.load_from_checkpoint(config=trained().to_config(), registry=sample_registry()).node_ids == ["a", "l", "s", "i"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"checkpoint folder .* does not exist"):
        trained().load_from_checkpoint(checkpoint_dir=tmp_path / "none")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_no_file_can_hold_is_refused_and_names_its_type(tmp_path: Path, backend: str) -> None:
    graph = Graph()
    graph.add_node(Accumulate(), node_id="s", pretrained={"total": object()})
    with pytest.raises(TypeError, match="object"):
        graph.save_checkpoint(tmp_path / "w", backend=backend)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_plain_values_needs_no_tensors_in_its_safetensors(tmp_path: Path) -> None:
    graph = Graph()
    graph.add_node(Add(), node_id="a", pretrained={"offset": 3})
    graph.save_checkpoint(tmp_path / "w.safetensors", backend="safetensors")
    assert read_state(tmp_path / "w.safetensors") == {"a": {"offset": 3}}
