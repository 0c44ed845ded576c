"""A kind that another package defines, in one file and with one registration, works wherever the built-in kinds do."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.endpoints import EndpointProcess, registry_of
from samples.gain_kind import Gain
from yggdrasill.cli import main
from yggdrasill.draw import draw_config
from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation import register_template
from yggdrasill.foundation.templates import _registered
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import RemoteGraph
from yggdrasill.stage import Stage

GAIN = {"kind": "gain", "gain_id": "triple", "factor": 3}
PIPELINE: dict[str, Any] = {
    "pipeline_id": "p",
    "graphs": [{"pipeline_node_id": name, "graph_config": GAIN} for name in ("first", "second")],
    "edges": [{"source_node": "first", "source_port": "y", "target_node": "second", "target_port": "x"}],
    "exposed_inputs": [{"pipeline_node_id": "first", "port_name": "x", "name": "x"}],
    "exposed_outputs": [{"pipeline_node_id": "second", "port_name": "y", "name": "y"}],
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    folder = tmp_path_factory.mktemp("gain")
    process = EndpointProcess("gains", folder, plugins=["samples.gain_kind"]).start()
    yield process
    process.stop()


@pytest.fixture
def gain_file(tmp_path: Path) -> Path:
    path = tmp_path / "gain.json"
    path.write_text(json.dumps(GAIN), encoding="utf-8")
    return path


def test_a_pipeline_builds_it_from_a_config() -> None:
    pipeline = Pipeline.from_config(PIPELINE, validate=True)
    assert isinstance(pipeline.get_graph("first"), Gain)
    assert pipeline.run({"x": 2}) == {"y": 18}


def test_a_pipeline_builds_it_from_a_file(gain_file: Path) -> None:
    pipeline = Pipeline("p")
    assert pipeline.add_graph(gain_file) == "triple"
    ref = {"pipeline_id": "p", "graphs": [{"pipeline_node_id": "g", "ref": gain_file.name}]}
    assert isinstance(Pipeline.from_config(ref, base_dir=gain_file.parent).get_graph("g"), Gain)


def test_a_stage_takes_it_in_place_of_a_pipeline() -> None:
    config = {
        "stage_id": "s",
        "pipelines": [{"stage_node_id": "g", "pipeline_config": GAIN}],
        "state_contract": {
            "input_blocks": [1],
            "output_blocks": [2],
            "mapping_input": [{"block": 1, "stage_node_id": "g", "port": "x"}],
            "mapping_output": [{"block": 2, "stage_node_id": "g", "port": "y"}],
        },
    }
    assert Stage.from_config(config).run({1: 5}).blocks[2] == 15


def test_a_mistake_in_its_config_is_named() -> None:
    with pytest.raises(InvalidConfig, match="gain 'triple': factor must be a number"):
        Pipeline.from_config({"graphs": [{"pipeline_node_id": "g", "graph_config": {**GAIN, "factor": "much"}}]})


@pytest.mark.parametrize("target", ["saved", "saved.zip"])
def test_it_is_saved_and_loaded_with_its_container(tmp_path: Path, target: str) -> None:
    pipeline = Pipeline.from_config(PIPELINE)
    pipeline.save(tmp_path / target, format="archive" if target.endswith("zip") else "dir")
    loaded = Pipeline.load(tmp_path / target)
    assert loaded.to_config() == pipeline.to_config()
    assert loaded.run({"x": 2}) == {"y": 18}


def test_it_is_drawn_alone_and_inside_a_pipeline() -> None:
    assert "triple" in draw_config(GAIN)
    picture = draw_config(PIPELINE)
    assert "first" in picture
    assert "gain" in picture


def test_the_command_line_validates_runs_and_draws_it(gain_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(gain_file), "--plugin", "samples.gain_kind", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"level": "gain", "id": "triple", "errors": [], "warnings": [], "is_valid": True}
    assert main(["run", str(gain_file), "--input", "x=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == {"y": "6"}
    assert main(["draw", str(gain_file), "--out", str(tmp_path / "gain.svg")]) == 0
    assert "triple" in (tmp_path / "gain.svg").read_text(encoding="utf-8")


def test_a_template_may_give_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("yggdrasill.foundation.templates._registered", dict(_registered))
    register_template("gain", "times", lambda factor=2: {**GAIN, "factor": factor})
    assert main(["run", "template:times", "--param", "factor=4", "--input", "x=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == {"y": "8"}


def test_an_endpoint_serves_it_alone_and_as_a_placed_part(endpoint: EndpointProcess) -> None:
    registry = registry_of(endpoint, graphs={"second": "gains"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placed = registry.place(Pipeline.from_config(PIPELINE))
        built = Pipeline.from_config(PIPELINE, endpoints=registry)
    for pipeline in (placed, built):
        assert isinstance(pipeline.get_graph("second"), RemoteGraph)
        assert pipeline.run({"x": 2}) == {"y": 18}
        assert pipeline.to_config() == Pipeline.from_config(PIPELINE).to_config()
    alone = registry_of(endpoint, graphs={"triple": "gains"}).place(Gain("triple", 3))
    assert alone.run({"x": 2}) == {"y": 6}


def test_an_endpoint_refuses_options_that_it_does_not_take(endpoint: EndpointProcess) -> None:
    remote = registry_of(endpoint, graphs={"triple": "gains"}).place(Gain("triple", 3))
    with pytest.raises(Exception, match="num_loop_steps"):
        remote.run({"x": 2}, num_loop_steps=2)
