"""Pictures of configs at every level."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.draw import draw_config
from yggdrasill.errors import InvalidConfig, YggdrasillError

Config = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}text")]


def tooltips(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}title")]


def _node(node_id: str, block_type: str = "procedural/noise") -> Config:
    return {"node_id": node_id, "block_type": block_type, "block_id": node_id, "config": {}, "trainable": True}


def _edge(source: str, target: str, port: str = "x") -> Config:
    return {"source_node": source, "source_port": "y", "target_node": target, "target_port": port}


def test_every_level_draws_as_xml_with_its_id(config: Config) -> None:
    name = next(config[key] for key in ("world_id", "stage_id", "pipeline_id", "graph_id") if key in config)
    assert name in texts(draw_config(config))


def test_equal_configs_give_equal_bytes(config: Config) -> None:
    assert draw_config(config) == draw_config(json.loads(json.dumps(config)))


def test_drawing_leaves_the_config_as_it_was(config: Config) -> None:
    before = copy.deepcopy(config)
    draw_config(config, places={"generate": "local"})
    assert config == before


def test_every_number_in_a_picture_is_finite(config: Config) -> None:
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<(title|text|style)[^>]*>.*?</\1>", "", draw_config(config)))


def test_the_title_replaces_the_id(graph: Config) -> None:
    words = texts(draw_config(graph, title="A <b>picture</b>"))
    assert "A <b>picture</b>" in words
    assert "text_to_image" not in words


def test_a_graph_shows_nodes_types_ports_and_external_names(graph: Config) -> None:
    words = texts(draw_config(graph))
    for shown in ("backbone", "backbone/unet2d", "next_timestep", "decode_latent", "image", "frozen", "config: blocks/vae.yaml"):
        assert shown in words
    assert words.count("latent") == 3  # one pill for both ends, and a port of backbone and solver each


def test_a_cycle_is_drawn_dashed_with_its_number_of_steps(graph: Config) -> None:
    picture = draw_config(graph)
    assert 'class="y-loop-wire"' in picture
    assert "closes a loop" in texts(picture)
    assert texts(picture).count("loop × 20") == 2  # solver to backbone, solver to itself


def test_a_dag_shows_no_loop(graph: Config) -> None:
    graph["edges"] = [edge for edge in graph["edges"] if edge["source_node"] != "solver"]
    assert 'class="y-loop-wire"' not in draw_config(graph)


def test_a_node_has_the_colour_of_its_role(graph: Config) -> None:
    graph["nodes"] = [_node("a", "Solver_Euler")]
    graph["edges"] = graph["exposed_inputs"] = graph["exposed_outputs"] = []
    assert "y-orange-line" in draw_config(graph)


def test_a_pipeline_shows_the_inside_of_its_graphs(pipeline: Config) -> None:
    words = texts(draw_config(pipeline))
    assert {"generate", "upscale", "tokenizer", "solver", "decode", "prompt", "draft"} <= set(words)


def test_a_stage_shows_two_levels_and_the_blocks_of_its_contract(stage: Config) -> None:
    words = texts(draw_config(stage))
    assert {"render", "terrain", "erosion", "2 configuration", "3 artifacts", "ref: pipelines/archive.yaml", "if 3"} <= set(words)


def test_blocks_without_a_mapping_go_to_the_port_of_their_name_or_to_the_interface(stage: Config) -> None:
    stage["state_contract"] = {"input_blocks": [1, 2, "in"], "output_blocks": [3]}
    stage["pipelines"][0]["pipeline_config"]["exposed_inputs"] = [
        {"pipeline_node_id": "terrain", "port_name": "in", "name": name} for name in ("in", "block_2")
    ]
    found = tooltips(draw_config(stage))
    assert "in → render.in" in found
    assert "2 configuration → render.block_2" in found
    assert "1 what should happen → render." in found
    assert "frame. → 3 artifacts" in found


def test_a_world_shows_stages_their_parts_and_the_blocks_they_read_and_write(world: Config) -> None:
    picture = draw_config(world)
    assert {"philosopher", "world_update · if world_update", "chronicle", "what really happened", "glossary, style"} <= set(texts(picture))
    found = set(tooltips(picture))
    assert {"philosopher writes block 4", "author reads block 4", "environment writes block 1", "creator reads block 2"} <= found
    assert "architect reads block 3" not in found
    assert picture.count('class="y-ring-head"') == 5


def test_a_world_of_refs_and_endpoints_draws_closed_cards() -> None:
    stages = {"philosopher": {"ref": "stages/philosopher.yaml"}, "author": {"endpoint_url": "https://llm.example:9000/x"}}
    picture = draw_config({"cycle": ["philosopher", "author"], "stages": stages})
    assert {"ref: stages/philosopher.yaml", "llm.example:9000"} <= set(texts(picture))
    assert picture.count("y-dashed") >= 2


@pytest.mark.parametrize(
    "places, shown",
    [
        ({"upscale": "studio"}, ["studio"] * 2),
        ({"generate_and_upscale/upscale": "studio"}, ["studio"] * 2),
        ({"generate_and_upscale": "studio"}, ["studio"] * 2),
        ({"generate": "local", "upscale": "studio"}, ["local", "studio"] * 2),
        ({"elsewhere": "moon"}, []),
    ],
    ids=["id", "path", "whole", "two", "no such part"],
)
def test_places_are_badges_on_the_parts_and_in_the_legend(pipeline: Config, places: dict[str, str], shown: list[str]) -> None:
    words = texts(draw_config(pipeline, places=places))
    assert sorted(word for word in words if word in {"studio", "local", "moon"}) == sorted(shown)


def test_a_longer_path_goes_before_a_shorter_one(world: Config) -> None:
    found = tooltips(draw_config(world, places={"creator": "local", "creator/render/terrain": "studio"}))
    assert found.count("runs at studio") == 2
    assert found.count("runs at local") == 2


def test_an_endpoint_shows_host_and_port_but_no_password(stage: Config) -> None:
    picture = draw_config(stage)
    assert "gpu-box:8188" in texts(picture)
    assert "secret" not in picture
    assert "user" not in picture


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=12), min_size=2, max_size=5, unique=True))
def test_ids_of_any_text_are_escaped(ids: list[str]) -> None:
    nodes = [_node(name, f"{name}/type") for name in ids]
    exposed = [{"node_id": ids[0], "port_name": ids[1], "name": ids[1]}]
    picture = draw_config(
        {"graph_id": ids[0], "nodes": nodes, "edges": [_edge(ids[0], ids[1], ids[1])], "exposed_inputs": exposed}, title=ids[1]
    )
    ET.fromstring(picture.encode())


def test_markup_in_an_id_is_text() -> None:
    hostile = "</text><script>alert('1 & \"2\"')</script>"
    picture = draw_config({"graph_id": "g", "nodes": [_node(hostile[:30])]})
    assert "<script" not in picture
    assert hostile[:30] in texts(picture)


def test_a_graph_of_ten_thousand_nodes_counts_the_nodes_not_drawn() -> None:
    nodes = [_node(f"n{index}") for index in range(10_000)]
    edges = [_edge(f"n{index}", f"n{index * 7 % 10_000}") for index in range(10_000)]
    picture = draw_config({"graph_id": "big", "nodes": nodes, "edges": edges})
    words = texts(picture)
    assert "+ 9,880 nodes" in words
    assert any(re.fullmatch(r"Not drawn of big: 9,880 nodes, 9,\d\d\d edges \(120 of 10,000 nodes are drawn\)\.", word) for word in words)
    assert len(picture) < 500_000


def test_a_node_with_a_thousand_ports_stays_a_box() -> None:
    edges = [_edge("a", "b", f"port{index}") for index in range(500)]
    words = texts(draw_config({"graph_id": "wide", "nodes": [_node("a"), _node("b")], "edges": edges}))
    assert "and 485 more" in words
    assert "port14" in words
    assert "port15" not in words


def test_a_dense_graph_draws_a_bounded_number_of_edges() -> None:
    names = [f"n{index}" for index in range(60)]
    edges = [_edge(source, target) for place, target in enumerate(names) for source in names[:place]]
    picture = draw_config({"graph_id": "dense", "nodes": [_node(name) for name in names], "edges": edges})
    assert "Not drawn of dense: 1,170 edges (60 of 60 nodes are drawn)." in texts(picture)
    assert picture.count('class="y-wire ') == 600


def test_a_pipeline_of_pipelines_draws_one_level_and_closes_the_rest(pipeline: Config) -> None:
    outer = {"pipeline_id": "outer", "graphs": [{"pipeline_node_id": "inner", "graph_config": pipeline}]}
    words = texts(draw_config(outer))
    assert {"inner", "generate", "pipeline · 2 graphs"} <= set(words)
    assert "tokenizer" not in words


def test_levels_without_parts_draw() -> None:
    empty: list[Config] = [{"nodes": []}, {"graphs": []}, {"pipelines": []}, {"cycle": [], "stages": {}}, {"nodes": None}]
    for config in empty:
        ET.fromstring(draw_config(config))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"steps": 3}, r"its keys are 'steps'; a drawable config has 'nodes' \(a graph\), 'graphs' \(a pipeline\)"),
        ({"ref": "graph.yaml"}, "read the file its 'ref' names"),
        ([1, 2], "it is a list, not a mapping; a drawable config has"),
        ({"nodes": {"a": 1}}, "nodes is a dict"),
        ({"nodes": ["a"]}, r"nodes\[0\] is a str"),
        ({"nodes": [{"id": "a"}]}, r"nodes\[0\] has no 'node_id'; its keys are 'id'"),
        ({"nodes": [_node("a"), _node("a")]}, r"nodes\[1\] repeats the node_id 'a'"),
        (
            {"nodes": [_node("adder")], "edges": [_edge("adder", "ader")]},
            r"edges\[0\] \(adder.y -> ader.x\): Unknown child 'ader'.*Available: 'adder'",
        ),
        ({"nodes": [], "exposed_inputs": [{"node_id": "a", "port_name": "x"}]}, r"exposed_inputs\[0\]: Unknown child 'a'"),
        ({"pipelines": [], "state_contract": [1]}, "state_contract is a list"),
        ({"pipelines": [], "state_contract": {"input_blocks": 1}}, "input_blocks is a int"),
        ({"pipelines": [], "state_contract": {"mapping_input": [[1, "a"]]}}, r"mapping_input\[0\] is not a triple"),
        ({"pipelines": [], "state_contract": {"mapping_input": [[1, "a", "x"]]}}, "state_contract, '1': Unknown pipeline 'a'"),
        ({"cycle": ["author"], "stages": {"autor": {}}}, "cycle: Unknown stage 'author'. Available: 'autor'"),
        ({"cycle": [["a"]], "stages": {}}, "Unknown stage"),
        ({"cycle": "author", "stages": {}}, "cycle is a str"),
        ({"cycle": [], "stages": []}, "stages is a list"),
        ({"cycle": ["a"], "stages": {"a": 1}}, "stages.a is a int"),
        ({"graphs": [{"pipeline_node_id": "g", "endpoint_url": "http://[bad"}]}, "Invalid endpoint_url"),
    ],
)
def test_a_config_that_cannot_be_drawn_is_refused_with_the_reason(config: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        draw_config(config)


def _scalars() -> st.SearchStrategy[Any]:
    return st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["a", "b", "render", "", "graph.yaml"])


def _mangled(value: Any, path: list[int], put: Any) -> Any:
    """Return a copy with one nested value replaced."""
    keys: Iterator[Any] = iter(value) if isinstance(value, dict) else iter(range(len(value))) if isinstance(value, list) else iter(())
    options = list(keys)
    if not path or not options:
        return put
    key = options[path[0] % len(options)]
    changed = copy.copy(value)
    changed[key] = _mangled(value[key], path[1:], put)
    return changed


@settings(max_examples=60, deadline=None)
@given(data=st.data(), path=st.lists(st.integers(0, 30), min_size=1, max_size=7))
def test_a_damaged_world_is_drawn_or_refused_with_our_own_error(data: st.DataObject, path: list[int]) -> None:
    world = _DAMAGED
    put = data.draw(
        st.recursive(_scalars(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("ref"), inner), max_leaves=4)
    )
    try:
        picture = draw_config(_mangled(world, path, put))
    except YggdrasillError:
        return
    ET.fromstring(picture)


_DAMAGED: Config = {
    "world_id": "w",
    "cycle": ["a"],
    "state_schema": {"blocks": 5, "fields": ["style"]},
    "stages": {
        "a": {
            "stage_id": "a",
            "role": "creator",
            "pipelines": [
                {
                    "stage_node_id": "render",
                    "condition": "always",
                    "pipeline_config": {
                        "graphs": [
                            {"pipeline_node_id": "g", "graph_config": {"nodes": [_node("n")], "edges": [], "exposed_inputs": []}},
                            {"pipeline_node_id": "h", "endpoint_url": "http://host:1/"},
                        ],
                    },
                }
            ],
            "state_contract": {"input_blocks": [1], "output_blocks": [2], "mapping_input": [[1, "render", "x"]]},
        }
    },
}
