"""The registry of endpoints: its file, its secrets, and its keys."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import (
    DuplicateName,
    InvalidArgument,
    InvalidConfig,
    MissingFile,
    StorageFailed,
    UnknownEndpoint,
)
from yggdrasill.remote import EndpointRegistry, UrlResolver
from yggdrasill.remote.placement import Placement, ProjectPart, match_keys

TEXT = """\
# my machines
# and what runs on them

endpoints:
  forge: {url: "http://127.0.0.1:8401", token_env: FORGE_TOKEN}
  attic: {url: "https://attic.example:8400/base", ca: ca.pem}
graphs:
  creator: forge
  author/write/llm: {replicas: [attic, forge], policy: first, fallback: local}
default: local
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def registry(**graphs: Any) -> EndpointRegistry:
    return EndpointRegistry({"forge": "http://127.0.0.1:1", "attic": "http://127.0.0.1:2"}, graphs)


def test_a_file_gives_endpoints_placements_and_a_default(file: Path) -> None:
    read = EndpointRegistry.from_yaml(file)
    assert read.to_dict() == {
        "endpoints": {
            "forge": {"url": "http://127.0.0.1:8401", "token_env": "FORGE_TOKEN"},
            "attic": {"url": "https://attic.example:8400/base", "ca": "ca.pem"},
        },
        "graphs": {"creator": "forge", "author/write/llm": {"replicas": ["attic", "forge"], "policy": "first", "fallback": "local"}},
        "default": "local",
    }


def test_what_is_written_is_read_back_and_the_comments_at_the_top_stay(file: Path) -> None:
    read = EndpointRegistry.from_yaml(file)
    read.add("cellar", "http://127.0.0.1:8402", token="hidden", token_env=None)
    read.remove("cellar")
    read.add("loft", "http://[::1]:8403")
    read.place_key("odd: key", "loft")
    read.to_yaml()
    assert file.read_text(encoding="utf-8").startswith("# my machines\n# and what runs on them\n")
    assert EndpointRegistry.from_yaml(file).to_dict() == read.to_dict()


BY_HAND = """\
# my machines

endpoints:
    forge: {url: "http://127.0.0.1:8401", token_env: FORGE_TOKEN}   # the big one
    # under the roof
    attic:
        url: "https://attic.example:8400/base"
        ca: ca.pem   # our own authority

    # where it is cold
    cellar: {url: 'http://127.0.0.1:8402'}

graphs:   # which part runs where
  creator: {replicas: [forge, attic], fallback: local}   # either will do
  # for the book
  author/write/llm: attic
default: local   # the rest
"""


def test_lines_of_unchanged_entries_stay_with_their_comments(file: Path) -> None:
    file.write_text(BY_HAND, encoding="utf-8")
    read = EndpointRegistry.from_yaml(file)
    read.to_yaml()
    assert file.read_text(encoding="utf-8") == BY_HAND
    read.remove("cellar")
    read.add("loft", "http://127.0.0.1:8403")
    read.to_yaml()
    lines = BY_HAND.replace("    cellar: {url: 'http://127.0.0.1:8402'}\n", "    loft: {url: 'http://127.0.0.1:8403'}\n")
    assert file.read_text(encoding="utf-8").replace('"', "'") == lines.replace('"', "'")
    read.place_key("creator", "forge")
    read.default = Placement(("forge",))
    del read.placements["author/write/llm"]
    read.to_yaml()
    changed = lines.replace("creator: {replicas: [forge, attic], fallback: local}   #", "creator: forge   #")
    changed = changed.replace("  author/write/llm: attic\n", "").replace("default: local   # the rest", "default: forge")
    assert file.read_text(encoding="utf-8").replace('"', "'") == changed.replace('"', "'")
    assert EndpointRegistry.from_yaml(file).to_dict() == read.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "endpoints: {}\ngraphs: {}\ndefault: local",
        "{endpoints: {forge: {url: 'http://127.0.0.1:1'}}}",
        "endpoints: {forge: {url: 'http://127.0.0.1:1'}}  # in one line",
        "endpoints:\n  forge: &url {url: 'http://127.0.0.1:1'}\n  mill: *url\n",
        "endpoints:\r\n  forge: {url: 'http://127.0.0.1:1'}\r\ngraphs:\r\n  a: forge\r\n",
        "graphs:\n  a: local\nendpoints:\n  ? forge\n  : url: >-\n      http://127.0.0.1:1\n# the end\n",
    ],
)
def test_any_layout_of_the_file_can_be_changed(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8"))
    read = EndpointRegistry.from_yaml(file)
    read.add("loft", "http://127.0.0.1:8403")
    read.place_key("odd: 'key' #", "loft")
    read.to_yaml()
    assert EndpointRegistry.from_yaml(file).to_dict() == read.to_dict()
    del read.placements["odd: 'key' #"]
    for name in list(read.endpoints):
        read.placements = {key: each for key, each in read.placements.items() if name not in each.endpoints}
        read.remove(name)
        read.to_yaml()
        assert EndpointRegistry.from_yaml(file).to_dict() == read.to_dict()


def test_a_token_is_written_to_the_secrets_alone_and_only_its_owner_reads_them(file: Path) -> None:
    read = EndpointRegistry.from_yaml(file)
    read.add("cellar", "http://127.0.0.1:8402", token="very-hidden")
    read.to_yaml()
    secrets = file.parent / "secrets.yaml"
    assert "very-hidden" not in file.read_text(encoding="utf-8")
    assert EndpointRegistry.from_yaml(file).endpoint("cellar").token == "very-hidden"
    if os.name == "posix":
        assert secrets.stat().st_mode & 0o777 == 0o600
        secrets.chmod(0o644)
        with pytest.raises(InvalidConfig, match="chmod 600"):
            EndpointRegistry.from_yaml(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["endpoints.yaml", "secrets.yaml"]


def test_no_repr_and_no_error_shows_a_token(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TOKEN", "very-hidden")
    read = EndpointRegistry.from_yaml(file)
    shown = [repr(read), repr(read.endpoint("forge")), repr(read.client("forge")), repr(read.to_dict()), str(vars(read.endpoint("forge")))]
    assert read.endpoint("forge").token == "very-hidden"
    assert not [text for text in shown if "very-hidden" in text]
    (file.parent / "secrets.yaml").write_text("forge: [very-hidden", encoding="utf-8")
    (file.parent / "secrets.yaml").chmod(0o600)
    with pytest.raises(InvalidConfig) as caught:
        EndpointRegistry.from_yaml(file)
    assert "very-hidden" not in str(caught.value)


def test_the_environment_goes_before_the_secrets(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "secrets.yaml").write_text("forge: from-the-file\n", encoding="utf-8")
    (file.parent / "secrets.yaml").chmod(0o600)
    assert EndpointRegistry.from_yaml(file).endpoint("forge").token == "from-the-file"
    monkeypatch.setenv("FORGE_TOKEN", "from-outside")
    assert EndpointRegistry.from_yaml(file).endpoint("forge").token == "from-outside"


@pytest.mark.parametrize(
    "text, said",
    [
        ("endpoints:\n  forge: {url: 'http://x'\n", "line 3"),
        ("endpoints:\n  a: {url: 'http://x'}\n  a: {url: 'http://y'}\n", "duplicate key"),
        ("endpoints: [1]\n", "'endpoints' must be a mapping"),
        ("hosts: {}\n", "'hosts'"),
        ("endpoints: {forge: {address: x}}\n", "needs a url"),
        ("endpoints: {forge: {url: 'http://x', port: 3}}\n", "'port'"),
        ("endpoints: {forge: {url: 'http://x', token: abc}}\n", "secrets.yaml"),
        ("endpoints: {local: {url: 'http://x'}}\n", "not 'local'"),
        ("endpoints: {forge: {url: 'ftp://x'}}\n", "http://"),
        ("endpoints: {forge: {url: 'http://me:pw@x'}}\n", "credentials"),
        ("endpoints: {forge: {url: 'http://x'}}\ngraphs: {a: {replicas: []}}\n", "replicas"),
        ("endpoints: {forge: {url: 'http://x'}}\ngraphs: {a: {replicas: [forge], policy: best}}\n", "'best'"),
        ("endpoints: {forge: {url: 'http://x'}}\ngraphs: {a: {replicas: [forge], retries: 3}}\n", "'retries'"),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, said: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises((InvalidConfig, InvalidArgument)) as caught:
        EndpointRegistry.from_yaml(file)
    assert said in str(caught.value)
    assert "pw" not in str(caught.value)


def test_an_unknown_endpoint_is_named_with_its_near_matches(file: Path) -> None:
    file.write_text(TEXT.replace("creator: forge", "creator: frge"), encoding="utf-8")
    with pytest.raises(UnknownEndpoint, match=r"Unknown endpoint 'frge'.*Did you mean 'forge'.*graphs\.creator"):
        EndpointRegistry.from_yaml(file)
    with pytest.raises(KeyError):
        registry().endpoint("frge")


def test_no_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        EndpointRegistry.from_yaml(tmp_path / "endpoints.yaml")


def test_names_are_taken_once_and_used_endpoints_stay() -> None:
    known = registry(paint="forge")
    with pytest.raises(DuplicateName):
        known.add("forge", "http://127.0.0.1:3")
    with pytest.raises(InvalidArgument, match="'paint'"):
        known.remove("forge")
    known.remove("attic")
    assert list(known.endpoints) == ["forge"]


def test_a_disk_that_refuses_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = EndpointRegistry.from_yaml(file)
    known.add("cellar", "http://127.0.0.1:8402")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageFailed):
            known.to_yaml()
    assert file.read_text(encoding="utf-8") == TEXT
    assert [path.name for path in file.parent.iterdir()] == ["endpoints.yaml"]


# -- keys -----------------------------------------------------------------------------------------------------------


def parts(*names: str) -> list[ProjectPart]:
    return [ProjectPart(tuple(name.split("/"))) for name in names]


def test_of_several_keys_the_longest_holds() -> None:
    project = parts("creator", "creator/paint", "creator/paint/gen", "author", "author/write", "author/write/llm")
    found, unused = match_keys(["gen", "paint/gen", "creator/paint/gen", "author", "unused"], project)
    assert found == {("creator", "paint", "gen"): "creator/paint/gen", ("author",): "author"}
    assert unused == ["unused"]


def test_a_key_that_is_a_whole_path_is_never_ambiguous() -> None:
    found, _ = match_keys(["paint"], parts("paint", "paint/paint"))
    assert found == {("paint",): "paint"}


def test_an_ambiguous_key_is_named_with_its_candidate_paths() -> None:
    with pytest.raises(InvalidConfig, match="'a/gen', 'b/gen'"):
        match_keys(["gen"], parts("a", "a/gen", "b", "b/gen"))


def test_a_key_of_a_part_and_of_what_is_inside_it_places_it_whole() -> None:
    found, _ = match_keys(["gen"], parts("a", "a/gen", "a/gen/gen"))
    assert found == {("a", "gen"): "gen"}


def test_the_key_of_a_part_of_a_stage_holds_in_a_world_and_in_the_stage_alone() -> None:
    keys = ["creator/paint/gen", "gen"]
    assert match_keys(keys, parts("creator", "creator/paint", "creator/paint/gen"))[0] == {("creator", "paint", "gen"): "creator/paint/gen"}
    found, unused = match_keys(keys, parts("paint", "paint/gen"), "creator")
    assert (found, unused) == ({("paint", "gen"): "creator/paint/gen"}, [])
    assert match_keys(["creator/paint/gen"], parts("paint", "paint/gen"), "author") == ({}, ["creator/paint/gen"])


def test_a_whole_path_goes_before_one_that_begins_with_the_projects_id() -> None:
    found, _ = match_keys(["paint/gen"], parts("gen", "paint/gen"), "paint")
    assert found == {("paint", "gen"): "paint/gen"}


def test_a_part_is_also_named_by_its_own_id() -> None:
    part = ProjectPart.of_config(("node_1",), {"graph_config": {"graph_id": "terrain", "nodes": []}})
    assert part.is_named_by("terrain")
    assert part.is_named_by("node_1")
    assert not part.is_named_by("other")


def test_a_key_that_names_nothing_is_told_when_a_project_is_placed() -> None:
    with pytest.warns(RuntimeWarning, match=r"'creatr'.*names no part.*'creator'"):
        registry(creatr="forge").placements_of(parts("creator"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry(creator="forge").placements_of(parts("creator"))


def test_placements_have_one_json_form() -> None:
    known = ["a", "b"]
    for form in ("local", "a", {"replicas": ["a", "b"], "policy": "round_robin", "fallback": "local"}):
        assert Placement.of(form, known, "here").to_config() == form


# -- credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, gets",
    [
        ("https://attic.example:8400/base", True),
        ("https://attic.example:8400/base/deeper", True),
        ("https://attic.example:8400/based", False),
        ("https://attic.example:8400/base/../other", False),
        ("https://attic.example:8400/base/%2e%2e/other", False),
        ("https://attic.example:8400", False),
        ("https://attic.example/base", False),
        ("http://attic.example:8400/base", False),
        ("https://attic.example.evil:8400/base", False),
        ("https://user@attic.example:8400/base", False),
    ],
)
def test_a_credential_goes_below_its_url_and_nowhere_else(url: str, gets: bool) -> None:
    known = EndpointRegistry({"attic": {"url": "https://attic.example:8400/base"}}, secrets={"attic": "hidden"})
    if "@" in url:
        with pytest.raises(InvalidArgument):
            known.client_for(url)
    else:
        assert (known.client_for(url).token == "hidden") is gets


def test_the_token_of_the_environment_is_bound_to_its_url_or_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YGGDRASILL_TOKEN", "hidden")
    monkeypatch.delenv("YGGDRASILL_URL", raising=False)
    known = EndpointRegistry()
    assert known.client_for("http://127.0.0.1:8400").token == "hidden"
    assert known.client_for("http://localhost:8400").token == "hidden"
    assert known.client_for("http://10.0.0.1:8400").token is None
    monkeypatch.setenv("YGGDRASILL_URL", "http://10.0.0.1:8400")
    assert known.client_for("http://10.0.0.1:8400").token == "hidden"
    assert known.client_for("http://127.0.0.1:8400").token is None


def test_a_config_with_a_url_takes_its_credential_from_the_file_the_environment_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YGGDRASILL_ENDPOINTS", str(file))
    monkeypatch.setenv("FORGE_TOKEN", "hidden")
    proxy = UrlResolver().resolve(("paint",), {"endpoint_url": "http://127.0.0.1:8401", "graph_id": "terrain"})
    assert proxy is not None
    assert proxy.route.clients[0].token == "hidden"
    assert proxy.to_config() == {"endpoint_url": "http://127.0.0.1:8401", "graph_id": "terrain"}


def test_a_replaced_endpoint_keeps_its_placements() -> None:
    registry = EndpointRegistry({"forge": "http://127.0.0.1:1", "mill": "http://127.0.0.1:2"}, {"paint": "forge"})
    before = registry.client("forge")
    registry.replace("forge", "http://127.0.0.1:3", token="another-token-of-the-forge")
    assert registry.placements["paint"].endpoints == ("forge",)
    assert registry.client("forge") is not before
    assert (registry.client("forge").url, registry.client("forge").token) == ("http://127.0.0.1:3", "another-token-of-the-forge")
    with pytest.raises(InvalidArgument):
        registry.replace("forge", "nonsense")
    assert registry.endpoint("forge").url == "http://127.0.0.1:3"
    with pytest.raises(UnknownEndpoint):
        registry.replace("loom", "http://127.0.0.1:4")
