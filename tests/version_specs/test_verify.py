"""Verification of a whole version: all that is missing is listed, then had, and nothing is left half done."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samples.file_server import FileServer, digest_of, spec_document
from samples.git_repositories import GitRepository
from yggdrasill.errors import VersionIncomplete
from yggdrasill.version_specs import load_version, verify_version, write_spec
from yggdrasill.version_specs.cache import ModelCache
from yggdrasill.version_specs.model import VersionSpec, spec_from_document
from yggdrasill.version_specs.plan import VerifyOptions, size_text
from yggdrasill.version_specs.verify import VerifyReport


def spec_of(document: dict[str, Any]) -> VersionSpec:
    return spec_from_document(document, "sample.json", Path("sample.json"))


class Machine:
    """A ComfyUI folder and a cache."""

    def __init__(self, home: Path, options: VerifyOptions) -> None:
        self.home, self.options = home, options
        self.cache = home.parent / "cache"
        self.progress: list[tuple[int, int, str]] = []
        self.said: list[str] = []

    def verify(self, document: dict[str, Any] | VersionSpec, *, fetch: bool = True, **changes: Any) -> VerifyReport:
        spec = document if isinstance(document, VersionSpec) else spec_of(document)
        return asyncio.run(
            verify_version(
                spec,
                comfy_home=self.home,
                cache=self.cache,
                fetch=fetch,
                progress=lambda *state: self.progress.append(state),
                options=replace(self.options, **changes),
                say=self.said.append,
            )
        )

    def missing(self, document: dict[str, Any], **settings: Any) -> dict[str, str]:
        """Return the reasons of what is missing, by name."""
        with pytest.raises(VersionIncomplete) as caught:
            self.verify(document, **settings)
        found = caught.value.details["missing"]
        assert all(f"- {entry['kind']} {entry['name']}" in str(caught.value) for entry in found)
        return {entry["name"]: entry["reason"] for entry in found}

    def model(self, name: str) -> Path:
        return self.home / "models" / "loras" / name

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.home.parent).as_posix() for path in self.home.parent.rglob("*") if not path.is_dir())


@pytest.fixture
def machine(home: Path, options: VerifyOptions) -> Machine:
    return Machine(home, options)


def test_a_version_is_verified_from_an_empty_cache(machine: Machine, server: FileServer, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        server.add(name, 2_000_000)
    repository = GitRepository(tmp_path / "upstream" / "pack")
    commit = repository.commit()
    nodes = [{"name": "pack", "repository": repository.url, "commit": commit}]
    document = spec_document(server, *server.files, customNodes=nodes, baseComfyVersion="v0.33.0")
    (tmp_path / "versions").mkdir()
    write_spec(spec_of(document), tmp_path / "versions" / "sample.yaml")

    report = machine.verify(load_version("sample", [tmp_path / "versions"]))
    assert (report.version_id, report.fetched_bytes, report.installed) == ("sample", 4_000_000, ["pack"])
    assert sorted(report.linked) == sorted(report.fetched) == ["loras/a.safetensors", "loras/b.safetensors"]
    assert machine.model("a.safetensors").read_bytes() == server.files["a.safetensors"]
    assert machine.model("a.safetensors").is_symlink()
    assert (machine.home / "custom_nodes" / "pack" / "__init__.py").exists()
    assert machine.progress[-1] == (4_000_000, 4_000_000, "fetching 2 models")
    assert machine.said[0] == "3 missing, 4.0 MB to fetch:"

    server.requests.clear()
    again = machine.verify(document)
    assert (again.present, again.fetched, again.linked) == (["loras/a.safetensors", "loras/b.safetensors"], [], [])
    assert server.requests == []
    assert machine.verify(document, fetch=False).present == again.present


def test_all_that_is_missing_is_listed_with_the_total_size_and_nothing_is_sent(machine: Machine, server: FileServer) -> None:
    for name in ("a", "b"):
        server.add(name, 1_500_000)
    nodes = [{"name": "pack", "repository": "https://github.com/a/b", "commit": "c" * 40}, {"name": "mine", "source": "local"}]
    document = spec_document(server, "a", "b", customNodes=nodes, baseComfyVersion="v0.46.0", pipDependencies="no-such-package==1\n")
    document["definition"]["models"].append({"type": "vae", "filename": "c", "blobId": "bl_1", "sha256": "c" * 64})
    before = machine.files()
    found = machine.missing(document, fetch=False, python=Path(shutil.which("python3") or "python3"))
    assert found == {
        "v0.46.0": "is version 0.33.0, expected v0.46.0",
        "no-such-package==1": "is not installed",
        "mine": f"is not installed; it has no repository, so copy it to {machine.home / 'custom_nodes' / 'mine'}",
        "vae/c": f"its blob 'bl_1' is on the platform of Comfy; copy it to {str(machine.home / 'models' / 'vae' / 'c')!r}, or add a url to x-yggdrasill.sources",
        "loras/a": "is not in the cache",
        "loras/b": "is not in the cache",
        "pack": "is not installed",
    }
    assert server.requests == []
    assert machine.files() == before
    with pytest.raises(VersionIncomplete) as caught:
        machine.verify(document, fetch=False)
    first, *listed = caught.value.message.splitlines()
    assert first == "Version 'sample' is incomplete; 6 missing, 3.0 MB of models:"
    assert [line.partition(":")[0].removesuffix(" (1.5 MB)") for line in listed] == [
        "- comfyui v0.46.0", "- node mine", "- model vae/c", "- model loras/a", "- model loras/b", "- node pack",
    ]  # fmt: skip


def test_nothing_is_fetched_if_something_cannot_be_had(machine: Machine, server: FileServer) -> None:
    for name in ("a", "b", "c"):
        server.add(name)
    document = spec_document(server, "a", "b", "c")
    models = document["definition"]["models"]
    models[1]["sourceUri"] = f"{server.url}/status/404/b"
    models[2]["sizeBytes"] += 1
    found = machine.missing(document)
    assert found["loras/b"] == f"{server.url}/status/404/b does not exist (status 404). Correct the url."
    assert found["loras/c"] == f"{server.url}/plain/c has 300000 bytes, expected 300001. Correct the size or the source."
    assert found["loras/a"] == "is not in the cache"
    assert not (machine.cache / "models").exists() or list((machine.cache / "models").iterdir()) == []
    assert all(headers.get("range") == "bytes=0-0" for _, headers in server.requests)


def test_what_fails_while_it_is_fetched_is_listed_and_the_rest_is_linked(machine: Machine, server: FileServer) -> None:
    for name in ("a", "b", "c"):
        server.add(name)
    document = spec_document(server, "a", "b", "c")
    for number in (0, 2):
        document["definition"]["models"][number]["sourceUri"] = f"{server.url}/wrong/{'abc'[number]}"
    found = machine.missing(document)
    assert sorted(found) == ["loras/a", "loras/c"]
    assert all("The file was removed; correct the spec or the source." in reason for reason in found.values())
    assert machine.model("b").read_bytes() == server.files["b"]
    assert not machine.model("a").exists()
    assert [path.name for path in (machine.cache / "models").iterdir()] == [digest_of(server.files["b"])]


def test_no_network_lists_every_model(machine: Machine, server: FileServer) -> None:
    for name in ("a", "b"):
        server.add(name)
    document = spec_document(server, "a", "b")
    for model in document["definition"]["models"]:
        model["sourceUri"] = f"http://127.0.0.1:9/{model['filename']}"
    assert machine.missing(document) == {
        f"loras/{name}": f"http://127.0.0.1:9/{name} cannot be reached (ClientConnectorError). Check the url and the network."
        for name in "ab"
    }


def test_a_private_source_is_refused_unless_the_owner_allows_it(machine: Machine, server: FileServer) -> None:
    server.add("a")
    document = spec_document(server, "a")
    document["definition"]["models"][0]["sourceUri"] = server.url.replace("http://", "https://") + "/plain/a"
    reason = machine.missing(document, allow_private=None)["loras/a"]
    assert (
        reason == "The host '127.0.0.1' is inside a private network. The owner may allow such hosts with YGGDRASILL_ALLOW_PRIVATE_URLS=1."
    )
    assert server.requests == []
    allowed = machine.verify(spec_document(server, "a"), allow_private=None, environment={"YGGDRASILL_ALLOW_PRIVATE_URLS": "1"})
    assert allowed.fetched == ["loras/a"]


def test_a_disk_without_space_is_named_before_a_byte_is_fetched(
    machine: Machine, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("a", 5_000_000)
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 70_000_000, 70_000_000))
    reason = machine.missing(spec_document(server, "a"))["loras/a"]
    assert reason.startswith("5.0 MB are to be fetched, and ")
    assert reason.endswith("has 70.0 MB free; free space, or set COMFY_CACHE_ROOT to another disk")
    assert not any(headers.get("range") != "bytes=0-0" for _, headers in server.requests)


def test_the_size_of_a_model_is_requested_if_the_spec_has_none(machine: Machine, server: FileServer) -> None:
    server.add("a", 1_234_567)
    document = spec_document(server, "a")
    del document["definition"]["models"][0]["sizeBytes"]
    assert machine.verify(document).fetched_bytes == 1_234_567
    assert machine.said[0] == "1 missing, 1.2 MB to fetch:"


def test_a_model_without_a_hash_is_not_accepted(machine: Machine, server: FileServer) -> None:
    server.add("a")
    document = spec_document(server, "a")
    del document["definition"]["models"][0]["sha256"]
    assert machine.missing(document) == {"loras/a": "the spec has no sha256 for it; run: yggdrasill version lock"}


def test_models_of_equal_bytes_are_fetched_once(machine: Machine, server: FileServer) -> None:
    server.files |= {"a": server.add("same"), "b": server.files["same"]}
    report = machine.verify(spec_document(server, "a", "b"))
    assert sorted(report.fetched) == ["loras/a", "loras/b"]
    assert len([path for path, headers in server.requests if headers.get("range") != "bytes=0-0"]) == 1
    assert machine.model("b").read_bytes() == server.files["same"]


def test_a_file_that_the_user_put_there_is_used(machine: Machine, server: FileServer) -> None:
    data = server.add("a")
    machine.model("a").parent.mkdir(parents=True)
    machine.model("a").write_bytes(data)
    assert machine.verify(spec_document(server, "a")).present == ["loras/a"]
    assert server.requests == []
    assert not machine.model("a").is_symlink()


def test_another_file_of_the_name_is_kept_and_named(machine: Machine, server: FileServer) -> None:
    server.add("a")
    machine.model("a").parent.mkdir(parents=True)
    machine.model("a").write_bytes(b"mine")
    reason = machine.missing(spec_document(server, "a"))["loras/a"]
    assert reason == f"{str(machine.model('a'))!r} is another file, with sha256 {digest_of(b'mine')}; remove or rename it"
    assert machine.model("a").read_bytes() == b"mine"
    assert server.requests == []


def test_a_damaged_file_of_the_cache_is_fetched_again(machine: Machine, server: FileServer) -> None:
    data = server.add("a")
    machine.verify(spec_document(server, "a"))
    cached = ModelCache(machine.cache).path(digest_of(data))
    cached.chmod(0o644)
    cached.write_bytes(bytes(len(data)))
    os.utime(cached, ns=(1, 1))
    assert machine.missing(spec_document(server, "a"), fetch=False) == {"loras/a": "is not in the cache"}
    assert machine.verify(spec_document(server, "a")).fetched == ["loras/a"]
    assert machine.model("a").read_bytes() == data


def test_a_folder_of_models_that_is_a_file_is_named(machine: Machine, server: FileServer) -> None:
    server.add("a")
    (machine.home / "models").write_bytes(b"")
    folder = str(machine.home / "models")
    assert machine.missing(spec_document(server, "a")) == {folder: "the folder of models is a file; remove or rename it"}


def test_a_link_out_of_the_folder_of_models_is_not_followed(machine: Machine, server: FileServer, tmp_path: Path) -> None:
    server.add("a")
    (tmp_path / "outside").mkdir()
    (machine.home / "models").mkdir()
    (machine.home / "models" / "loras").symlink_to(tmp_path / "outside")
    reason = machine.missing(spec_document(server, "a"))["loras/a"]
    assert "leads outside" in reason
    assert list((tmp_path / "outside").iterdir()) == []
    assert server.requests == []


@pytest.mark.parametrize("named", ["volume/models", "{home}/other"])
def test_the_folder_of_models_is_that_of_the_spec_or_the_argument(machine: Machine, server: FileServer, named: str) -> None:
    server.add("a")
    folder = named.format(home=machine.home)
    document = {**spec_document(server, "a"), "x-yggdrasill": {"models_dir": folder}}
    assert machine.verify(document).models_dir == str(machine.home / folder)
    assert (machine.home / folder / "loras" / "a").exists()
    assert machine.verify(document, models_dir="third").models_dir == str(machine.home / "third")
    assert (machine.home / "third" / "loras" / "a").exists()


def test_packages_are_not_checked_without_a_python_and_a_note_says_so(machine: Machine) -> None:
    report = machine.verify({"schema": "comfy-build/1", "name": "n", "definition": {"pipDependencies": "a==1\n"}})
    assert report.notes == [f"packages were not checked: {machine.home} has no Python environment; name it with --python FILE"]


def test_a_hundred_present_files_are_verified_in_a_moment(machine: Machine, server: FileServer) -> None:
    for number in range(100):
        server.add(f"m{number}.safetensors", 200_000)
    document = spec_document(server, *server.files)
    machine.verify(document)
    shutil.rmtree(machine.home / "models" / "loras", ignore_errors=True)
    machine.verify(document)
    server.requests.clear()
    machine.progress.clear()
    began = time.perf_counter()
    report = machine.verify(document)
    assert len(report.present) == 100
    assert server.requests == []
    assert time.perf_counter() - began < 1.0
    assert machine.progress == []


def test_two_verifications_at_once_share_one_cache(machine: Machine, server: FileServer, home: Path, options: VerifyOptions) -> None:
    for name in "abcd":
        server.add(name, 700_000)
    other = home.parent / "Other"
    shutil.copytree(home, other)

    async def both() -> list[VerifyReport]:
        runs = [
            verify_version(spec_of(spec_document(server, *"abcd")), comfy_home=folder, cache=machine.cache, options=options)
            for folder in (home, other)
        ]
        return await asyncio.gather(*runs)

    reports = asyncio.run(both())
    assert [len(report.linked) for report in reports] == [4, 4]
    assert len([path for path, headers in server.requests if headers.get("range") != "bytes=0-0"]) == 4
    assert sorted(path.name for path in (machine.cache / "models").iterdir()) == sorted(map(digest_of, server.files.values()))


def test_a_node_that_cannot_be_installed_is_listed_with_the_models_that_failed(
    machine: Machine, server: FileServer, tmp_path: Path
) -> None:
    server.add("a")
    nodes = [{"name": "gone", "repository": (tmp_path / "none").as_uri(), "commit": "c" * 40}]
    document = spec_document(server, "a", kind="wrong", customNodes=nodes)
    found = machine.missing(document)
    assert sorted(found) == ["gone", "loras/a"]
    assert found["gone"].startswith("is not installed. git: fatal: ")


@pytest.mark.parametrize(
    "nbytes, text", [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (4_265_146_304, "4.3 GB"), (2 * 10**15, "2000.0 TB")]
)
def test_a_size_has_a_unit(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text
