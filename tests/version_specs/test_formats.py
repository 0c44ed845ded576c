"""Files of other tools: read as specs, written from them, and back."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yggdrasill.errors import InvalidConfig, MissingFile, UnknownName, YggdrasillError
from yggdrasill.version_specs.formats import WRITERS, import_spec, write_format
from yggdrasill.version_specs.model import VersionSpec, spec_from_document

COMMIT = "a" * 40
OLD_SNAPSHOT = {
    "comfyui": COMMIT,
    "git_custom_nodes": {
        "https://github.com/kijai/ComfyUI-KJNodes.git": {"hash": "b" * 40, "disabled": False},
        "https://github.com/someone/off": {"hash": "c" * 40, "disabled": True},
    },
    "file_custom_nodes": [{"filename": "websocket_image_save.py", "disabled": False}],
}
NEW_SNAPSHOT = {
    "comfyui": COMMIT,
    "git_custom_nodes": {},
    "cnr_custom_nodes": {"comfyui-kjnodes": "1.0.5", "rgthree-comfy": "1.0.0"},
    "file_custom_nodes": [],
    "pips": {"torch==2.8.0": "", "aiohttp==3.11.8": ""},
}
LOCK = f"""
basic:
models:
  - model: style.safetensors
    url: https://huggingface.co/a/b/resolve/main/style.safetensors
    paths:
      - path: models/loras/sub/style.safetensors
      - path: models/loras/copy.safetensors
    hashes:
      - hash: 1234
        type: AutoV2
      - hash: {"d" * 64}
        type: SHA256
    type: lora
  - model: plain.ckpt
    url: https://civitai.com/api/download/models/1
    type: checkpoints
custom_nodes:
  comfyui: {COMMIT}
  git_custom_nodes:
    https://github.com/a/node:
      hash: {"b" * 40}
      disabled: false
"""
PACK = {
    "python": "3.12",
    "comfyui": COMMIT,
    "models": [
        {"filename": "models/vae/ae.safetensors", "size": 335304388, "atime": 1.0, "ctime": 1.0, "disabled": False, "sha256": "e" * 64,
         "source": {"source": "huggingface", "download_url": "https://huggingface.co/a/b/resolve/main/ae.safetensors"}},
        {"filename": "models/loras/mine.safetensors", "size": 3, "disabled": False, "sha256": "f" * 64, "source": {}},
        {"filename": "models/loras/off.safetensors", "size": 3, "disabled": True, "sha256": "0" * 64, "source": {}},
    ],
    "custom_nodes": [{"url": "https://github.com/a/node", "commit_hash": "b" * 40, "disabled": False}],
}  # fmt: skip


def put(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def packed(path: Path, **entries: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name.replace("_dot_", "."), text)
    return path


def test_an_old_snapshot_has_neither_registry_nodes_nor_packages(tmp_path: Path) -> None:
    found = import_spec(put(tmp_path / "2024-01-01_12-00-00_snapshot.json", OLD_SNAPSHOT), "mine")
    definition = found.spec.definition
    assert (found.spec.name, definition.base_comfy_version, definition.pip_dependencies) == ("mine", COMMIT, None)
    assert [(node.name, node.repository, node.git_ref) for node in definition.custom_nodes] == [
        ("ComfyUI-KJNodes", "https://github.com/kijai/ComfyUI-KJNodes.git", "b" * 40)
    ]
    assert found.notes == (
        "the custom node https://github.com/someone/off is disabled and was left out",
        "the custom node 'websocket_image_save.py' is a single file and was left out; put it into a repository",
    )


def test_a_new_snapshot_has_registry_nodes_and_packages(tmp_path: Path) -> None:
    definition = import_spec(put(tmp_path / "snapshot.json", NEW_SNAPSHOT)).spec.definition
    assert [(node.id, node.registry_version) for node in definition.custom_nodes] == [
        ("comfyui-kjnodes", "1.0.5"),
        ("rgthree-comfy", "1.0.0"),
    ]
    assert definition.pip_dependencies == "torch==2.8.0\naiohttp==3.11.8\n"


def test_a_snapshot_in_yaml_is_one_of_a_lock_file(tmp_path: Path) -> None:
    path = put(tmp_path / "snapshot.yaml", yaml.safe_dump({"custom_nodes": NEW_SNAPSHOT}))
    assert len(import_spec(path).spec.definition.custom_nodes) == 2


def test_a_lock_file_has_models_by_path(tmp_path: Path) -> None:
    found = import_spec(put(tmp_path / "comfy-lock.yaml", LOCK))
    models = found.spec.definition.models
    assert [(model.target, model.sha256) for model in models] == [
        ("loras/sub/style.safetensors", "d" * 64),
        ("loras/copy.safetensors", "d" * 64),
        ("checkpoints/plain.ckpt", None),
    ]
    assert found.notes == ("models[1] (plain.ckpt) has no sha256; run: yggdrasill version lock",)
    assert found.spec.definition.custom_nodes[0].git_ref == "b" * 40


def test_a_pack_has_models_requirements_and_a_prompt(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "flux.cpack.zip",
        snapshot_dot_json=json.dumps(PACK),
        requirements_dot_txt="torch==2.8.0\n",
        workflow_api_dot_json='{"1": {}}',
    )
    found = import_spec(path)
    spec = found.spec
    assert spec.name == "flux"
    assert [(model.target, model.size_bytes, model.source_uri) for model in spec.definition.models] == [
        ("vae/ae.safetensors", 335304388, "https://huggingface.co/a/b/resolve/main/ae.safetensors"),
        ("loras/mine.safetensors", 3, None),
    ]
    assert (spec.definition.pip_dependencies, spec.definition.environment) == ("torch==2.8.0\n", {"pythonVersion": "3.12"})
    assert spec.read_prompt() == {"1": {}}
    assert found.notes == ("models/loras/off.safetensors is disabled and was left out",)


def test_nodes_of_equal_names_get_their_owners_name(tmp_path: Path) -> None:
    nodes = {f"https://github.com/{owner}/pack": {"hash": COMMIT} for owner in ("one", "two")}
    spec = import_spec(put(tmp_path / "s.json", {"git_custom_nodes": nodes})).spec
    assert [node.name for node in spec.definition.custom_nodes] == ["pack", "pack-two"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", {"a": 1}, r"unknown format; its keys are 'a'\. Available: a version spec .*ComfyUI-Manager snapshot"),
        ("a.json", {"git_custom_nodes": []}, None),
        ("a.json", {"git_custom_nodes": [1]}, "'git_custom_nodes' must be a mapping, got list"),
        (
            "a.json",
            {"git_custom_nodes": {"git@github.com:a/b.git": {"hash": COMMIT}}},
            r"customNodes\[0\]\.repository: a repository is an https:// url",
        ),
        ("a.json", {"git_custom_nodes": {}, "file_custom_nodes": {}}, None),
        ("a.json", {"git_custom_nodes": {}, "file_custom_nodes": {"a": 1}}, "'file_custom_nodes' must be a list, got dict"),
        ("a.yaml", {"models": [1]}, "'models' must be a list of mappings"),
        ("a.yaml", {"models": [{"model": "x"}]}, r"models\[0\] has neither 'paths' nor 'type'"),
        ("a.yaml", {"models": [{"model": "x", "paths": [{"path": "models/../../x"}]}]}, r"definition\.models\[0\]\.type"),
        ("a.json", {"custom_nodes": [1]}, "'custom_nodes' must be a list of mappings"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, name: str, content: Any, message: str | None) -> None:
    path = put(tmp_path / name, content)
    if message is None:
        assert import_spec(path).spec.definition.custom_nodes == []
        return
    with pytest.raises(InvalidConfig, match=message):
        import_spec(path)


def test_an_archive_that_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"none\.cpack\.zip' does not exist"):
        import_spec(tmp_path / "none.cpack.zip")
    put(tmp_path / "a.cpack.zip", "no zip")
    with pytest.raises(InvalidConfig, match="is not a zip archive that can be read"):
        import_spec(tmp_path / "a.cpack.zip")
    with pytest.raises(InvalidConfig, match=r"b\.cpack\.zip/snapshot\.json, line 1"):
        import_spec(packed(tmp_path / "b.cpack.zip", snapshot_dot_json="{"))
    with zipfile.ZipFile(tmp_path / "c.cpack.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("snapshot.json", b" " * (65 << 20))
    with pytest.raises(InvalidConfig, match=r"snapshot\.json has 68157440 bytes, the limit is 67108864"):
        import_spec(tmp_path / "c.cpack.zip")


def test_an_unknown_format_lists_the_available_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"Unknown format 'docker'\. Available: 'lock', 'build', 'pack', 'snapshot'\."):
        write_format(spec_from_document({"schema": "comfy-build/1", "name": "n", "definition": {}}, "x"), tmp_path / "x", "docker")


#: The first letters keep out names that are reserved on Windows, such as "nul".
names = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789_-", min_size=1, max_size=12).map(lambda text: f"item{text}")
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
commits = st.text("0123456789abcdef", min_size=40, max_size=40)
urls = names.map(lambda name: f"https://example.com/{name}.safetensors")


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    entry = {
        "type": draw(st.sampled_from(["loras", "vae", "ultralytics/bbox"])),
        "filename": f"{draw(names)}.safetensors",
        "sha256": draw(hashes),
    }
    return {**entry, "sizeBytes": draw(st.integers(0, 2**40)), "sourceUri": draw(urls)}


@st.composite
def nodes(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(names)
    if draw(st.booleans()):
        return {"name": name, "repository": f"https://github.com/{draw(names)}/{name}", "gitRef": draw(commits)}
    return {"name": name, "id": name, "registryVersion": draw(st.sampled_from(["1.0.0", "2.10.3"]))}


requirements = st.lists(names.map(lambda name: f"{name.lower()}==1.0"), unique=True, max_size=4).map(
    lambda lines: "".join(f"{line}\n" for line in lines)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def specs(draw: st.DrawFn) -> VersionSpec:
    definition = {
        "schema": "distribution-definition/0",
        "baseComfyVersion": draw(commits),
        "models": draw(st.lists(models(), max_size=4, unique_by=lambda entry: f"{entry['type']}/{entry['filename']}".casefold())),
        "customNodes": draw(st.lists(nodes(), max_size=4, unique_by=lambda entry: entry["name"].casefold())),
        "pipDependencies": draw(requirements),
        "x-other": draw(json_values),
    }
    part = {"workflow": {"1": {"inputs": {"text": draw(json_values)}}}, "inputs": {"a": {"node": "1", "field": "text"}}}
    document = {
        "schema": "comfy-build/1",
        "id": None,
        "name": draw(names),
        "description": draw(st.text(st.characters(exclude_categories=["Cs", "Cc"]))),
    }
    return spec_from_document({**document, "definition": definition, "x-yggdrasill": part}, "x")


def facts(spec: VersionSpec, *, sizes: bool = False) -> dict[str, Any]:
    """Return what every format has."""
    definition = spec.definition
    return {
        "base": definition.base_comfy_version,
        "nodes": sorted((node.repository or node.id, node.revision or node.registry_version) for node in definition.custom_nodes),
        "packages": (definition.pip_dependencies or "").split(),
        "models": sorted(
            (model.target, model.sha256, model.source_uri, model.size_bytes if sizes else None) for model in definition.models
        ),
    }


SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@SLOW
@given(spec=specs(), suffix=st.sampled_from([".json", ".yaml", ".yml"]))
def test_a_spec_survives_json_and_yaml(tmp_path: Path, spec: VersionSpec, suffix: str) -> None:
    write_format(spec, tmp_path / f"a{suffix}", "build")
    assert import_spec(tmp_path / f"a{suffix}").spec.to_document() == spec.to_document()


@SLOW
@given(spec=specs(), suffix=st.sampled_from([".json", ".yaml"]))
def test_nodes_and_packages_survive_a_snapshot(tmp_path: Path, spec: VersionSpec, suffix: str) -> None:
    path = tmp_path / f"snapshot{suffix}"
    write_format(spec, path, "snapshot")
    assert facts(import_spec(path).spec) == {**facts(spec), "models": []}


@SLOW
@given(spec=specs())
def test_models_and_nodes_survive_a_lock_file(tmp_path: Path, spec: VersionSpec) -> None:
    write_format(spec, tmp_path / "comfy-lock.yaml", "lock")
    assert facts(import_spec(tmp_path / "comfy-lock.yaml").spec) == facts(spec)


@SLOW
@given(spec=specs())
def test_models_repositories_and_the_prompt_survive_a_pack(tmp_path: Path, spec: VersionSpec) -> None:
    write_format(spec, tmp_path / "a.cpack.zip", "pack")
    again = import_spec(tmp_path / "a.cpack.zip").spec
    repositories = [node for node in facts(spec)["nodes"] if node[0].startswith("https://")]
    assert facts(again, sizes=True) == {**facts(spec, sizes=True), "nodes": repositories}
    assert again.read_prompt() == spec.read_prompt()
    assert WRITERS["pack"](spec, tmp_path) == (tmp_path / "a.cpack.zip").read_bytes()


@SLOW
@given(
    document=st.dictionaries(
        st.sampled_from(["schema", "models", "custom_nodes", "git_custom_nodes", "comfyui", "pips", "definition", "name"]), json_values
    )
)
def test_any_document_is_a_spec_or_an_error_of_ours(tmp_path: Path, document: dict[str, Any]) -> None:
    with contextlib.suppress(YggdrasillError):
        import_spec(put(tmp_path / "any.json", document))
