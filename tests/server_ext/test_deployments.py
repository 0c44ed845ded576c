"""Deployments: from the owner's files, from the network, and after a restart."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.blocks import Double
from samples.graphs import sample_registry
from samples.http_client import one_node
from yggdrasill.errors import (
    AccessDenied,
    DuplicateName,
    InvalidArgument,
    InvalidConfig,
    StorageFailed,
    UnknownBlockType,
    UnknownGraph,
)
from yggdrasill.foundation import BlockRegistry, ConfigField, Graph, ReusePool
from yggdrasill.foundation.config import parse_document
from yggdrasill.protocol.statuses import status_of
from yggdrasill.server_ext.configs import HostRules, check_config
from yggdrasill.server_ext.deployment import deployment_hash
from yggdrasill.server_ext.deployments import Deployments


def served(folder: Path, pool: ReusePool | None = None) -> Deployments:
    rules = HostRules([folder / "models"], folder / "worlds", lambda url: url.startswith("http://known/"))
    return Deployments(folder / "graphs", rules, registry=sample_registry(), pool=pool)


def put(deployments: Deployments, name: str, config: dict[str, Any], state: Any = None) -> bool:
    return deployments.put(name, "graph", config, deployment_hash("graph", config, repr(state)), state)[1]


def test_deployments_are_restored_with_their_state(tmp_path: Path) -> None:
    first = served(tmp_path)
    assert put(first, "linear", one_node("linear"), {"node": {"weight": torch.eye(3), "bias": torch.ones(3)}})
    assert put(first, "a/b", one_node("double"))
    again = served(tmp_path)
    assert again.names() == ["a/b", "linear"]
    assert again.live.get("linear") is None
    assert torch.equal(again.get("linear").runnable.run({"x": torch.ones(3)})["y"], torch.full((3,), 2.0))
    assert again.get("linear").hash == first.get("linear").hash
    assert again.summaries() == first.summaries()
    again.remove("linear")
    with pytest.raises(UnknownGraph, match="'a/b'"):
        served(tmp_path).get("linear")


def test_released_deployments_are_built_again_with_their_weights(tmp_path: Path) -> None:
    deployments = served(tmp_path)
    put(deployments, "linear", one_node("linear"), {"node": {"weight": torch.eye(3), "bias": torch.ones(3)}})
    (tmp_path / "add.json").write_text(json.dumps(one_node("add", ("a", "b"), ("out",))), encoding="utf-8")
    owned = deployments.add_file(tmp_path / "add.json")
    before, weights = deployments.summaries(), weakref.ref(next(iter(deployments.get("linear").runnable.blocks())))
    deployments.release_built()
    gc.collect()
    assert weights() is None
    assert list(deployments.live.values()) == [owned]
    assert deployments.summaries() == before
    assert deployments.level_and_hash("linear") == (before[1]["kind"], before[1]["hash"])
    assert torch.equal(deployments.get("linear").runnable.run({"x": torch.ones(3)})["y"], torch.full((3,), 2.0))


def test_deployments_whose_calls_change_their_state_are_not_released(tmp_path: Path) -> None:
    deployments = served(tmp_path)
    put(deployments, "counter", one_node("accumulate", ("x",), ("total",)))
    kept = deployments.get("counter")
    assert kept.exclusive
    deployments.release_built()
    assert deployments.get("counter") is kept


def test_the_owners_files_may_refer_to_others_and_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"offset": 3}), encoding="utf-8")
    config = one_node("add", ("a", "b"), ("out",))
    config["nodes"][0]["config"] = {"ref": "node.json"}
    (tmp_path / "add.yaml").write_text(json.dumps(config), encoding="utf-8")
    deployments = served(tmp_path)
    owned = deployments.add_file(tmp_path / "add.yaml")
    assert owned.runnable.run({"a": 1, "b": 1}) == {"out": 5}
    with pytest.raises(DuplicateName, match="by the endpoint's owner"):
        put(deployments, "add", one_node("double"))
    same = owned.runnable.to_config()
    assert deployments.put("add", "graph", same, deployment_hash("graph", same)) == (owned, False)
    with pytest.raises(DuplicateName, match="another file"):
        deployments.add_file(tmp_path / "add.yaml")


def test_a_saved_folder_is_deployed_with_its_weights(tmp_path: Path) -> None:
    graph = Graph.from_config(one_node("linear"), sample_registry())
    graph.get_node("node").block.load_state_dict({"weight": torch.zeros(3, 3), "bias": torch.full((3,), 7.0)})
    graph.save(tmp_path / "saved")
    assert served(tmp_path).add_file(tmp_path / "saved").runnable.run({"x": torch.ones(3)})["y"].tolist() == [7.0] * 3


def test_a_config_that_fails_leaves_the_earlier_deployment(tmp_path: Path) -> None:
    deployments = served(tmp_path)
    put(deployments, "double", one_node("double"))
    broken: list[dict[str, Any]] = [{"nodes": [{"node_id": ""}]}, one_node("double", checkpoint_ref="/x"), {"graphs": []}]
    for bad in broken:
        with pytest.raises(InvalidConfig):
            put(deployments, "double", bad)
    assert deployments.get("double").runnable.run({"x": 1}) == {"y": 2}
    assert served(tmp_path).get("double").hash == deployments.get("double").hash


def test_an_unwritable_folder_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "graphs").write_text("a file in the way", encoding="utf-8")
    deployments = served(tmp_path)
    with pytest.raises(StorageFailed):
        put(deployments, "double", one_node("double"))
    assert deployments.live.get("double") is None


def test_a_damaged_record_is_skipped_in_lists_and_named_on_request(tmp_path: Path) -> None:
    deployments = served(tmp_path)
    for name in ("good", "bad"):
        put(deployments, name, one_node("double"))
    next((tmp_path / "graphs").glob("bad-*.json")).write_text("{", encoding="utf-8")
    again = served(tmp_path)
    assert again.names() == ["good"]
    with pytest.raises(InvalidConfig, match="bad-"):
        again.get("bad")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_an_invalid_graph_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="graph id"):
        put(served(tmp_path), name, one_node("double"))


def test_foreign_files_among_the_records_are_skipped_with_one_warning_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = served(tmp_path)
    put(first, "double", one_node("double"))
    record = next((tmp_path / "graphs").glob("double-*.json"))
    (tmp_path / "graphs" / "mine.json").write_text(json.dumps(one_node("double")), encoding="utf-8")
    (tmp_path / "graphs" / "list.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "graphs" / "typo.json").write_text('{"graph_id": "x",', encoding="utf-8")
    (tmp_path / "graphs" / "latin.json").write_bytes(b'{"graph_id": "\xe9"}')
    (tmp_path / "graphs" / "copy of double.json").write_bytes(record.read_bytes())
    (tmp_path / "graphs" / "folder.json").mkdir()
    (tmp_path / "graphs" / "notes.txt").write_text("mine", encoding="utf-8")
    again = served(tmp_path)
    for _ in range(3):
        assert again.names() == ["double"]
        assert [entry["graph_id"] for entry in again.summaries()] == ["double"]
        assert again.reaper.idle() == []
    assert again.get("double").runnable.run({"x": 2})["y"] == 4
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == 6
    for name in ("mine", "list", "typo", "latin", "copy of double", "folder"):
        assert sum(f"{name}.json" in line for line in lines) == 1, name
    assert any("is not a deployment record: 'kind' is missing" in line and "deploy it if it is a config" in line for line in lines)


def test_allowed_config_values_are_unchanged(tmp_path: Path) -> None:
    rules = HostRules([tmp_path], tmp_path, lambda url: url.startswith("http://known/"))
    config = {
        "metadata": {"path": "a road north", "note": "env: a place"},
        "nodes": [
            {
                "node_id": "a",
                "block_type": "x",
                "config": {
                    "endpoint_url": "http://known/v1",
                    "prompt": "Imagine a file/folder, or two... See http://example.com.",
                    "path": None,
                    "separator": "-",
                    "webhooks": ["http://known/hook"],
                    "sizes": [1, 2.5, {"wide": True}],
                },
            }
        ],
    }
    assert check_config(config, rules) == config


def test_a_deployment_with_a_state_leaves_the_weights_of_another_alone(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "add.json").write_text('{"offset": 1}', encoding="utf-8")
    config = one_node("add", ("a", "b"), ("out",), checkpoint_ref="add.json")
    deployments = served(tmp_path)
    put(deployments, "alice", config)
    put(deployments, "bob", config, {"node": {"offset": -5}})
    outputs = {name: deployments.get(name).runnable.run({"a": 0, "b": 0}) for name in ("alice", "bob")}
    assert outputs == {"alice": {"out": 1}, "bob": {"out": -5}}
    restarted = served(tmp_path)
    assert {name: restarted.get(name).runnable.run({"a": 0, "b": 0}) for name in ("bob", "alice")} == outputs


def test_deployments_of_one_model_share_it_while_their_weights_are_equal(tmp_path: Path) -> None:
    config, deployments = one_node("add", ("a", "b"), ("out",), model_id="m"), served(tmp_path)
    for name, state in (("a", None), ("b", None), ("c", {"node": {"offset": 2}}), ("d", {"node": {"offset": 2}})):
        put(deployments, name, config, state)
    blocks = {name: deployments.get(name).runnable.get_node("node").block for name in "abcd"}
    assert blocks["a"] is blocks["b"]
    assert blocks["c"] is blocks["d"]
    assert blocks["a"] is not blocks["c"]


def test_a_state_without_the_weights_of_the_checkpoint_is_deployed(tmp_path: Path) -> None:
    graph = Graph("g", registry=sample_registry())
    graph.add_node("model", "sample/add", config={"model_id": "m"}, auto_connect=False)
    graph.add_node("own", "sample/add", auto_connect=False)
    graph.expose_output("own", "out", "out")
    graph.expose_input("own", "a", "a")
    graph.expose_input("own", "b", "b")
    deployments = served(tmp_path)
    put(deployments, "g", graph.to_config(), {"own": {"offset": 4}})
    assert deployments.get("g").runnable.state_dict() == {"model": {"offset": 0}, "own": {"offset": 4}}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "remove", "restart"]), st.sampled_from("abc"), st.sampled_from("mn"), st.sampled_from([None, 1, 2])
        ),
        max_size=10,
    )
)
def test_what_is_served_gives_the_same_with_and_without_sharing(steps: list[tuple[str, str, str, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        places = [Path(name) / "shared", Path(name) / "apart"]
        both = [served(places[0]), served(places[1], ReusePool.off())]
        for what, graph_id, model, offset in steps:
            for deployments in both:
                if what == "put":
                    config = one_node("add", ("a", "b"), ("out",), model_id=model)
                    put(deployments, graph_id, config, None if offset is None else {"node": {"offset": offset}})
                elif what == "remove" and graph_id in deployments.names():
                    deployments.remove(graph_id)
            if what == "restart":
                both = [served(places[0]), served(places[1], ReusePool.off())]
            outputs = [{served_id: found.get(served_id).runnable.run({"a": 0, "b": 0}) for served_id in found.names()} for found in both]
            assert outputs[0] == outputs[1]


def served_with(folder: Path, registry: BlockRegistry) -> Deployments:
    """Return deployments in ``folder`` of an endpoint with other blocks than the samples."""
    return Deployments(folder / "graphs", HostRules([folder / "models"], folder / "worlds", lambda url: False), registry=registry)


def test_a_caller_cannot_remove_or_replace_a_graph_of_the_owner(tmp_path: Path) -> None:
    put(served(tmp_path), "add", one_node("double"))
    (tmp_path / "add.yaml").write_text(json.dumps({**one_node("add", ("a", "b"), ("out",)), "graph_id": "add"}), encoding="utf-8")
    deployments = served(tmp_path)
    owned = deployments.add_file(tmp_path / "add.yaml")
    with pytest.raises(AccessDenied, match="'add' was configured by the endpoint's owner") as caught:
        deployments.remove("add")
    assert status_of(caught.value) == 403
    with pytest.raises(DuplicateName):
        put(deployments, "add", one_node("double"))
    assert deployments.get("add") is owned


def test_the_owners_graph_is_not_reaped_for_an_older_record_with_its_id(tmp_path: Path) -> None:
    served(tmp_path).put("add", "graph", one_node("double"), "0" * 64, None, 0.001)
    (tmp_path / "add.yaml").write_text(json.dumps({**one_node("add", ("a", "b"), ("out",)), "graph_id": "add"}), encoding="utf-8")
    deployments = served(tmp_path)
    deployments.add_file(tmp_path / "add.yaml")
    time.sleep(0.01)
    assert deployments.reaper.idle() == []


def test_a_stored_graph_that_no_longer_builds_is_replaced_and_removed(tmp_path: Path) -> None:
    for name in ("replaced", "removed", "damaged"):
        put(served(tmp_path), name, one_node("double"))
    next((tmp_path / "graphs").glob("damaged-*.json")).write_text("{", encoding="utf-8")
    fewer = BlockRegistry()
    fewer.register("other/double", Double)
    config = one_node("double")
    config["nodes"][0]["block_type"] = "other/double"
    deployments = served_with(tmp_path, fewer)
    with pytest.raises(UnknownBlockType):
        deployments.get("replaced")
    assert put(deployments, "replaced", config)
    assert deployments.get("replaced").runnable.run({"x": 2}) == {"y": 4}
    deployments.remove("removed")
    assert put(deployments, "damaged", config)
    assert served_with(tmp_path, fewer).names() == ["damaged", "replaced"]
    next((tmp_path / "graphs").glob("damaged-*.json")).write_text("{", encoding="utf-8")
    deployments = served_with(tmp_path, fewer)
    deployments.remove("damaged")
    assert deployments.names() == ["replaced"]


def test_deploying_an_equal_config_again_updates_its_idle_after(tmp_path: Path) -> None:
    deployments, config = served(tmp_path), one_node("linear")
    state = {"node": {"weight": torch.eye(3), "bias": torch.ones(3)}}
    graph_hash = deployment_hash("graph", config, "state")
    assert deployments.put("g", "graph", config, graph_hash, state, 0.001)[1]
    again, created = deployments.put("g", "graph", config, graph_hash, state, None)
    assert (again.idle_after, created) == (None, False)
    time.sleep(0.01)
    assert deployments.reaper.idle() == []
    restarted = served(tmp_path).get("g")
    assert restarted.idle_after is None
    assert torch.equal(restarted.runnable.run({"x": torch.ones(3)})["y"], torch.full((3,), 2.0))


def test_a_config_with_half_an_emoji_is_stored(tmp_path: Path) -> None:
    config = {**one_node("double"), "metadata": {"note": "\ud83d"}}
    put(served(tmp_path), "g", config)
    assert served(tmp_path).get("g").config == config


def test_lists_of_many_graphs_parse_only_new_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = served(tmp_path)
    for number in range(20):
        put(first, f"g{number}", one_node("double"))
    deployments = served(tmp_path)
    parsed: list[str] = []

    def counted(text: str, where: str, **options: Any) -> Any:
        parsed.append(where)
        return parse_document(text, where, **options)

    monkeypatch.setattr("yggdrasill.server_ext.deployment_files.parse_document", counted)
    for _ in range(3):
        assert len(deployments.names()) == len(deployments.summaries()) == 20
        with pytest.raises(UnknownGraph, match="'g0'"):
            deployments.get("unknown")
    assert parsed == []
    first.remove("g0")
    put(first, "new", one_node("double"))
    assert "new" in deployments.names()
    assert "g0" not in deployments.names()
    assert len(parsed) == 1


def stored_world(state_dir: str = "s") -> dict[str, Any]:
    stage = {"stage_id": "s", "pipelines": []}
    storage = {"state_dir": state_dir, "load_last_state": True}
    return {"world_id": "earth", "cycle": ["s"], "stages": {"s": stage}, "storage": storage}


def put_world(deployments: Deployments, name: str, config: dict[str, Any]) -> Any:
    return deployments.put(name, "world", config, deployment_hash("world", config))[0].runnable


def passes_after_a_run(world: Any) -> int:
    return int(world.run(None).passes)


def test_worlds_of_one_world_id_in_two_deployments_keep_apart(tmp_path: Path) -> None:
    deployments = served(tmp_path)
    alice, bob = (put_world(deployments, name, stored_world()) for name in ("alice", "bob"))
    assert [passes_after_a_run(alice), passes_after_a_run(bob)] == [1, 1]
    again = served(tmp_path)
    assert passes_after_a_run(again.get("alice").runnable) == 2
    folders = sorted(path.parent.parent for path in (tmp_path / "worlds").rglob("earth-last.ygg"))
    assert [folder.name.split("-")[0] for folder in folders] == ["alice", "bob"]


def test_a_world_replaced_under_its_id_keeps_its_folder(tmp_path: Path) -> None:
    deployments = served(tmp_path)
    assert passes_after_a_run(put_world(deployments, "alice", stored_world())) == 1
    assert (
        passes_after_a_run(put_world(deployments, "alice", {**stored_world(), "initial_world": {"initial_story": "edited", "rules": []}}))
        == 2
    )


def as_deployed_by_an_earlier_release(folder: Path, *names: str) -> None:
    """Store deployments of one world as earlier releases did: one folder by world id, and records that do not mention it."""
    deployments = served(folder)
    for name in names:
        put_world(deployments, name, stored_world())
    passes_after_a_run(deployments.get(names[0]).runnable)
    own = next((folder / "worlds").glob(f"{names[0]}-*"))
    own.rename(folder / "worlds" / "earth")
    for file in (folder / "graphs").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(
            json.dumps({key: record[key] for key in ("graph_id", "kind", "hash", "config", "has_state", "idle_after")}), encoding="utf-8"
        )


def test_the_content_of_a_world_of_an_earlier_release_is_found_and_kept(tmp_path: Path) -> None:
    as_deployed_by_an_earlier_release(tmp_path, "alice", "bob")
    old = (tmp_path / "worlds" / "earth" / "s" / "earth-last.ygg").read_bytes()
    deployments = served(tmp_path)
    assert passes_after_a_run(deployments.get("alice").runnable) == 2
    assert passes_after_a_run(deployments.get("bob").runnable) == 2
    assert passes_after_a_run(put_world(deployments, "carol", stored_world())) == 1
    again = served(tmp_path)
    assert passes_after_a_run(again.get("alice").runnable) == 3
    assert passes_after_a_run(again.get("carol").runnable) == 2
    assert (tmp_path / "worlds" / "earth" / "s" / "earth-last.ygg").read_bytes() == old


def test_replacing_a_world_of_an_earlier_release_keeps_its_content(tmp_path: Path) -> None:
    as_deployed_by_an_earlier_release(tmp_path, "alice")
    edited = {**stored_world(), "initial_world": {"initial_story": "edited", "rules": []}}
    assert passes_after_a_run(put_world(served(tmp_path), "alice", edited)) == 2


class Declared(Double):
    """A block with a setting of every kind that names something on a host, and plain ones."""

    block_type = "other/declared"
    settings = (
        ConfigField("checkpoint", "path"),
        ConfigField("service", "url"),
        ConfigField("key", "secret"),
        ConfigField("prompt", "text"),
        ConfigField("mirror_host", "text"),
        ConfigField("mode", "choice", "/", options=("/", "..")),
        ConfigField("extra", "value"),
    )


def checked(folder: Path, block_type: str, **config: Any) -> dict[str, Any]:
    registry = BlockRegistry()
    registry.register("other/declared", Declared)
    registry.register("other/silent", Double)
    rules = HostRules(
        [folder / "models"],
        folder / "worlds",
        lambda url: url.startswith("http://known/"),
        lambda name: getattr(registry.get(name), "settings", None),
    )
    found = check_config({"nodes": [{"node_id": "a", "block_type": block_type, "config": config}]}, rules)
    return dict(found["nodes"][0]["config"])


UNDECLARED: dict[str, dict[str, Any]] = {
    "a list under paths": {"paths": ["/etc/passwd"]},
    "a list under path": {"path": ["/etc/passwd"]},
    "files": {"files": "/etc/passwd"},
    "a model": {"model": "/etc/passwd"},
    "a host": {"host": "169.254.169.254"},
    "a list under url": {"url": ["http://169.254.169.254/"]},
    "urls": {"urls": ["http://169.254.169.254/"]},
    "an address": {"address": "http://169.254.169.254/"},
    "a proxy": {"proxy": "http://10.0.0.1"},
    "a webhook": {"webhook": "http://10.0.0.1"},
    "a mapping under path": {"path": {"x": "/etc/passwd"}},
    "traversal": {"weights": "../../token"},
    "traversal inside": {"weights": "models/../../token"},
    "windows": {"weights": "..\\token"},
    "a drive": {"weights": "C:\\secrets"},
    "a home": {"weights": "~root/.ssh/id_rsa"},
    "a file url": {"weights": " file:/etc/passwd"},
    "a share": {"weights": "\\\\host\\share"},
    "a url in a mapping": {"service": {"to": [{"x": "ftp://10.0.0.1/"}]}},
    "a path as a key": {"open": {"/etc/passwd": 1}},
    "a secret's reference in a list": {"tokens": [["secret: forge"]]},
}


@pytest.mark.parametrize("block_type", ["other/silent", "other/declared"])
@pytest.mark.parametrize("name", UNDECLARED)
def test_undeclared_settings_name_nothing_on_this_host(tmp_path: Path, name: str, block_type: str) -> None:
    with pytest.raises(InvalidConfig):
        checked(tmp_path, block_type, **UNDECLARED[name])


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.sampled_from(["/etc/passwd", "../token", "a/../../b", "file:///etc/passwd", "http://10.0.0.1/", "~/.ssh", "env:HOME"]),
        lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.sampled_from(["a", "note", "path"]), inner, min_size=1),
        max_leaves=4,
    ),
    st.sampled_from(["anything", "model", "text", "path", "urls", "hosts"]),
)
def test_a_foreign_name_is_refused_at_any_depth_of_an_undeclared_setting(value: Any, key: str) -> None:
    with pytest.raises(InvalidConfig):
        checked(Path("/srv/yggdrasill"), "other/silent", **{key: value})


def test_declared_settings_are_checked_by_their_kind(tmp_path: Path) -> None:
    allowed = {
        "checkpoint": "a.bin",
        "service": "http://known/v1",
        "key": "",
        "prompt": "/imagine",
        "mirror_host": "10.0.0.1",
        "mode": "..",
        "extra": {"note": "/a"},
    }
    assert checked(tmp_path, "other/declared", **allowed) == {**allowed, "checkpoint": str((tmp_path / "models" / "a.bin").resolve())}
    below = checked(tmp_path, "other/declared", checkpoint=["a.bin", {"vae": "b/c.bin"}])
    assert below["checkpoint"][1] == {"vae": str((tmp_path / "models" / "b" / "c.bin").resolve())}
    for refused in (
        {"checkpoint": "/etc/passwd"},
        {"checkpoint": ["../token"]},
        {"checkpoint": {"a": {"b": "~/x"}}},
        {"service": "http://10.0.0.1/"},
        {"service": "10.0.0.1"},
        {"service": ["http://10.0.0.1/"]},
        {"key": "sk-0123456789"},
        {"key": ["env:HOME"]},
        {"prompt": "env:HOME"},
        {"extra": {"file": "/etc/passwd"}},
    ):
        with pytest.raises(InvalidConfig):
            checked(tmp_path, "other/declared", **refused)
