"""The document of a version spec: what is accepted, what is kept, and how mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import InvalidConfig, MissingFile
from yggdrasill.version_specs.model import MAX_ENTRIES, VersionSpec, spec_from_document

SHA = "a" * 64


def document(**definition: Any) -> dict[str, Any]:
    return {"schema": "comfy-build/1", "name": "wan", "definition": definition}


def model(**facts: Any) -> dict[str, Any]:
    return {"type": "loras", "filename": "a.safetensors", "sha256": SHA, "sourceUri": "https://example.com/a.safetensors", **facts}


def spec(**definition: Any) -> VersionSpec:
    return spec_from_document(document(**definition), "x.json")


FULL = {
    "schema": "comfy-build/1",
    "id": "bld_1",
    "name": "wan22-fast",
    "description": "Two steps",
    "syncedRevision": None,
    "ours-of-another-tool": {"b": 1, "a": [1, 2]},
    "definition": {
        "schema": "distribution-definition/0",
        "baseComfyVersion": "v0.33.0",
        "models": [model(sizeBytes=3, license="mit")],
        "customNodes": [{"name": "kj", "repository": "https://github.com/kijai/kj", "gitRef": "b" * 40}],
        "pipDependencies": "torch==2.8.0\n",
        "environment": {"os": "Linux", "arch": "x86_64", "pythonVersion": "3.12.1", "torch": None},
        "modelPolicy": {"mode": "allowlist", "list": []},
    },
    "x-yggdrasill": {
        "workflow": {"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}}},
        "inputs": {"prompt": {"node": "6", "field": "text"}},
        "models_dir": "/workspace/ComfyUI/models",
        "output_mode": "gcs",
        "env": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
        "comfy_args": ["--fast"],
    },
}


def test_a_document_comes_back_with_all_its_keys() -> None:
    assert spec_from_document(FULL, "x.json").to_document() == FULL


def test_keys_are_written_in_the_order_of_the_format_and_entries_sorted() -> None:
    entries = [model(type="vae", filename=f"{name}.safetensors") for name in "ba"]
    found = spec(models=entries, schema="distribution-definition/0").to_document()
    assert list(found) == ["schema", "id", "name", "description", "syncedRevision", "definition"]
    assert list(found["definition"]) == ["schema", "models"]
    assert [entry["filename"] for entry in found["definition"]["models"]] == ["a.safetensors", "b.safetensors"]
    assert list(found["definition"]["models"][0]) == ["filename", "sha256", "sourceUri", "type"]


def test_the_nodes_of_a_prompt_keep_their_order() -> None:
    part: dict[str, Any] = {"workflow": {"10": {}, "9": {}}}
    found = spec_from_document({**document(), "x-yggdrasill": part}, "x").to_document()
    assert json.dumps(found["x-yggdrasill"]) == json.dumps(part)


def test_hashes_and_commits_are_lower_case() -> None:
    found = spec(models=[model(sha256="A" * 64)], customNodes=[{"name": "n", "repository": "https://g.com/n", "commit": "B" * 40}])
    assert found.definition.models[0].sha256 == SHA
    assert found.definition.custom_nodes[0].commit == "b" * 40


@pytest.mark.parametrize(
    "entry, name",
    [
        (model(filename=None), "a.safetensors"),
        (model(filename=None, sourceUri="https://h.co/r/resolve/main/sub/b%20c.safetensors?download=true"), "b c.safetensors"),
        (model(filename=None, sourceUri="s3://bucket/models/d.gguf"), "d.gguf"),
        ({"type": "loras", "localPath": "loras/e.safetensors", "source": "local"}, "e.safetensors"),
    ],
)
def test_a_model_is_named_by_its_source_if_it_has_no_file_name(entry: dict[str, Any], name: str) -> None:
    assert spec(models=[entry]).definition.models[0].target == f"loras/{name}"


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "a/b.safetensors", "..", ".hidden", "a\\b", "c:a", "CON.safetensors", "a.", "", "a\x00b"]
)
def test_a_file_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"definition\.models\[0\]: .* is not a file name; set 'filename' to one without folders"):
        spec(models=[model(filename=name)])


@pytest.mark.parametrize("kind", ["..", "../loras", "/loras", "loras/..", "a\\b", "", "loras/", "loras//b"])
def test_a_type_that_leaves_the_folder_of_models_is_refused(kind: str) -> None:
    with pytest.raises(InvalidConfig, match=r"definition\.models\[0\]\.type: a model's type is a folder below models/"):
        spec(models=[model(type=kind)])


@pytest.mark.parametrize("kind", ["configs", "custom_nodes/pack", "Custom_Nodes"])
def test_models_are_not_put_where_comfyui_reads_code(kind: str) -> None:
    with pytest.raises(InvalidConfig, match="models are not in configs/ or custom_nodes/"):
        spec(models=[model(type=kind)])


@pytest.mark.parametrize(
    "url", ["ftp://h/a", "/etc/passwd", "file:///etc/passwd", "https://", "https:///a", "https://h/a b", "javascript:1", "http://[::1/a"]
)
def test_a_source_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfig, match=r"models\[0\]\.sourceUri: a source is a url that begins with https://, http://, s3://"):
        spec(models=[model(sourceUri=url)])


def test_a_source_with_a_password_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="a source contains no user name or password; pass tokens in the environment"):
        spec(models=[model(sourceUri="https://me:secret@example.com/a.safetensors")])


@pytest.mark.parametrize("name", ["../x", "a/b", ".git", "..", "", "nul"])
def test_a_custom_node_names_one_folder(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"customNodes\[0\]\.name: a custom node's name is the name of its folder"):
        spec(customNodes=[{"name": name, "repository": "https://github.com/a/b"}])


@pytest.mark.parametrize(
    "url", ["git@github.com:a/b.git", "ext::sh -c id", "ssh://github.com/a/b", "https://me@github.com/a/b", "--upload-pack=x"]
)
def test_a_repository_is_an_https_url(url: str) -> None:
    with pytest.raises(InvalidConfig, match=r"customNodes\[0\]\.repository: a repository is an https:// url of git"):
        spec(customNodes=[{"name": "n", "repository": url}])


@pytest.mark.parametrize("ref", ["--upload-pack=id", "-x", "a..b", "a b", "a~1", "@{1}"])
def test_a_revision_is_no_option_of_git(ref: str) -> None:
    with pytest.raises(InvalidConfig, match=r"gitRef: a name or version is letters, digits"):
        spec(customNodes=[{"name": "n", "repository": "https://g.com/n", "gitRef": ref}])


def test_two_models_of_one_target_are_named_with_their_hashes() -> None:
    other = model(sha256="b" * 64, filename="A.safetensors")
    with pytest.raises(
        InvalidConfig,
        match=rf"models\[0\] and models\[1\] are both 'loras/A.safetensors', with sha256 {SHA} and {'b' * 64}; keep one of them",
    ):
        spec(models=[model(), other])


def test_a_duplicate_entry_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"models\[0\] and models\[1\] are both 'loras/a.safetensors'; keep one of them"):
        spec(models=[model(), model()])
    with pytest.raises(InvalidConfig, match=r"customNodes\[0\] and customNodes\[1\] are both 'n'; keep one of them"):
        spec(customNodes=[{"name": "n"}, {"name": "n"}])


@pytest.mark.parametrize(
    "definition, message",
    [
        ({"models": [model(sha256="abc")]}, r"definition\.models\[0\]\.sha256: String should match pattern"),
        ({"models": [model(sizeBytes=-1)]}, r"models\[0\]\.sizeBytes: Input should be greater than or equal to 0"),
        ({"models": [model(blobId="b1")]}, "a model has one of sourceUri and blobId, not both"),
        ({"models": [model(filename=f"{number}.bin") for number in range(MAX_ENTRIES + 1)]}, "List should have at most 512 items"),
        ({"pipDependencies": "a" * 70_000}, "requirements have at most 65536 bytes"),
        ({"baseComfyVersion": "--help"}, "a version of ComfyUI is a tag such as v0.33.0, a branch or a commit"),
        ({"models": {}}, r"definition\.models: Input should be a valid list"),
    ],
)
def test_a_mistake_is_named_by_its_place(definition: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        spec(**definition)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"model_dir": "x"}, r"x-yggdrasill\.model_dir: Extra inputs are not permitted"),
        ({"output_mode": "ftp"}, r"x-yggdrasill\.output_mode: Input should be 'gcs', 's3' or 'base64'"),
        ({"inputs": {"prompt": "text"}}, r"x-yggdrasill\.inputs\.prompt: an input is \{node, field\} or the text 'NODE\.FIELD'"),
        ({"env": {"A=B": "1"}}, "not names of environment variables: 'A=B'"),
        ({"sources": {SHA: ["file:///x"]}}, "a source is a url that begins with https://"),
    ],
)
def test_an_unknown_key_below_our_part_is_an_error(part: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        spec_from_document({**document(), "x-yggdrasill": part}, "x.json")


def test_an_input_is_also_written_as_text() -> None:
    found = spec_from_document({**document(), "x-yggdrasill": {"inputs": {"seed": "12:3.noise_seed"}}}, "x")
    assert (found.x.inputs["seed"].node, found.x.inputs["seed"].field) == ("12:3", "noise_seed")


def test_further_sources_are_tried_before_the_url_of_the_model() -> None:
    part = {"sources": {SHA.upper(): ["s3://bucket/a", "https://example.com/a.safetensors"]}}
    found = spec_from_document({**document(models=[model()]), "x-yggdrasill": part}, "x")
    assert found.sources_of(found.definition.models[0]) == ["s3://bucket/a", "https://example.com/a.safetensors"]


def test_a_prompt_is_read_from_the_file_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"1": {}}', encoding="utf-8")
    (tmp_path / "versions").mkdir()
    found = spec_from_document({**document(), "x-yggdrasill": {"workflow": "p.json"}}, "x", tmp_path / "x.json")
    assert found.read_prompt() == {"1": {}}
    outside = spec_from_document({**document(), "x-yggdrasill": {"workflow": "../p.json"}}, "x", tmp_path / "versions" / "x.json")
    with pytest.raises(MissingFile, match=r"The workflow '../p.json' of version 'x' is outside .* Put it beside the spec\."):
        outside.read_prompt()
