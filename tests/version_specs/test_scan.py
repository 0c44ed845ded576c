"""The spec of a ComfyUI folder, and the same made exact."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from samples.file_server import FileServer, digest_of, spec_document
from samples.git_repositories import GitRepository
from yggdrasill.errors import MissingFile, VersionIncomplete
from yggdrasill.version_specs.cache import HashMemory, ModelCache
from yggdrasill.version_specs.checks import errors_of, warnings_of
from yggdrasill.version_specs.installation import run_python as run_in_python
from yggdrasill.version_specs.lock import lock_spec
from yggdrasill.version_specs.model import VersionSpec, spec_from_document
from yggdrasill.version_specs.scan import scan_installation
from yggdrasill.version_specs.sources import SourcePool


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest_of(data)


def test_models_are_hashed_with_their_folders(home: Path, tmp_path: Path) -> None:
    put(tmp_path / "shared" / "deep" / "c.gguf", b"ccc")
    (home / "models").mkdir()
    (home / "models" / "diffusion_models").symlink_to(tmp_path / "shared")
    (tmp_path / "shared" / "loop").symlink_to(tmp_path / "shared")
    hashes = [put(home / "models" / name, name.encode()) for name in ("loras/sub/a.safetensors", "vae/b.pt")]
    for ignored in ("loras/readme.txt", "loose.safetensors", "loras/.hidden.pt", ".cache/x.pt"):
        put(home / "models" / ignored, b"x")
    progress: list[tuple[int, int, str]] = []
    scan = scan_installation(home, "mine", progress=lambda *state: progress.append(state))
    found = [(model.target, model.sha256, model.size_bytes, model.local_path) for model in scan.spec.definition.models]
    assert found == [
        ("diffusion_models/deep/c.gguf", digest_of(b"ccc"), 3, "diffusion_models/deep/c.gguf"),
        ("loras/sub/a.safetensors", hashes[0], 23, "loras/sub/a.safetensors"),
        ("vae/b.pt", hashes[1], 8, "vae/b.pt"),
    ]
    assert progress[-1] == (34, 34, "hashing")
    assert "3 of 3 models have no url; add 'sourceUri', or urls by sha256 to x-yggdrasill.sources" in scan.notes
    assert scan.spec.definition.base_comfy_version == "v0.33.0"


def test_known_hashes_are_not_computed_again(home: Path, tmp_path: Path) -> None:
    put(home / "models" / "loras" / "a.pt", b"aaa")
    memory = HashMemory(tmp_path / "hashes.json")
    scan_installation(home, "mine", hashes=memory)
    read: list[Any] = []
    scan_installation(home, "mine", hashes=HashMemory(tmp_path / "hashes.json"), progress=lambda *state: read.append(state))
    assert read == []


def test_a_workflow_defines_the_urls_of_models_unless_their_bytes_differ(home: Path) -> None:
    digest = put(home / "models" / "loras" / "a.pt", b"aaa")
    put(home / "models" / "loras" / "b.pt", b"bbb")
    put(home / "models" / "loras" / "c.pt", b"ccc")
    sources = {
        "a.pt": {"url": "https://h.co/a.pt", "sha256": digest.upper()},
        "b.pt": {"url": "https://h.co/b.pt", "sha256": "0" * 64},
        "c.pt": {"url": "https://h.co/c.pt"},
    }
    found = scan_installation(home, "mine", sources=sources).spec.definition.models
    assert [(model.name, model.source_uri, model.source) for model in found] == [
        ("a.pt", "https://h.co/a.pt", None),
        ("b.pt", None, "local"),
        ("c.pt", "https://h.co/c.pt", None),
    ]


def test_custom_nodes_have_their_commit_version_or_nothing(home: Path) -> None:
    nodes = home / "custom_nodes"
    packs = {name: GitRepository(nodes / name) for name in ("https", "ssh", "none", "changed")}
    commits = {name: pack.commit() for name, pack in packs.items()}
    packs["https"].git("remote", "add", "origin", "https://github.com/a/https.git")
    packs["ssh"].git("remote", "add", "origin", "git@github.com:a/ssh.git")
    packs["changed"].git("remote", "add", "origin", "https://github.com/a/changed")
    (nodes / "changed" / "__init__.py").write_text("mine\n", encoding="utf-8")
    put(nodes / "kj" / "pyproject.toml", b'[project]\nname = "comfyui-kjnodes"\nversion = "1.0.5"\n[tool.comfy]\nversion = "9"\n')
    put(nodes / "kj" / ".tracking", b"")
    put(nodes / "own" / "__init__.py", b"")
    put(nodes / "off.disabled" / "__init__.py", b"")
    put(nodes / "__pycache__" / "x.pyc", b"")
    put(nodes / "single.py", b"")
    scan = scan_installation(home, "mine")
    assert [node.model_dump(exclude_unset=True) for node in scan.spec.definition.custom_nodes] == [
        {"name": "changed", "repository": "https://github.com/a/changed", "git_ref": commits["changed"]},
        {"name": "https", "repository": "https://github.com/a/https.git", "git_ref": commits["https"]},
        {"name": "kj", "id": "comfyui-kjnodes", "registry_version": "1.0.5"},
        {"name": "none", "source": "local", "local_path": "none"},
        {"name": "own", "source": "local", "local_path": "own"},
        {"name": "ssh", "repository": "https://github.com/a/ssh.git", "git_ref": commits["ssh"]},
    ]
    assert "the custom node 'changed' has local changes, which are not in the spec" in scan.notes
    assert "the custom node 'none' has no commit or no https repository that others can fetch" in scan.notes
    assert "the custom node 'single.py' is a single file and was left out; put it into a repository" in scan.notes


def test_packages_are_those_of_the_named_python(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yggdrasill.version_specs import scan as module

    def run_python(python: Path, *arguments: str, text: str = "") -> str:
        return (
            run_in_python(python, *arguments)
            if arguments[0] == "-c"
            else "torch==2.8.0+cu128\nx @ file:///home/me/x\n-e git+https://h/a#egg=a\naiohttp==3.1\n"
        )

    monkeypatch.setattr(module, "run_python", run_python)
    scan = scan_installation(home, "mine", python=Path(sys.executable))
    definition = scan.spec.definition
    assert definition.pip_dependencies == "torch==2.8.0+cu128\naiohttp==3.1\n"
    assert definition.environment is not None
    assert definition.environment["torch"] == "2.8.0+cu128"
    assert set(definition.environment) == {"os", "arch", "pythonVersion", "torch"}
    assert any("x @ file:///home/me/x" in note for note in scan.notes)


def test_pip_of_a_real_python_is_listed(home: Path) -> None:
    text = scan_installation(home, "mine", python=Path(sys.executable)).spec.definition.pip_dependencies
    assert text is not None
    assert "pydantic==" in text


def test_a_folder_without_comfyui_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"has no main\.py; name the folder of ComfyUI\."):
        scan_installation(tmp_path, "mine")


def lock(spec: VersionSpec, cache: Path, repository: str = "") -> VersionSpec:
    async def run() -> VersionSpec:
        async with SourcePool(allow_private=True, environment={}) as pool:
            return await lock_spec(spec, ModelCache(cache), pool, comfy_repository=repository)

    return asyncio.run(run())


def test_an_open_spec_becomes_exact(server: FileServer, tmp_path: Path) -> None:
    data, hub = server.add("a.pt"), server.add("hub.pt")
    upstream = GitRepository(tmp_path / "upstream" / "pack")
    commit = upstream.commit()
    nodes = [{"name": "pack", "repository": upstream.url, "gitRef": "main"}, {"name": "kj", "id": "kj", "registryVersion": "1.0"}]
    document = spec_document(server, "a.pt", "hub.pt", customNodes=nodes, baseComfyVersion="main")
    for model in document["definition"]["models"]:
        del model["sha256"], model["sizeBytes"]
    document["definition"]["models"][1]["sourceUri"] = f"{server.url}/hub/hub.pt"
    spec = spec_from_document(document, "x")
    exact = lock(spec, tmp_path / "cache", upstream.url)
    assert [(model.sha256, model.size_bytes) for model in exact.definition.models] == [
        (digest_of(data), len(data)),
        (digest_of(hub), len(hub)),
    ]
    assert (exact.definition.base_comfy_version, exact.definition.custom_nodes[0].revision) == (commit, commit)
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [digest_of(data)]
    server.requests.clear()
    assert lock(exact, tmp_path / "cache", upstream.url).to_document() == exact.to_document()
    assert server.requests == []


def test_a_lock_names_all_that_it_cannot_find_out(server: FileServer, tmp_path: Path) -> None:
    server.add("a.pt")
    document = spec_document(
        server, "a.pt", customNodes=[{"name": "gone", "repository": (tmp_path / "none").as_uri()}], baseComfyVersion="no-branch"
    )
    models = document["definition"]["models"]
    del models[0]["sha256"]
    models[0]["sourceUri"] = f"{server.url}/status/404/a.pt"
    models.append({"type": "vae", "filename": "local.pt", "source": "local"})
    with pytest.raises(VersionIncomplete) as caught:
        lock(spec_from_document(document, "x"), tmp_path / "cache", (tmp_path / "none").as_uri())
    assert sorted(entry["name"] for entry in caught.value.details["missing"]) == ["gone", "loras/a.pt", "no-branch", "vae/local.pt"]


def test_warnings_name_what_is_not_exact_and_what_the_platform_refuses() -> None:
    document = {
        "schema": "comfy-build/1",
        "name": "n",
        "definition": {
            "models": [
                {"type": "loras", "filename": "a.pt", "sourceUri": "s3://bucket/a.pt"},
                {"type": "loras", "filename": "my lora (1).pt", "sha256": "a" * 64, "source": "local"},
            ],
            "customNodes": [{"name": "a", "repository": "https://gitlab.com/a/b", "gitRef": "main"}, {"name": "b", "source": "local"}],
            "pipDependencies": "torch\nnumpy==1\n--extra-index-url x\n",
        },
    }
    assert warnings_of(spec_from_document(document, "x")) == [
        "baseComfyVersion is not set, so any ComfyUI is accepted",
        "models[0] (loras/a.pt) has no sha256; run: yggdrasill version lock",
        "models[0] (loras/a.pt) has no sizeBytes, so the total size is known only from its source",
        "models[0] (loras/a.pt): the platform of Comfy fetches https urls only; put s3:// urls into x-yggdrasill.sources",
        "models[1] (loras/my lora (1).pt) has no url; it must be on the machine, or needs one in 'sourceUri' or x-yggdrasill.sources",
        "models[1] (loras/my lora (1).pt): the platform of Comfy accepts letters, digits, '.', '_' and '-' in names",
        "customNodes[0] (a) is not at a commit; run: yggdrasill version lock",
        "customNodes[0] (a): the platform of Comfy accepts repositories at https://github.com only",
        "customNodes[1] (b) has no repository and no version of the registry; it must be on the machine",
        "pipDependencies: 'torch' has no exact version",
    ]


@pytest.mark.parametrize(
    "part, expected",
    [
        ({"workflow": {"6": {"inputs": {"text": ""}}}, "inputs": {"prompt": "6.text"}}, []),
        ({"workflow": {"6": {"inputs": {}}}, "inputs": {"p": "6.text"}}, ["x-yggdrasill.inputs.p: node '6' has no input 'text'"]),
        ({"workflow": {"6": {}}, "inputs": {"p": "7.text"}}, ["x-yggdrasill.inputs.p: the workflow has no node '7'"]),
        ({"inputs": {"p": "7.text"}}, ["x-yggdrasill.inputs.p: the version has no workflow"]),
        ({"workflow": {"nodes": [], "links": []}}, ["x-yggdrasill.workflow is in the editor's format; save it with Export (API)"]),
        ({"workflow": "none.json"}, ["x-yggdrasill.workflow: Config 'none.json' does not exist; check the path"]),
        ({}, []),
    ],
)
def test_inputs_name_nodes_of_the_workflow(part: dict[str, Any], expected: list[str]) -> None:
    document = {"schema": "comfy-build/1", "name": "n", "definition": {}, "x-yggdrasill": part}
    assert errors_of(spec_from_document(document, "x")) == expected
