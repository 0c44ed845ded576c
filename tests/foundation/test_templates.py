"""Templates: files with placeholders and choices, functions, and the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samples.graphs import graph_of, sample_registry
from yggdrasill.errors import InvalidArgument, InvalidConfig, UnknownName
from yggdrasill.foundation import Graph, ReusePool, register_template, template_names, templates
from yggdrasill.foundation.templates import FileTemplate, render_template

TEXT = """
description: A node and its offset.
parameters:
  name: {default: a, description: the node}
  offset: {default: 1}
  kind:
    default: plain
    choices:
      plain: {block_type: sample/add, config: {offset: "{{offset}}"}}
      other: {block_type: sample/double}
config:
  graph_id: "graph of {{name}} and {{ offset }}"
  metadata: {node: "{{kind}}", twice: "{{name}}{{name}}", offset: "{{ offset }}", plain: "{ {name} }"}
  nodes: []
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates registered by a test are gone after it."""
    monkeypatch.setattr(templates, "_registered", {})


def test_placeholders_become_values_or_words(file: Path) -> None:
    assert FileTemplate(file)(name="x", offset=[1, 2]) == {
        "graph_id": "graph of x and [1, 2]",
        "metadata": {
            "node": {"block_type": "sample/add", "config": {"offset": [1, 2]}},
            "twice": "xx",
            "offset": [1, 2],
            "plain": "{ {name} }",
        },
        "nodes": [],
    }


def test_a_parameter_has_a_default_and_may_have_choices(file: Path) -> None:
    template = FileTemplate(file)
    assert template()["graph_id"] == "graph of a and 1"
    assert template(kind="other")["metadata"]["node"] == {"block_type": "sample/double"}
    assert template.description == "A node and its offset."


@pytest.mark.parametrize("value", ["plane", 3, None, ["plain"], {}], ids=repr)
def test_a_value_that_is_no_choice_is_refused_with_those_there_are(file: Path, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"parameter 'kind' is .*\. Available: 'other', 'plain'"):
        FileTemplate(file)(kind=value)


def test_an_unknown_parameter_is_answered_with_near_ones(file: Path) -> None:
    with pytest.raises(UnknownName, match=r"Unknown parameter of template 'one' 'ofset'. Available: 'offset', .*Did you mean 'offset'\?"):
        FileTemplate(file)(ofset=1)


def test_a_value_is_never_looked_into_for_placeholders(file: Path) -> None:
    assert FileTemplate(file)(name="{{offset}}")["metadata"]["twice"] == "{{offset}}{{offset}}"


def test_two_renderings_share_nothing(file: Path) -> None:
    given: list[int] = [1]
    template = FileTemplate(file)
    first = template(offset=given)
    first["metadata"]["offset"].append(2)
    assert given == [1]
    assert template(offset=given)["metadata"]["offset"] == [1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("config: {a: '{{b}}'}", "uses {{b}}: Unknown parameter 'b'. Available:"),
        ("parameters: {a: {default: x, choices: {x: '{{a}}'}}}\nconfig: {a: '{{a}}'}", "parameter 'a' contains itself"),
        ("parameters: {a: {defualt: 1}}\nconfig: {}", "parameters.a.defualt: Extra inputs are not permitted"),
        ("parameters: {}", "config: Field required"),
        ("schema_version: '9.0'\nconfig: {}", "schema_version '9.0' is newer"),
        ("config: [", "line 2, column 1"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidConfig) as caught:
        FileTemplate(tmp_path / "bad.yaml")()
    assert message in str(caught.value)


@pytest.mark.usefixtures("unregistered")
def test_a_function_may_be_a_template() -> None:
    register_template("graph", "adder", lambda offset=0: graph_of({"a": ("add", {"offset": offset})}).to_config())
    assert "adder" in template_names("graph")
    graph = Graph.from_template("adder", registry=sample_registry(), offset=4)
    assert graph.state_dict() == {"a": {"offset": 4}}
    with pytest.raises(ValueError, match="input 'a' is required"):
        Graph.from_template("adder", registry=sample_registry(), validate=True)


@pytest.mark.parametrize("level, name", [("node", "x"), ("graph", ""), ("graph", None)])
def test_a_template_needs_a_level_and_a_name(level: str, name: Any) -> None:
    with pytest.raises(ValueError, match=r"Available: .*'graph'|non-empty string"):
        register_template(level, name, dict)


@pytest.mark.parametrize("name", ["text_to_imag", "../graph/text_to_image", "", "text_to_image.yaml"])
def test_an_unknown_template_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(KeyError, match=r"Unknown graph template .*'text_to_image'"):
        Graph.from_template(name)


@pytest.mark.parametrize("name", template_names("graph"))
def test_every_shipped_graph_is_valid(name: str) -> None:
    graph = Graph.from_template(name, validate=True)
    assert graph.validate().warnings == []
    assert Graph.from_config(graph.to_config()).to_config() == graph.to_config()
    assert render_template("graph", name, {}) == render_template("graph", name, {})


def test_text_to_image_is_a_working_skeleton() -> None:
    graph = Graph.from_template("text_to_image", graph_id="mine")
    assert graph.graph_id == "mine"
    assert {"text", "timestep"} <= {entry["name"] for entry in graph.get_input_spec()}
    assert [entry["name"] for entry in graph.get_output_spec()] == ["image"]
    inputs = {entry["name"]: torch.ones(1, 2, 2, 3) for entry in graph.get_input_spec()}
    assert graph.run({**inputs, "text": "a lake"}, num_loop_steps=3)["image"].shape == (1, 2, 2, 3)


def test_from_template_takes_the_options_of_from_config(unregistered: None) -> None:
    register_template("graph", "offset", lambda: graph_of({"a": "add"}, [], ["a.a = a", "a.b = b"], ["a.out = y"]).to_config())
    pool = ReusePool()
    graph = Graph.from_template("offset", registry=sample_registry(), pool=pool, endpoints=None, validate=True)
    assert graph.pool is pool


def test_a_parameter_may_have_the_name_of_an_option(unregistered: None) -> None:
    register_template("graph", "deep", lambda pool, endpoints, size=1: {"metadata": {"pool": pool, "endpoints": endpoints, "size": size}})
    graph = Graph.from_template("deep", parameters={"pool": "big", "endpoints": 2}, size=3, pool=ReusePool())
    assert graph.metadata == {"pool": "big", "endpoints": 2, "size": 3}


def test_a_parameter_that_is_given_twice_is_refused(unregistered: None) -> None:
    register_template("graph", "sized", lambda size: {"metadata": {"size": size}})
    with pytest.raises(InvalidArgument, match="'size' of template 'sized' is given twice"):
        Graph.from_template("sized", parameters={"size": 1}, size=2)
