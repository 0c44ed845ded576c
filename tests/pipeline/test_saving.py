"""Config, checkpoint, folder and archive of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from samples.blocks import register_samples
from samples.worlds import bits
from yggdrasill.errors import (
    CheckpointMismatch,
    InvalidArgument,
    InvalidCheckpoint,
    InvalidConfig,
    MissingFile,
    UnknownName,
    UnsupportedVersion,
)
from yggdrasill.foundation import Graph
from yggdrasill.foundation.checkpoints import state_digest
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.foundation.templates import register_template
from yggdrasill.pipeline import Pipeline

REGISTRY = BlockRegistry(built_ins=False)
register_samples(REGISTRY)


def trained() -> Pipeline:
    """Two linear graphs in a row, with weights no other pipeline has."""
    pipeline = Pipeline("p", metadata={"author": "nobody"})
    for number, name in enumerate(("a", "b")):
        graph = Graph(name, registry=REGISTRY)
        graph.add_node("n", "sample/linear", config={"seed": number}, auto_connect=False)
        graph.expose_input("n", "x", "x")
        graph.expose_output("n", "y", "y")
        pipeline.add_graph(graph, trainable=name == "a")
        block: Any = graph.get_node("n").block
        block.weight.data += 0.25
    pipeline.add_edge("a", "y", "b", "x")
    pipeline.expose_input("a", "x", "x")
    pipeline.expose_output("b", "y", "y")
    return pipeline


def result(pipeline: Pipeline) -> bytes:
    import torch

    return bits(pipeline.run({"x": torch.arange(3.0)})["y"].detach())


def test_the_config_round_trips_with_flags_and_metadata() -> None:
    config = trained().to_config()
    again = Pipeline.from_config(config, REGISTRY, validate=True)
    assert again.to_config() == config
    assert ([again.is_trainable(name) for name in "ab"], again.metadata) == ([True, False], {"author": "nobody"})


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_config_file_round_trips(tmp_path: Path, suffix: str) -> None:
    trained().save_config(tmp_path / f"p.{suffix}")
    assert Pipeline.from_yaml(tmp_path / f"p.{suffix}", REGISTRY).to_config() == trained().to_config()


@pytest.mark.parametrize("name", ["saved", "saved.zip", "saved.tar", "saved.tgz"])
@pytest.mark.parametrize("backend", ["json", "safetensors"])
def test_save_and_load_keep_config_and_weights(tmp_path: Path, name: str, backend: str) -> None:
    pipeline = trained()
    pipeline.save(tmp_path / name, format="archive" if "." in name else "dir", backend=backend)

    loaded = Pipeline.load(tmp_path / name, registry=REGISTRY)

    assert loaded.to_config() == pipeline.to_config()
    assert result(loaded) == result(pipeline)


def test_the_folder_has_the_layout_of_the_canon(tmp_path: Path) -> None:
    pipeline = trained()
    pipeline.save(tmp_path)
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {
        *(f"checkpoints/blobs/{state_digest(block.state_dict())}.safetensors" for block in pipeline.blocks()),
        "config.json",
        "checkpoints/a/config.json",
        "checkpoints/a/checkpoint.json",
        "checkpoints/b/config.json",
        "checkpoints/b/checkpoint.json",
        "checkpoints/pipeline_meta.json",
    }
    meta = json.loads((tmp_path / "checkpoints/pipeline_meta.json").read_text(encoding="utf-8"))
    assert meta == {"pipeline_id": "p", "node_ids": ["a", "b"], "version": "1.0"}


def test_two_archives_of_one_pipeline_have_the_same_bytes(tmp_path: Path) -> None:
    pipeline = trained()
    for name in ("one.zip", "two.zip"):
        pipeline.save(tmp_path / name, format="archive")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize("layout, backend", [("single", "json"), ("single", "safetensors"), ("dir", "json")])
def test_a_checkpoint_brings_the_weights_back(tmp_path: Path, layout: str, backend: str) -> None:
    pipeline = trained()
    path = tmp_path / (f"weights.{backend}" if layout == "single" else "weights")
    pipeline.save_checkpoint(path, format=layout, backend=backend)
    fresh = Pipeline.from_config(pipeline.to_config(), REGISTRY)
    assert result(fresh) != result(pipeline)

    single = layout == "single"
    fresh.load_from_checkpoint(checkpoint_path=path if single else None, checkpoint_dir=None if single else path)

    assert result(fresh) == result(pipeline)


def test_load_from_checkpoint_may_rebuild_from_a_config(tmp_path: Path) -> None:
    pipeline = trained()
    pipeline.save_config(tmp_path / "p.yaml")
    pipeline.save_checkpoint(tmp_path / "weights.json")

    loaded = Pipeline().load_from_checkpoint(tmp_path / "p.yaml", checkpoint_path=tmp_path / "weights.json", registry=REGISTRY)

    assert result(loaded) == result(pipeline)


def test_a_state_with_other_keys_changes_nothing() -> None:
    pipeline = trained()
    before = result(pipeline)
    state = pipeline.state_dict()
    state["b"]["n"] = {"weight": state["b"]["n"]["weight"]}
    state["a"]["n"]["weight"] = state["a"]["n"]["weight"] * 0

    with pytest.raises(CheckpointMismatch, match=r"node 'b/n' .*missing \['bias'\]"):
        pipeline.load_state_dict(state)
    assert result(pipeline) == before
    with pytest.raises(CheckpointMismatch, match=r"has no graph 'c'\. Available: 'a', 'b'"):
        pipeline.load_state_dict({"c": {}})


def test_a_folder_without_config_and_a_file_that_is_no_archive_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        Pipeline.load(tmp_path)
    with pytest.raises(MissingFile):
        Pipeline.load(tmp_path / "gone")
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(InvalidCheckpoint, match="is not a readable archive"):
        Pipeline.load(tmp_path / "x.zip")
    with pytest.raises(InvalidArgument, match=r"ends in \.zip, \.tar or \.tar\.gz"):
        trained().save(tmp_path / "x.rar", format="archive")


def test_an_id_that_is_no_file_name_cannot_be_saved_and_leaves_nothing(tmp_path: Path) -> None:
    pipeline = Pipeline()
    pipeline.add_graph(Graph(registry=REGISTRY), "a/b")
    with pytest.raises(InvalidArgument, match="graph id 'a/b' cannot be a file name"):
        pipeline.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_refs_are_relative_to_the_file_that_contains_them(tmp_path: Path) -> None:
    config = trained().to_config()
    (tmp_path / "graphs").mkdir()
    for entry in config["graphs"]:
        name = entry["pipeline_node_id"]
        (tmp_path / "graphs" / f"{name}.yaml").write_text(yaml.safe_dump(entry.pop("graph_config")), encoding="utf-8")
        entry.update({"ref": f"graphs/{name}.yaml"} if name == "a" else {"graph_config": {"ref": f"graphs/{name}.yaml"}})
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    assert Pipeline.from_yaml(tmp_path / "p.yaml", REGISTRY).to_config() == trained().to_config()


def test_a_ref_that_leads_back_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"ref": "p.json"}), encoding="utf-8")
    with pytest.raises(InvalidConfig, match="leads back to itself"):
        Pipeline.from_yaml(tmp_path / "p.json")


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"graph": []}, "graph"),
        ({"graphs": [{"pipeline_node_id": "a"}]}, r"graphs\[0\] needs exactly one of 'graph_config', 'ref' and 'endpoint_url'"),
        ({"edges": [{"source_node": "a"}]}, r"edges\[0\]"),
        ({"edges": [{"source_node": "a", "source_port": "y", "target_node": "b", "target_port": "z"}]}, r"graph 'b': Unknown input 'z'"),
    ],
    ids=["unknown key", "no graph", "half an edge", "no port"],
)
def test_a_mistake_in_a_config_is_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Pipeline.from_config({**trained().to_config(), **change}, REGISTRY)


def test_a_newer_config_is_refused_as_such() -> None:
    with pytest.raises(UnsupportedVersion, match=r"schema_version '2\.0' is newer than '1\.0'"):
        Pipeline.from_config({"schema_version": "2.0"})


def test_an_exposed_port_that_is_none_is_found_by_validate() -> None:
    config = trained().to_config()
    config["exposed_outputs"][0]["port_name"] = "z"
    with pytest.raises(ValueError, match=r"exposed output 'y': graph 'b': Unknown output 'z'\. Available: 'y'"):
        Pipeline.from_config(config, REGISTRY, validate=True)


def test_a_template_of_the_level_builds_a_pipeline() -> None:
    register_template("pipeline", "tiny_test_pipeline", lambda: trained().to_config())
    assert Pipeline.from_template("tiny_test_pipeline", registry=REGISTRY).to_config() == trained().to_config()
    with pytest.raises(UnknownName):
        Pipeline.from_template("no such pipeline")
