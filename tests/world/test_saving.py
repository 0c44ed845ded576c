"""Config, checkpoint, folder and archive of a world."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from samples.worlds import bits, block_of, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.errors import (
    CheckpointMismatch,
    CorruptData,
    InvalidArgument,
    InvalidConfig,
    MissingFile,
    UnknownName,
    UnsupportedFormat,
    UnsupportedVersion,
)
from yggdrasill.foundation.templates import register_template
from yggdrasill.world import World


def test_the_config_of_the_built_world_is_the_written_one() -> None:
    assert canonical_world().to_config() == canonical_config()
    assert World.from_config(canonical_config(), world_registry()).to_config() == canonical_config()


def test_a_world_from_its_config_runs_the_same() -> None:
    assert bits(World.from_config(canonical_config(), world_registry(), validate=True).run(num_steps=3)) == bits(
        canonical_world().run(num_steps=3)
    )


def test_everything_a_world_is_told_survives_its_config() -> None:
    world = World("w", description="a test", seed=3, tags=["tiny"])
    world.add_stage(canonical_config()["stages"]["author"], registry=world_registry(), trainable=False)
    world.set_cycle(["author"])
    world.set_state_schema({"style": "text"})
    world.set_initial_world(initial_story="once", rules=["a"])
    world.set_storage("states", max_snapshots=2)

    again = World.from_config(world.to_config(), world_registry())

    assert again.to_config() == world.to_config()
    assert (again.description, again.seed, again.tags, again.is_trainable("author")) == ("a test", 3, ["tiny"], False)
    assert (again.state_fields, again.initial_world) == ({"style": "text"}, {"initial_story": "once", "rules": ["a"]})


@pytest.mark.parametrize("name", ["saved", "saved.zip", "saved.tar", "saved.tar.gz"])
@pytest.mark.parametrize("backend", ["json", "safetensors"])
def test_a_saved_world_goes_on_where_it_was(tmp_path: Path, name: str, backend: str) -> None:
    world = canonical_world(stateful=True)
    state = world.run(user_state(1, 2, 3), num_steps=2)
    world.save(tmp_path / name, format="archive" if "." in name else "dir", backend=backend)

    loaded = World.load(tmp_path / name, registry=world_registry())

    assert loaded.last_state is not None
    assert bits(loaded.last_state) == bits(state)
    assert bits(loaded.content) == bits(world.content)
    assert bits(loaded.run(loaded.last_state)) == bits(world.run(state))


def test_folder_and_archives_hold_the_layout_of_the_canon(tmp_path: Path) -> None:
    world = canonical_world(stateful=True)
    world.run()
    world.save(tmp_path / "saved")
    world.save(tmp_path / "saved.zip", format="archive")
    world.save(tmp_path / "saved.tar", format="archive")

    files = {file.relative_to(tmp_path / "saved").as_posix() for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    with zipfile.ZipFile(tmp_path / "saved.zip") as archive:
        assert set(archive.namelist()) == files
    with tarfile.open(tmp_path / "saved.tar") as tar:
        assert set(tar.getnames()) == files
    meta = json.loads((tmp_path / "saved/checkpoints/world_meta.json").read_text(encoding="utf-8"))
    assert meta == {"world_id": "tiny", "cycle": world.cycle, "node_ids": list(world.stages), "schema_version": "2.0"}
    creator = "checkpoints/creator"
    assert {
        "config.json",
        "last_state.ygg",
        f"{creator}/config.json",
        f"{creator}/checkpoints/stage_meta.json",
        f"{creator}/checkpoints/create/checkpoints/pipeline_meta.json",
        f"{creator}/checkpoints/create/checkpoints/create/config.json",
        f"{creator}/checkpoints/create/checkpoints/create/checkpoint.json",
    } <= files


def test_a_stage_of_a_saved_world_can_be_loaded_alone(tmp_path: Path) -> None:
    from yggdrasill.stage import Stage

    world = canonical_world(stateful=True)
    world.run(num_steps=2)
    world.save(tmp_path)

    creator = Stage.load(tmp_path / "checkpoints" / "creator", registry=world_registry())

    assert bits(creator.state_dict()) == bits(world.get_stage("creator").state_dict())


def test_a_world_that_never_ran_saves_no_state(tmp_path: Path) -> None:
    canonical_world().save(tmp_path)
    assert not (tmp_path / "last_state.ygg").exists()
    assert World.load(tmp_path, registry=world_registry()).last_state is None


def test_a_damaged_last_state_is_named(tmp_path: Path, world: World) -> None:
    world.run()
    world.save(tmp_path)
    (tmp_path / "last_state.ygg").write_bytes(b"no")

    with pytest.raises(CorruptData, match=r"last_state\.ygg' is damaged"):
        World.load(tmp_path, registry=world_registry())


def test_refs_work_on_every_level(tmp_path: Path) -> None:
    """world.yaml -> stages/author.yaml -> pipelines/narrate.json -> graph.yaml -> node.json, each relative to its file."""
    config = canonical_config()
    author = config["stages"]["author"]
    entry = author["pipelines"][0]
    pipeline = entry.pop("pipeline_config")
    graph = pipeline["graphs"][0]["graph_config"]
    node_config = {"defaults": {"description": "seen through fog"}}
    for folder in ("stages/pipelines/graphs",):
        (tmp_path / folder).mkdir(parents=True)
    graph["nodes"][0]["config"] = {"ref": "node.json"}
    pipeline["graphs"][0]["graph_config"] = {"ref": "graphs/graph.yaml"}
    entry["ref"] = "pipelines/narrate.json"
    config["stages"]["author"] = {"ref": "stages/author.yaml"}
    (tmp_path / "stages/pipelines/graphs/node.json").write_text(json.dumps(node_config), encoding="utf-8")
    (tmp_path / "stages/pipelines/graphs/graph.yaml").write_text(yaml.safe_dump(graph), encoding="utf-8")
    (tmp_path / "stages/pipelines/narrate.json").write_text(json.dumps(pipeline), encoding="utf-8")
    (tmp_path / "stages/author.yaml").write_text(yaml.safe_dump(author), encoding="utf-8")
    (tmp_path / "world.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    world = World.from_yaml(tmp_path / "world.yaml", world_registry())

    expected = canonical_config()
    expected["stages"]["author"]["pipelines"][0]["pipeline_config"]["graphs"][0]["graph_config"]["nodes"][0]["config"] = node_config
    assert world.to_config() == expected


def test_a_missing_ref_names_its_place_and_file(tmp_path: Path) -> None:
    config = canonical_config()
    config["stages"]["author"] = {"ref": "gone.yaml"}
    with pytest.raises(MissingFile, match=r"world 'tiny', stages\.author: 'ref' names .*gone\.yaml"):
        World.from_config(config, world_registry(), base_dir=tmp_path)


@pytest.mark.parametrize("level", ["world", "stage", "pipeline", "graph", "node", "story"])
def test_refs_are_refused_in_a_config_from_a_network(level: str) -> None:
    config = canonical_config()
    entry = config["stages"]["author"]["pipelines"][0]
    inner = entry["pipeline_config"]["graphs"][0]
    ref = {"ref": "x.json"}
    if level == "world":
        config = dict(ref)
    elif level == "stage":
        config["stages"]["author"] = ref
    elif level == "pipeline":
        entry["pipeline_config"] = ref
    elif level == "graph":
        inner["graph_config"] = ref
    elif level == "node":
        inner["graph_config"]["nodes"][0]["config"] = ref
    else:
        config["initial_world"]["initial_story"] = {"ref": "x.txt"}

    with pytest.raises(InvalidConfig, match="'ref' is not allowed in a config that comes over a network"):
        World.from_config(config, world_registry(), allow_ref=False)


def test_a_checkpoint_ref_is_relative_to_its_config_and_survives_a_save_elsewhere(tmp_path: Path) -> None:
    trained = canonical_world(stateful=True)
    trained.run(num_steps=2)
    (tmp_path / "project").mkdir()
    trained.save_checkpoint(tmp_path / "project" / "weights.json")
    config = {**trained.to_config(), "checkpoint_ref": "weights.json"}
    (tmp_path / "project" / "world.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    world = World.from_yaml(tmp_path / "project" / "world.yaml", world_registry())
    world.save(tmp_path / "elsewhere")
    loaded = World.load(tmp_path / "elsewhere", registry=world_registry())

    assert bits(world.state_dict()) == bits(trained.state_dict())
    assert bits(loaded.state_dict()) == bits(trained.state_dict())


def test_weights_of_another_world_are_refused(world: World) -> None:
    with pytest.raises(CheckpointMismatch, match="has no stage 'kitchen'"):
        world.load_state_dict({"kitchen": {}})


def test_a_state_of_another_world_changes_nothing() -> None:
    world = canonical_world(stateful=True)
    world.run()
    before = bits(world.state_dict())
    state = world.state_dict()
    state["creator"]["create"]["create"]["sum"] = {"totall": 1}

    with pytest.raises(CheckpointMismatch, match="totall"):
        world.load_state_dict(state)

    assert bits(world.state_dict()) == before


def test_load_from_checkpoint_restores_stateful_blocks(tmp_path: Path) -> None:
    world = canonical_world(stateful=True)
    world.run()
    world.save_checkpoint(tmp_path / "weights.safetensors", backend="safetensors")
    other = canonical_world(stateful=True)

    other.load_from_checkpoint(checkpoint_path=tmp_path / "weights.safetensors")

    assert bits(other.state_dict()) == bits(world.state_dict())
    with pytest.raises(UnsupportedFormat):
        world.save_checkpoint(tmp_path / "weights.pt", backend="torch")


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"schema_version": "3.0"}, "schema_version '3.0' is newer"),
        ({"cycles": []}, "cycles"),
        ({"cycle": ["author"]}, "are missing"),
        ({"state_schema": {"blocks": 6}}, r"state_schema\.blocks"),
        ({"frozen_stages": ["autor"]}, "Unknown stage 'autor'. Available:"),
        ({"stages": {"author": {"endpoint_url": "http://x", "port": 3}}}, "port"),
    ],
    ids=["newer version", "unknown key", "cycle", "six blocks", "frozen stage", "remote stage"],
)
def test_a_mistake_in_a_config_is_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        World.from_config({**canonical_config(), **change}, world_registry())


def test_a_newer_config_has_its_own_error() -> None:
    with pytest.raises(UnsupportedVersion):
        World.from_config({**canonical_config(), "schema_version": "3.0"}, world_registry())


def test_a_template_of_the_level_builds_a_world() -> None:
    register_template("world", "tiny_test_world", lambda seed=1: canonical_config(seed=seed))

    world = World.from_template("tiny_test_world", registry=world_registry(), validate=True, seed=9)

    assert world.to_config() == canonical_config(seed=9)
    with pytest.raises(UnknownName):
        World.from_template("no such world")


class Placed:
    """A resolver that gives the stages named in it."""

    def __init__(self, stages: dict[tuple[str, ...], Any]) -> None:
        self.stages = stages
        self.asked: list[tuple[tuple[str, ...], list[str]]] = []

    def resolve(self, path: tuple[str, ...], config: Any) -> Any | None:
        self.asked.append((path, sorted(config)))
        return self.stages.get(path)


def test_a_resolver_is_asked_for_every_stage_pipeline_and_graph_by_path() -> None:
    resolver = Placed({("author",): canonical_world().get_stage("author")})

    world = World.from_config(canonical_config(), world_registry(), endpoints=resolver)

    assert world.get_stage("author") is resolver.stages["author",]
    paths = [path for path, _ in resolver.asked]
    assert ("creator",) in paths
    assert ("creator", "create") in paths
    assert ("creator", "create", "create") in paths
    assert not [path for path in paths if path[0] == "author" and len(path) > 1]
    assert dict(resolver.asked)["creator", "create", "create"] == ["graph_config", "graph_id"]
    assert bits(world.run(num_steps=2)) == bits(canonical_world().run(num_steps=2))


def test_walk_gives_every_runnable_with_its_path(world: World) -> None:
    paths = ["/".join(path) for path, _ in world.walk()]

    assert paths[:3] == ["philosopher", "philosopher/describe", "philosopher/describe/describe"]
    assert "environment/development_of_the_world/development_of_the_world" in paths
    assert dict(world.walk())["author", "narrate", "narrate"].get_node("narrate").block is block_of(world, "author")


def test_a_world_that_never_ran_replaces_an_older_save_with_its_last_state(tmp_path: Path) -> None:
    world = canonical_world()
    world.run()
    world.save(tmp_path / "saved")
    canonical_world().save(tmp_path / "saved")
    loaded = World.load(tmp_path / "saved", registry=world_registry())
    assert (loaded.last_state, loaded.content) == (None, None)


def test_a_relative_storage_survives_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = canonical_world()
    world.set_storage("snapshots", load_last_state=True)
    assert world.run(num_steps=2).passes == 2
    world.save("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = World.load("../saved", registry=world_registry())
    assert loaded.storage is not None
    assert loaded.storage.state_dir == tmp_path / "snapshots"
    assert loaded.run().passes == 3


def test_a_relative_checkpoint_of_a_world_is_kept_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert World(checkpoint_ref="w.json").checkpoint_ref == str(tmp_path / "w.json")
    assert World(checkpoint_ref="x://w").checkpoint_ref == "x://w"


def test_rebuilding_a_world_keeps_its_run_lock_and_waits_for_no_run() -> None:
    world = canonical_world()
    lock = world._running
    config = canonical_world(seed=5).to_config()
    world.load_from_checkpoint(config=config, registry=world_registry())
    assert (world.seed, world._running) == (5, lock)
    running = world.run(num_steps=2, iterate=True)
    next(running)
    with pytest.raises(InvalidArgument, match="is running; wait for that run"):
        world.load_from_checkpoint(config=config, registry=world_registry())
    assert next(running).passes == 2
