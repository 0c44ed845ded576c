"""The registry of kinds: which kind a config is, where kinds come from, and one way from a config to a runnable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yggdrasill import KIND_MODULES
from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.foundation import kinds as module
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.kinds import (
    Kind,
    build_child,
    build_given,
    build_project,
    detect_kind,
    find_kind,
    kind_names,
    kind_of,
    kinds,
    register_kind,
)

BUILT_IN = list(KIND_MODULES)
#: An example of each kind, with the id ``x``.
CONFIGS: dict[str, dict[str, Any]] = {
    "graph": {"graph_id": "x", "nodes": []},
    "pipeline": {"pipeline_id": "x", "graphs": []},
    "stage": {"stage_id": "x", "pipelines": []},
    "world": {"world_id": "x", "cycle": [], "stages": {}},
    "comfy": {"kind": "comfy", "graph_id": "x", "prompt": {}},
    "remote": {"endpoint_url": "http://there", "graph_id": "x"},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kind]:
    """The registry with the built-in kinds alone, restored after each test."""
    monkeypatch.setattr(module, "KINDS", type(module.KINDS)({name: find_kind(name) for name in BUILT_IN}))
    return module.KINDS


def toy(name: str = "toy", **facts: Any) -> Kind:
    return register_kind(Kind(name, load_class=lambda: dict, build=lambda config, options: (name, config, options), **facts))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_kinds_are_found_by_name_and_describe_themselves(name: str) -> None:
    kind = find_kind(name)
    assert kind.name == name
    assert isinstance(kind.load_class(), type)
    assert kind.id_of(CONFIGS[name]) == "x"
    assert kind.id_of({}) == name


@pytest.mark.parametrize("name", ["graph", "pipeline", "stage", "world"])
def test_the_facts_of_a_level_agree_with_its_class(name: str) -> None:
    kind = find_kind(name)
    cls = kind.load_class()
    assert (cls.level, kind.id_key) == (name, f"{name}_id")
    if kind.children is not None:
        assert kind.children.kind == cls.child_word
        assert kind.children.config_key == f"{cls.child_word}_config"
        assert kind.children.id_key in (cls.child_id_field, None)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("drop", [(), ("kind",)])
def test_a_config_shows_its_kind_by_its_name_or_its_own_keys(name: str, drop: tuple[str, ...]) -> None:
    config = {key: value for key, value in CONFIGS[name].items() if key not in drop}
    found = detect_kind(config)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("name", ["graph", "pipeline", "stage", "world"])
def test_an_id_alone_shows_the_kind(name: str) -> None:
    found = detect_kind({f"{name}_id": "x"})
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("config", [{}, {"a": 1}, [], "text", None, 3])
def test_what_shows_no_kind_is_the_default_or_none(config: object) -> None:
    assert detect_kind(config) is None
    assert kind_of(config, "stage").name == "stage"


@given(st.lists(st.sampled_from(sorted({mark for name in BUILT_IN for mark in find_kind(name).marks})), unique=True, min_size=1))
def test_the_order_of_the_keys_never_decides_the_kind(marks: list[str]) -> None:
    assert detect_kind(dict.fromkeys(marks)) == detect_kind(dict.fromkeys(reversed(marks)))


def test_an_unknown_kind_names_those_available_and_what_to_do() -> None:
    with pytest.raises(InvalidConfig, match=r"Unknown kind 'grpah'\. Available: 'graph', .*'world'.*Import the module .*yggdrasill\.kinds"):
        detect_kind({"kind": "grpah", "nodes": []})


def test_a_kind_whose_module_is_missing_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda: {"far": "no_such_package.kinds"})
    assert "far" in kind_names()
    assert "far" not in [kind.name for kind in kinds()]
    with pytest.raises(InvalidConfig, match=r"'far' is defined by module 'no_such_package\.kinds', which cannot be imported"):
        find_kind("far")


def test_an_installed_package_registers_its_kind_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: dict[str, Kind]
) -> None:
    text = (
        "from yggdrasill.foundation.kinds import Kind, register_kind\nregister_kind(Kind('near', load_class=dict, build=lambda c, o: c))\n"
    )
    (tmp_path / "package_of_near.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_installed", lambda: {"near": "package_of_near"})
    assert "near" not in registered
    assert detect_kind({"kind": "near"}) is find_kind("near")
    sys.modules.pop("package_of_near")


def test_a_module_that_registers_no_kind_of_that_name_is_an_unknown_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda: {"near": "json"})
    with pytest.raises(InvalidConfig, match="Unknown kind 'near'"):
        find_kind("near")


def test_a_kind_needs_a_name_and_the_same_name_again_replaces_it() -> None:
    with pytest.raises(InvalidArgument, match="non-empty name"):
        toy(" ")
    toy()
    again = toy()
    assert find_kind("toy") is again
    assert kind_names() == [*BUILT_IN, "toy"]


def test_a_registered_kind_is_recognised_by_its_own_mark() -> None:
    toy(marks=("toys",), id_key="toy_id")
    assert kind_of({"toys": []}, "graph").name == "toy"
    assert kind_of({"toy_id": "t"}, "graph").name == "toy"


def test_a_child_is_built_by_its_kind_or_by_the_default(tmp_path: Path) -> None:
    toy()
    (tmp_path / "child.yaml").write_text("kind: toy\n", encoding="utf-8")
    options = BuildOptions(base_dir=tmp_path, path=("outer", "inner"))
    name, config, inner = build_child({"ref": "child.yaml"}, options, "graph")
    assert (name, config, inner.base_dir, inner.path) == ("toy", {"kind": "toy"}, tmp_path, ("outer", "inner"))
    assert build_child({}, options, "toy")[0] == "toy"
    assert build_given(tmp_path / "child.yaml", "graph", None, None)[0] == "toy"
    assert build_given(7, "graph", None, None) == 7


@pytest.mark.parametrize("default, config", [("graph", CONFIGS["stage"]), ("pipeline", CONFIGS["world"]), ("stage", CONFIGS["pipeline"])])
def test_a_child_that_is_run_in_another_way_is_refused_with_its_place(default: str, config: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidConfig, match=f"outer/inner: expected the config of a {default}, got one of a {kind_of(config, 'graph').name}"
    ):
        build_child(config, BuildOptions(path=("outer", "inner")), default)


@pytest.mark.parametrize("name", ["graph", "pipeline", "stage"])
def test_a_level_accepts_its_own_name_as_kind(name: str) -> None:
    built = build_project({"kind": name, f"{name}_id": "x"}, BuildOptions())
    assert (built.level, built.id) == (name, "x")
    assert "kind" not in built.to_config()


def test_a_level_refuses_the_name_of_another_kind() -> None:
    with pytest.raises(InvalidConfig, match="kind"):
        find_kind("pipeline").build({"kind": "graph", "graphs": []}, BuildOptions())


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.stderr == ""
    return done.stdout.strip()


def entry(config: dict[str, Any], **facts: Any) -> str:
    return repr({"graphs": [{"pipeline_node_id": "g", **facts, **config}]})


CHILDREN: dict[str, Callable[[], str]] = {
    "ComfyGraph": lambda: entry({"graph_config": {"kind": "comfy", "graph_id": "g", "prompt": {"1": {"class_type": "A", "inputs": {}}}}}),
    "RemoteGraph": lambda: entry({}, endpoint_url="http://127.0.0.1:9"),
    "Pipeline": lambda: entry({"graph_config": {"pipeline_id": "inner", "graphs": []}}),
    "Graph": lambda: entry({"graph_config": {"nodes": []}}),
}


@pytest.mark.parametrize("name", CHILDREN)
def test_a_program_that_imports_the_pipeline_alone_builds_every_kind_of_child(name: str) -> None:
    script = f"import yggdrasill.pipeline as p; g = p.Pipeline.from_config({CHILDREN[name]()}); print(type(g.get_graph('g')).__name__)"
    assert run(script) == name


def test_a_pipeline_of_graphs_imports_no_level_above_it() -> None:
    script = (
        f"import sys, yggdrasill.pipeline as p; p.Pipeline.from_config({CHILDREN['Graph']()}); "
        "print([name for name in ('stage', 'world', 'remote', 'server_ext') if f'yggdrasill.{name}' in sys.modules])"
    )
    assert run(script) == "[]"
