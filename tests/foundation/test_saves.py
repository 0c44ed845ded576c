"""Saves: weights once, any part alone, old layouts, files of others, kills in the middle, and tensors of every kind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.blocks import Accumulate, Linear, register_samples
from samples.graphs import bits
from yggdrasill.errors import CheckpointMismatch, InvalidArgument, InvalidCheckpoint, MissingFile
from yggdrasill.foundation import BlockRegistry, Graph, ReusePool
from yggdrasill.foundation.checkpoints import StateFile, choose_backend, pack_state, read_state, state_digest, unpack_state
from yggdrasill.foundation.saving import saved_files
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage

REGISTRY = BlockRegistry(built_ins=False)
register_samples(REGISTRY)


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """Weights of a linear block."""
    file = tmp_path / "linear.safetensors"
    file.write_bytes(pack_state(Linear(config={"seed": 1}).state_dict(), "safetensors"))
    return str(file)


def one(name: str, config: dict[str, Any], pool: ReusePool | None = None, block_type: str = "sample/linear") -> Graph:
    graph = Graph(name, registry=REGISTRY, pool=pool)
    graph.add_node("n", block_type, config=config, auto_connect=False)
    return graph


def two_users(reference: str, pool: ReusePool | None = None) -> Pipeline:
    """Two graphs with one model, whose weights were changed by training."""
    pipeline, pool = Pipeline("p"), pool or ReusePool()
    for name in ("first", "second"):
        pipeline.add_graph(one(name, {"checkpoint_ref": reference}, pool))
    for block in pipeline.blocks():
        block.load_state_dict({"weight": torch.full((3, 3), 2.0), "bias": torch.full((3,), 42.0)})
    return pipeline


def bias(graph: Graph) -> list[float]:
    state: list[float] = graph.get_node("n").block.state_dict()["bias"].tolist()
    return state


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, "json", "safetensors"])
def test_each_part_of_a_save_has_the_shared_weights(tmp_path: Path, reference: str, backend: str | None) -> None:
    two_users(reference).save(tmp_path / "saved", backend=backend)
    gc.collect()
    for name in ("first", "second"):
        graph = Graph.load(tmp_path / "saved" / "checkpoints" / name, registry=REGISTRY, pool=ReusePool())
        assert bias(graph) == [42.0] * 3
        fresh = one(name, {"checkpoint_ref": reference}, ReusePool())
        fresh.load_from_checkpoint(checkpoint_path=tmp_path / "saved" / "checkpoints" / name / "checkpoint.json")
        assert bias(fresh) == [42.0] * 3


def test_shared_weights_are_written_once(tmp_path: Path, reference: str) -> None:
    pipeline = two_users(reference, ReusePool.off())
    pipeline.save(tmp_path / "saved")
    blobs = list((tmp_path / "saved" / "checkpoints" / "blobs").iterdir())
    assert [blob.name for blob in blobs] == [f"{state_digest(next(pipeline.blocks()).state_dict())}.safetensors"]


def test_a_part_of_a_part_finds_its_weights(tmp_path: Path, reference: str) -> None:
    stage = Stage("s")
    stage.add_pipeline(two_users(reference))
    stage.save(tmp_path / "saved")
    place = tmp_path / "saved" / "checkpoints" / "p"
    pipeline = Pipeline.load(place, registry=REGISTRY, pool=ReusePool())
    graph = Graph.load(place / "checkpoints" / "second", registry=REGISTRY, pool=ReusePool())
    assert bits(pipeline.state_dict()) == bits(two_users(reference).state_dict())
    assert bias(graph) == [42.0] * 3


def test_a_part_that_was_moved_away_says_what_it_lacks(tmp_path: Path, reference: str) -> None:
    two_users(reference).save(tmp_path / "saved")
    shutil.move(tmp_path / "saved" / "checkpoints" / "second", tmp_path / "alone")
    with pytest.raises(MissingFile, match=r"the state of node 'n' is in 'checkpoints/blobs/\w+.safetensors' of the save"):
        Graph.load(tmp_path / "alone", registry=REGISTRY, pool=ReusePool())
    shutil.copytree(tmp_path / "saved" / "checkpoints" / "blobs", tmp_path / "alone" / "checkpoints" / "blobs")
    assert bias(Graph.load(tmp_path / "alone", registry=REGISTRY, pool=ReusePool())) == [42.0] * 3


def test_a_load_shares_a_state_with_the_next_load(tmp_path: Path, reference: str) -> None:
    two_users(reference).save(tmp_path / "saved")
    pool = ReusePool()
    first, second = (Pipeline.load(tmp_path / "saved", registry=REGISTRY, pool=pool) for _ in range(2))
    alone = Graph.load(tmp_path / "saved" / "checkpoints" / "second", registry=REGISTRY, pool=pool)
    assert len({id(block) for loaded in (first, second, alone) for block in loaded.blocks()}) == 1


# -- older layouts ----------------------------------------------------------------------------------------------


def old_layout(pipeline: Pipeline, folder: Path) -> None:
    """A save of the first layout: the state of a shared block in the folder of its first graph alone."""
    states = pipeline.state_dict()
    for name, graph in pipeline._children.items():
        place = folder / "checkpoints" / name
        place.mkdir(parents=True)
        graph.save_config(place / "config.json")
        (place / "checkpoint.json").write_bytes(pack_state(states.get(name, {})))
    meta = {"pipeline_id": "p", "node_ids": list(pipeline._children), "version": "1.0"}
    (folder / "checkpoints" / "pipeline_meta.json").write_text(json.dumps(meta), encoding="utf-8")
    pipeline.save_config(folder / "config.json")


def archived(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for name in files(folder):
            archive.write(folder / name, name)
    return folder.with_suffix(".zip")


def test_a_save_of_the_first_layout_loads(tmp_path: Path, reference: str) -> None:
    pipeline = two_users(reference)
    old_layout(pipeline, tmp_path / "saved")
    for path in (tmp_path / "saved", archived(tmp_path / "saved")):
        loaded = Pipeline.load(path, registry=REGISTRY, pool=ReusePool())
        assert bits(loaded.state_dict()) == bits(pipeline.state_dict())
    assert bias(Graph.load(tmp_path / "saved" / "checkpoints" / "first", registry=REGISTRY, pool=ReusePool())) == [42.0] * 3


def test_a_part_of_the_first_layout_without_its_shared_weights_is_refused(tmp_path: Path, reference: str) -> None:
    old_layout(two_users(reference), tmp_path / "saved")
    with pytest.raises(CheckpointMismatch, match=r"no state for node 'n'; .* part of a larger one"):
        Graph.load(tmp_path / "saved" / "checkpoints" / "second", registry=REGISTRY, pool=ReusePool())


def test_a_save_of_the_first_layout_is_replaced_as_a_whole(tmp_path: Path, reference: str) -> None:
    pipeline = two_users(reference)
    old_layout(pipeline, tmp_path / "saved")
    pipeline.remove_graph("second")
    pipeline.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "checkpoints" / "second").exists()
    assert bits(Pipeline.load(tmp_path / "saved", registry=REGISTRY, pool=ReusePool()).state_dict()) == bits(pipeline.state_dict())


# -- the folder -------------------------------------------------------------------------------------------------


def test_files_of_others_survive_a_save_and_files_of_the_older_save_do_not(tmp_path: Path, reference: str) -> None:
    folder = tmp_path / "saved"
    two_users(reference).save(folder)
    mine = {"notes.txt": "a", "run/one.ygg": "b", "checkpoints/sd15.safetensors": "c", "checkpoints/first/readme.md": "d"}
    for name, text in mine.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "last_state.ygg").write_bytes(b"of an older world")
    graph = one("other", {"seed": 3})
    graph.save(folder)
    weights = state_digest(graph.get_node("n").block.state_dict())
    assert files(folder) == sorted([*mine, "config.json", "checkpoint.json", f"checkpoints/blobs/{weights}.safetensors"])
    assert {name: (folder / name).read_text(encoding="utf-8") for name in mine} == mine


def test_a_folder_with_the_config_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Llama"], "vocab_size": 3}', encoding="utf-8")
    with pytest.raises(InvalidArgument, match="is the config of another program; choose another folder"):
        one("g", {}).save(tmp_path)
    assert files(tmp_path) == ["config.json"]


def test_files_of_a_save_are_those_that_its_metadata_names(tmp_path: Path, reference: str) -> None:
    two_users(reference).save(tmp_path / "saved")
    (tmp_path / "saved" / "checkpoints" / "llama").mkdir()
    (tmp_path / "saved" / "checkpoints" / "llama" / "config.json").write_text("{}", encoding="utf-8")
    assert sorted(saved_files(tmp_path / "saved")) == [name for name in files(tmp_path / "saved") if "llama" not in name]
    assert saved_files(tmp_path / "elsewhere") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from yggdrasill.foundation import Graph

place, kill_at = Path(sys.argv[1]), int(sys.argv[2])
graph = Graph.load(place / "new")
steps = 0

def counted(function):
    def call(*args, **options):
        global steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
graph.save(place / "saved")
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_save_killed_at_any_step_loads_as_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    def text_graph(text: str) -> Graph:
        graph = Graph(text)
        graph.add_node("t", "text/template", config={"template": text}, auto_connect=False)
        return graph

    seen: list[str] = []
    for step in range(1, 40):
        place = tmp_path / str(step)
        text_graph("old").save(place / "saved")
        text_graph("new").save(place / "new")
        done = subprocess.run([sys.executable, "-c", KILLED, str(place), str(step)], check=False)
        loaded = Graph.load(place / "saved")
        assert loaded.get_node("t").config["template"] == loaded.graph_id
        assert sorted(path.name for path in place.iterdir()) == ["new", "saved"]
        seen.append(loaded.graph_id)
        if done.returncode == 0:
            break
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


def test_a_failure_within_a_save_leaves_the_old_one(tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = two_users(reference)
    pipeline.save(tmp_path / "saved")
    before = {name: (tmp_path / "saved" / name).read_bytes() for name in files(tmp_path / "saved")}
    monkeypatch.setattr(Pipeline, "_meta", lambda self: {"not": object()})
    with pytest.raises(TypeError):
        pipeline.save(tmp_path / "saved")
    assert {name: (tmp_path / "saved" / name).read_bytes() for name in files(tmp_path / "saved")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.safetensors", "saved"]


def test_an_archive_that_fails_leaves_the_old_one(tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = two_users(reference)
    pipeline.save(tmp_path / "saved.zip", format="archive")
    before = (tmp_path / "saved.zip").read_bytes()
    monkeypatch.setattr(Pipeline, "_meta", lambda self: {"not": object()})
    with pytest.raises(TypeError):
        pipeline.save(tmp_path / "saved.zip", format="archive")
    assert (tmp_path / "saved.zip").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.safetensors", "saved.zip"]


# -- tensors of every kind --------------------------------------------------------------------------------------

TIED = torch.arange(6.0)
KINDS: dict[str, Any] = {
    "bf16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "fp8": torch.arange(6.0).to(torch.float8_e4m3fn),
    "fp8 e5m2": torch.arange(6.0).to(torch.float8_e5m2),
    "complex": torch.tensor([1 + 2j]),
    "bool": torch.tensor([[True], [False]]),
    "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
    "scalar": torch.tensor(3.5),
    "zero size": torch.empty(0, 3, dtype=torch.int64),
    "strided": torch.arange(20.0)[::3],
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "channels last": torch.rand(1, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.ones(1).expand(4),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "tied": {"a": TIED, "b": TIED, "view": TIED[2:4]},
    "list": [torch.ones(2), (torch.zeros(1), "x")],
    "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    "large": torch.rand(100, 64),
}


@pytest.mark.parametrize("name", ["saved", "saved.zip", "saved.tar", "saved.tar.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind_come_back(tmp_path: Path, kind: str, name: str) -> None:
    graph = Graph(registry=REGISTRY)
    graph.add_node(Accumulate(), node_id="n", pretrained={"total": KINDS[kind]})
    graph.save(tmp_path / name, format="archive" if "." in name else "dir")
    loaded = Graph.load(tmp_path / name, registry=REGISTRY)
    loaded.save(tmp_path / f"again-{name}", format="archive" if "." in name else "dir")
    again = Graph.load(tmp_path / f"again-{name}", registry=REGISTRY)
    plain = {"n": {"total": KINDS[kind].detach() if kind == "parameter" else KINDS[kind]}}
    expected = {"n": {"total": torch.ones(4)}} if kind == "expanded" else plain
    if kind != "strided":
        assert bits(loaded.state_dict()) == bits(expected)
    assert bits(again.state_dict()) == bits(loaded.state_dict())
    if kind == "strided":
        assert loaded.state_dict()["n"]["total"].tolist() == KINDS[kind].tolist()


def test_a_tensor_under_two_keys_is_in_the_file_once() -> None:
    large = torch.rand(1000, 64)
    assert StateFile({"a": large, "b": large}, "safetensors").nbytes < 1.1 * large.nbytes
    loaded = unpack_state(pack_state({"a": large, "b": large}, "safetensors"), "safetensors", "w")
    assert torch.equal(loaded["a"], large)
    assert torch.equal(loaded["b"], large)


def test_large_tensors_of_a_mapped_file_are_aligned_and_writable(tmp_path: Path) -> None:
    state = {"odd": torch.ones(3), "large": torch.rand(64, 64), "byte": torch.ones(1, dtype=torch.uint8)}
    (tmp_path / "w.safetensors").write_bytes(pack_state(state, "safetensors"))
    before = (tmp_path / "w.safetensors").read_bytes()
    loaded = read_state(tmp_path / "w.safetensors")
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
    for tensor in loaded.values():
        tensor.zero_()
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_a_loaded_tensor_survives_the_next_save_over_its_file(tmp_path: Path) -> None:
    graph = Graph(registry=REGISTRY)
    graph.add_node(Accumulate(), node_id="n", pretrained={"total": torch.full((64, 64), 1.0)})
    graph.save(tmp_path / "saved")
    loaded = Graph.load(tmp_path / "saved", registry=REGISTRY)
    graph.load_state_dict({"n": {"total": torch.full((64, 64), 2.0)}})
    graph.save(tmp_path / "saved")
    assert loaded.state_dict()["n"]["total"].unique().tolist() == [1.0]


def test_the_backend_follows_the_state() -> None:
    assert choose_backend({"a": 1, "b": [2]}) == "json"
    assert choose_backend({"a": [torch.ones(1)]}) == "safetensors"
    assert choose_backend({"a": torch.ones(1, dtype=torch.complex128)}) == "json"
    assert choose_backend({"a": torch.ones(1)}, "json") == "json"


def test_digests_tell_values_types_and_memory_order_apart() -> None:
    square = torch.arange(4.0).reshape(2, 2)
    states: list[dict[str, Any]] = [
        {"a": square},
        {"a": square.t()},
        {"a": square.t().contiguous()},
        {"a": square.double()},
        {"a": square.reshape(4)},
        {"b": square},
        {"a": {"b": square}},
        {"a": 1},
        {"a": 1.0},
        {"a": True},
        {"a": -0.0},
        {"a": 0.0},
        {},
    ]
    assert len({state_digest(state) for state in states}) == len(states)
    assert state_digest({"a": 1, "b": square}) == state_digest({"b": square.clone(), "a": 1})


@given(st.binary(max_size=300))
def test_bytes_that_are_not_a_file_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidCheckpoint):
        unpack_state(data, "safetensors", "w")


# -- any structure ----------------------------------------------------------------------------------------------

CHILDREN = st.lists(
    st.lists(st.tuples(st.sampled_from(["model 0", "model 1", "own", "memory"]), st.integers(0, 3)), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(CHILDREN, st.sampled_from([None, "json", "safetensors"]), st.booleans(), st.booleans())
def test_whole_and_parts_of_any_save_have_the_states_of_the_original(
    children: list[list[tuple[str, int]]], backend: str | None, archive: bool, sharing: bool
) -> None:
    """Each node has a model (shared, tuned to one of four states), a block of its own, or a memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline, variants = Pipeline("p"), [ReusePool() for _ in range(4)]
        for number, nodes in enumerate(children):
            graph = Graph(f"g{number}", registry=REGISTRY)
            for position, (kind, value) in enumerate(nodes):
                if kind == "memory":
                    graph.add_node("sample/accumulate", node_id=f"n{position}", pretrained={"total": torch.full((2,), float(value))})
                    continue
                config = {"size": 2} if kind == "own" else {"size": 2, "model_id": kind}
                # one pool per value: the nodes that share a block are those of one model with one value
                graph.pool = variants[value] if sharing else ReusePool.off()
                graph.add_node("sample/linear", node_id=f"n{position}", config=config, auto_connect=False)
                graph.get_node(f"n{position}").block.load_state_dict({"bias": torch.full((2,), float(value))}, strict=False)
            pipeline.add_graph(graph)
        expected = {(path, bits(node.block.state_dict())) for path, _, node in pipeline.walk_nodes()}
        path = folder / ("saved.zip" if archive else "saved")
        pipeline.save(path, format="archive" if archive else "dir", backend=backend)
        loaded = Pipeline.load(path, registry=REGISTRY, pool=ReusePool())
        assert {(place, bits(node.block.state_dict())) for place, _, node in loaded.walk_nodes()} == expected
        again = Pipeline.from_config(pipeline.to_config(), REGISTRY, pool=ReusePool())
        again.load_state_dict(pipeline.state_dict())
        assert {(place, bits(node.block.state_dict())) for place, _, node in again.walk_nodes()} == expected
        models = {
            (node.config["model_id"], bits(node.block.state_dict())) for _, _, node in loaded.walk_nodes() if "model_id" in node.config
        }
        blocks = {id(node.block) for _, _, node in loaded.walk_nodes() if "model_id" in node.config}
        assert len(blocks) == len(models)
        if not archive:
            digests = {state_digest(block.state_dict()) for block in pipeline.blocks()}
            assert {file.stem for file in (path / "checkpoints" / "blobs").glob("*")} <= digests
            for number in range(len(children)):
                part = Graph.load(path / "checkpoints" / f"g{number}", registry=REGISTRY, pool=ReusePool())
                found = {((f"g{number}", *place), bits(node.block.state_dict())) for place, _, node in part.walk_nodes()}
                assert found == {entry for entry in expected if entry[0][0] == f"g{number}"}


def test_a_save_is_flushed_before_it_gets_its_name(tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        events.append("flush")
        real_sync(handle)

    def rename(old: Any, new: Any) -> None:
        events.append(f"name {Path(new).name}")
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    two_users(reference).save(tmp_path / "saved")
    place = events.index("name saved")
    assert events[place - 1] == events[place + 1] == "flush"
