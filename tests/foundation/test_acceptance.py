"""The twelve acceptance cases of the graph engine, by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.graphs import graph_of, sample_registry
from yggdrasill import run_graph
from yggdrasill.executor import run
from yggdrasill.foundation import Graph, ReusePool, ValidationResult


def adder(offset: int = 2) -> Graph:
    """``identity -> add``: x and b in, x + b + offset out."""
    return graph_of(
        {"first": "identity", "sum": ("add", {"offset": offset})},
        ["first.y -> sum.a"],
        ["first.x = x", "sum.b = b"],
        ["sum.out = out"],
    )


def broken() -> Graph:
    """An adder whose ``b`` nothing feeds."""
    return graph_of({"sum": "add"}, [], ["sum.a = a"], ["sum.out = out"])


@pytest.mark.parametrize("call", [run, run_graph, Graph.run], ids=["executor.run", "run_graph", "Graph.run"])
def test_run_dag_graph(call: Any) -> None:
    assert call(adder(), {"x": 10, "b": 5}) == {"out": 17}


def test_run_with_callbacks() -> None:
    seen = []
    adder().run({"x": 10, "b": 5}, callbacks=[lambda node, phase, **facts: seen.append((node, phase))])
    assert seen == [("first", "before"), ("first", "after"), ("sum", "before"), ("sum", "after")]


def test_validate_returns_validation_result() -> None:
    result = broken().validate(strict=False)
    assert isinstance(result, ValidationResult)
    assert not result.is_valid
    assert "node 'sum', input 'b'" in result.errors[0]
    assert adder().validate().is_valid


def test_validate_strict_raises_on_errors() -> None:
    with pytest.raises(ValueError, match="node 'sum', input 'b' is required"):
        broken().validate(strict=True)


def test_save_and_load_directory(tmp_path: Path) -> None:
    graph = adder(offset=2)
    graph.load_state_dict({"sum": {"offset": 40}})
    graph.save(tmp_path / "save")
    assert sorted(file.name for file in (tmp_path / "save").iterdir()) == ["checkpoint.json", "config.json"]
    assert Graph.load(tmp_path / "save", registry=sample_registry()).run({"x": 1, "b": 1}) == {"out": 42}


@pytest.mark.parametrize("device", ["cpu", None])
def test_graph_to_device_no_raise(device: str | None) -> None:
    graph = graph_of({"a": "linear", "b": "identity"})
    assert graph.to(device) is graph
    graph.run({}, device=device, dry_run=True)


def test_run_dry_run() -> None:
    graph = graph_of({"a": "fail"}, [], ["a.x = x"], ["a.y = y"])
    assert graph.run({"x": 1}, dry_run=True) == {"y": None}


def test_from_config_validate() -> None:
    config = broken().to_config()
    with pytest.raises(ValueError, match="input 'b' is required"):
        Graph.from_config(config, sample_registry(), validate=True)
    assert Graph.from_config(config, sample_registry(), validate=False).node_ids == ["sum"]


def test_save_checkpoint_dir_format(tmp_path: Path) -> None:
    graph = graph_of({"a": ("add", {"offset": 1}), "b": ("add", {"offset": 2}), "c": "identity"})
    graph.save_checkpoint(tmp_path, format="dir")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]
    other = graph_of({"a": "add", "b": "add", "c": "identity"})
    other.load_from_checkpoint(checkpoint_dir=tmp_path)
    assert other.state_dict() == {"a": {"offset": 1}, "b": {"offset": 2}}


def test_infer_exposed_ports() -> None:
    graph = adder()
    graph.infer_exposed_ports()
    assert [entry["name"] for entry in graph.get_input_spec()] == ["first:x", "sum:b"]
    assert [entry["name"] for entry in graph.get_output_spec()] == ["sum:out"]
    assert graph.run({"first:x": 1, "sum:b": 1}) == {"sum:out": 4}


def test_save_checkpoint_backend_json_only(tmp_path: Path) -> None:
    for backend in ("torch", "pickle", "pt"):
        with pytest.raises(NotImplementedError, match="use one of json, safetensors"):
            adder().save_checkpoint(tmp_path / "x", backend=backend)
    assert list(tmp_path.iterdir()) == []


def test_get_input_output_spec_include_dtype() -> None:
    graph = graph_of({"n": "noise", "l": "linear"}, ["n.noise -> l.x"], ["n.after"], ["l.y = y"], pool=ReusePool())
    assert graph.get_input_spec() == [{"node_id": "n", "port_name": "after", "name": "n:after"}]
    assert graph.get_input_spec(include_dtype=True) == [
        {"node_id": "n", "port_name": "after", "name": "n:after", "dtype": "any", "optional": True}
    ]
    assert graph.get_output_spec(include_dtype=True) == [
        {"node_id": "l", "port_name": "y", "name": "y", "dtype": "tensor", "optional": False}
    ]
