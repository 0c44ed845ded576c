"""Graph configs: round trips, and every mistake named by its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from samples.graphs import graph_of, sample_registry
from yggdrasill.errors import InvalidConfig, MissingFile, UnsupportedVersion, YggdrasillError
from yggdrasill.foundation import Graph, ReusePool
from yggdrasill.foundation.checkpoints import pack_state


def config() -> dict[str, Any]:
    graph = graph_of(
        {"a": ("add", {"offset": 2, "defaults": {"b": 1}}), "b": "double"},
        ["a.out -> b.x"],
        ["a.a = x", "a.b"],
        ["b.y = y"],
        graph_id="g",
        num_loop_steps=3,
        notes=["ä", None, 1.5],
    )
    graph.set_trainable("b", False)
    graph.graph_kind = "generic"
    return graph.to_config()


def load(document: Any, **options: Any) -> Graph:
    return Graph.from_config(document, sample_registry(), **options)


def test_a_config_holds_exactly_this() -> None:
    assert config() == {
        "schema_version": "1.0",
        "graph_id": "g",
        "graph_kind": "generic",
        "metadata": {"num_loop_steps": 3, "notes": ["ä", None, 1.5]},
        "nodes": [
            {
                "node_id": "a",
                "block_type": "sample/add",
                "block_id": "a",
                "config": {"offset": 2, "defaults": {"b": 1}},
                "trainable": True,
            },
            {"node_id": "b", "block_type": "sample/double", "block_id": "b", "config": {}, "trainable": False},
        ],
        "edges": [{"source_node": "a", "source_port": "out", "target_node": "b", "target_port": "x"}],
        "exposed_inputs": [{"node_id": "a", "port_name": "a", "name": "x"}, {"node_id": "a", "port_name": "b"}],
        "exposed_outputs": [{"node_id": "b", "port_name": "y", "name": "y"}],
    }


def test_a_config_comes_back_and_is_not_tied_to_its_source() -> None:
    document = config()
    graph = load(document)
    assert graph.to_config() == document
    document["metadata"]["notes"].append("later")
    graph.to_config()["metadata"]["notes"].append("too")
    assert graph.metadata["notes"] == ["ä", None, 1.5]
    assert load(document).run({"x": 1}) == {"y": 8}


def test_a_config_may_be_as_short_as_this() -> None:
    graph = load({"nodes": [{"node_id": "a", "block_type": "sample/add"}]})
    assert (graph.graph_id, graph.node_ids, graph.get_node("a").trainable) == ("graph", ["a"], True)
    assert load({}).to_config()["nodes"] == []


@pytest.mark.parametrize("name", ["g.json", "g.yaml", "g.yml"])
def test_a_config_file_comes_back(tmp_path: Path, name: str) -> None:
    load(config()).save_config(tmp_path / name)
    assert Graph.from_yaml(tmp_path / name, sample_registry()).to_config() == config()
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert "ä" in text
    assert (json.loads(text) if name == "g.json" else yaml.safe_load(text)) == config()


def changed(*path: Any, value: Any) -> dict[str, Any]:
    document: Any = config()
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    copied: dict[str, Any] = copy.deepcopy(document)
    return copied


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "schema_version": (changed("schema_version", value=1.0), "schema_version: Input should be a valid string"),
    "graph_id": (changed("graph_id", value=3), "graph_id: Input should be a valid string"),
    "blank graph_id": (changed("graph_id", value=" "), "graph_id must be a non-empty string"),
    "graph_kind": (changed("graph_kind", value="x"), "graph_kind: Input should be 'diffusion', 'llm', 'vlm', 'data' or 'generic'"),
    "metadata": (changed("metadata", value=[]), "metadata: Input should be a valid dictionary"),
    "unknown key": (changed("node", value=[]), "node: Extra inputs are not permitted"),
    "nodes": (changed("nodes", value={}), "nodes: Input should be a valid list"),
    "node": (changed("nodes", 1, value="b"), "nodes[1]: Input should be a valid dictionary or instance of NodeModel"),
    "node_id missing": (changed("nodes", 1, value={"block_type": "sample/add"}), "nodes[1].node_id: Field required"),
    "node_id": (changed("nodes", 0, "node_id", value=None), "nodes[0].node_id: Input should be a valid string (got None)"),
    "node_id blank": (changed("nodes", 1, "node_id", value=""), "nodes[1] (''): node_id must be a non-empty string"),
    "node_id twice": (changed("nodes", 1, "node_id", value="a"), "nodes[1] ('a'): node_id 'a' is taken"),
    "block_type": (changed("nodes", 0, "block_type", value=["x"]), "nodes[0].block_type: Input should be a valid string (got ['x'])"),
    "unknown block_type": (changed("nodes", 0, "block_type", value="sample/ad"), "nodes[0] ('a'): Unknown block type 'sample/ad'"),
    "block_id": (changed("nodes", 0, "block_id", value=3), "nodes[0].block_id: Input should be a valid string"),
    "node config": (changed("nodes", 0, "config", value=3), "nodes[0].config: Input should be a valid dictionary"),
    "node defaults": (changed("nodes", 0, "config", "defaults", value=[1]), "nodes[0] ('a'): node 'a': 'defaults' must map"),
    "trainable": (changed("nodes", 0, "trainable", value="yes"), "nodes[0].trainable: Input should be a valid boolean (got 'yes')"),
    "node extra": (changed("nodes", 0, "weight", value=1), "nodes[0].weight: Extra inputs are not permitted"),
    "edges": (changed("edges", value="ab"), "edges: Input should be a valid list"),
    "edge short": (changed("edges", 0, value={"source_node": "a"}), "edges[0].source_port: Field required"),
    "edge blank": (changed("edges", 0, "source_port", value=""), "edges[0]: edge field source_port must be a non-empty string"),
    "edge nowhere": (changed("edges", 0, "target_port", value="z"), "edges[0]: edge a.out -> b.z: node 'b': Unknown input 'z'"),
    "exposed": (changed("exposed_inputs", 0, "node_id", value=1), "exposed_inputs[0].node_id: Input should be a valid string"),
    "exposed twice": (
        changed(
            "exposed_outputs", value=[{"node_id": "b", "port_name": "y", "name": "o"}, {"node_id": "a", "port_name": "out", "name": "o"}]
        ),
        "exposed_outputs[1]: output 'o' already comes from b.y",
    ),
    "block refuses": (
        changed("nodes", 1, value={"node_id": "l", "block_type": "sample/linear", "config": {"size": "big"}}),
        "nodes[1] ('l'): block type 'sample/linear' cannot be built",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_its_place(mistake: str, tmp_path: Path) -> None:
    document, message = MISTAKES[mistake]
    with pytest.raises(YggdrasillError) as caught:
        load(document)
    assert message in str(caught.value)
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(type(caught.value)) as in_file:
        Graph.from_yaml(file, sample_registry())
    assert str(in_file.value) == f"{str(file)!r}: {caught.value}"


def test_every_mistake_is_told_at_once() -> None:
    document = changed("nodes", 0, "trainable", value="yes") | {"edges": 3}
    with pytest.raises(InvalidConfig, match=r"nodes\[0\].trainable: .*; edges: ") as caught:
        load(document)
    assert caught.value.details["places"] == ["nodes[0].trainable", "edges"]


@pytest.mark.parametrize("document", [None, [], "g", 3], ids=repr)
def test_a_config_is_a_mapping(document: Any) -> None:
    with pytest.raises(InvalidConfig, match="a graph config is a mapping"):
        load(document)


@pytest.mark.parametrize("version", ["2.0", "11", "2"])
def test_a_newer_version_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(UnsupportedVersion, match=f"schema_version '{version}' is newer than '1.0', .*update yggdrasill"):
        load(changed("schema_version", value=version))


def test_versions_this_one_reads() -> None:
    assert load(changed("schema_version", value="1.7")).graph_id == "g"
    with pytest.raises(InvalidConfig, match="schema_version is 'new'"):
        load(changed("schema_version", value="new"))


# -- refs -------------------------------------------------------------------------------------------------------


def node(ref: Any) -> dict[str, Any]:
    return {"nodes": [{"node_id": "a", "block_type": "sample/add", "config": {"ref": ref}}]}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_ref_is_relative_to_the_file_it_stands_in(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "add.json", {"ref": "deep/add.json"})
    write(tmp_path / "parts" / "deep" / "add.json", {"offset": 7})
    graph = Graph.from_yaml(write(tmp_path / "g.json", node("parts/add.json")), sample_registry())
    assert graph.get_node("a").config == {"offset": 7}
    whole = load({"ref": "g.json"}, base_dir=tmp_path)
    assert whole.to_config() == graph.to_config()


def test_weights_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "add.json", {"checkpoint_ref": "w.json"})
    (tmp_path / "parts" / "w.json").write_bytes(pack_state({"offset": 5}))
    path = write(tmp_path / "g.json", node("parts/add.json"))
    graph = Graph.from_yaml(path, sample_registry(), pool=ReusePool())
    assert graph.state_dict() == {"a": {"offset": 5}}
    assert graph.get_node("a").config["checkpoint_ref"] == str((tmp_path / "parts" / "w.json").resolve())


def test_a_ref_to_nothing_names_the_file_and_the_place(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"nodes\[0\].config: 'ref' names .*none.json', which does not exist") as caught:
        load(node("none.json"), base_dir=tmp_path)
    assert isinstance(caught.value, FileNotFoundError)


def test_refs_that_lead_back_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"ref": "b.json"})
    write(tmp_path / "b.json", {"ref": "a.json"})
    with pytest.raises(InvalidConfig, match=r"'ref' 'a.json' leads back to itself through .*a.json -> .*b.json"):
        load(node("a.json"), base_dir=tmp_path)


@pytest.mark.parametrize("ref", [None, 3, "", ["a"], "a\0b"], ids=repr)
def test_a_ref_is_a_path(ref: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"'ref' must be a path|is not a valid file name"):
        load(node(ref), base_dir=tmp_path)


def test_a_ref_in_a_config_from_a_network_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "add.json", {"offset": 1})
    for document in (node("add.json"), {"ref": "add.json"}):
        with pytest.raises(InvalidConfig, match="'ref' is not allowed in a config that comes over a network"):
            load(document, base_dir=tmp_path, allow_ref=False)


def test_a_file_a_ref_names_must_hold_a_config(tmp_path: Path) -> None:
    write(tmp_path / "list.json", [1])
    with pytest.raises(InvalidConfig, match=r"list.json: a config is a mapping, got list"):
        load(node("list.json"), base_dir=tmp_path)


def test_a_value_that_json_cannot_hold_is_named_when_saving(tmp_path: Path) -> None:
    graph = graph_of({"a": ("add", {"offset": {1, 2}})})
    with pytest.raises(InvalidConfig, match="a config holds JSON values only"):
        graph.save(tmp_path / "save")
    with pytest.raises(InvalidConfig, match="a config holds JSON values only"):
        graph_of({}, nan=float("nan")).save_config(tmp_path / "g.json")
    assert list(tmp_path.iterdir()) == []


def test_nodes_with_one_block_id_type_and_config_have_one_block() -> None:
    nodes = [
        {"node_id": name, "block_type": "sample/add", "block_id": "s", "config": {"defaults": {"b": n}}} for n, name in enumerate("ab")
    ]
    graph = load({"nodes": nodes}, pool=ReusePool())
    assert graph.get_node("a").block is graph.get_node("b").block
    assert [graph.get_node(name).defaults for name in "ab"] == [{"b": 0}, {"b": 1}]
    apart = load({"nodes": nodes}, pool=ReusePool.off())
    assert apart.get_node("a").block is not apart.get_node("b").block
