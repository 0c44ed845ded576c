"""Finding, reading and writing specs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import InvalidArgument, InvalidConfig, UnknownVersion, UnsupportedVersion
from yggdrasill.version_specs.model import spec_from_document
from yggdrasill.version_specs.store import available_versions, load_version, read_spec, spec_text, version_folders, write_spec

SPEC: dict[str, Any] = {"schema": "comfy-build/1", "name": "n", "definition": {"models": []}}


def put(folder: Path, file: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_spec(spec_from_document({**SPEC, **changes}, file), folder / file)
    return folder / file


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_version_is_found_by_the_stem_of_its_file(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "versions", f"wan2.2-fast{suffix}", name="other")
    found = load_version("wan2.2-fast", [tmp_path / "none", tmp_path / "versions"])
    assert (found.version_id, found.name) == ("wan2.2-fast", "other")


def test_the_first_folder_wins(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / name, "v.json", description=name)
    assert load_version("v", [tmp_path / "two", tmp_path / "one"]).description == "two"


def test_an_unknown_version_lists_the_available_ones(tmp_path: Path) -> None:
    for name in ("wan22.json", "flux.yaml", "notes.txt", "bad name.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UnknownVersion) as caught:
        load_version("wan23", [tmp_path])
    assert str(caught.value).startswith(
        "Unknown version 'wan23'. Available: 'wan22', 'flux'. Did you mean 'wan22'? Add wan23.json to one of:"
    )


@pytest.mark.parametrize("version_id", ["", ".", "..", "../v", "a/b", "a\\b", ".hidden", "a\x00", "ü", "a b", "x" * 201, 3, None, ["v"]])
def test_another_form_of_id_is_refused_before_a_file_is_opened(tmp_path: Path, version_id: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"is not a version id\. Use 1 to 200 letters, digits, '\.', '_' and '-'"):
        load_version(version_id, [tmp_path])


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    secret = put(tmp_path, "secret.json")
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "v.json").symlink_to(secret)
    with pytest.raises(UnknownVersion, match=r"Available: none"):
        load_version("v", [folder])
    assert available_versions([folder]) == {}


def test_a_folder_that_is_a_link_and_links_inside_it_are_fine(tmp_path: Path) -> None:
    put(tmp_path / "real", "v.json")
    (tmp_path / "versions").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "w.json").symlink_to("v.json")
    assert load_version("w", [tmp_path / "versions"]).version_id == "w"


@pytest.mark.parametrize(
    "document, error, message",
    [
        ("{}", InvalidConfig, r"x\.json: not a version spec: 'schema' is None, expected 'comfy-build/1'"),
        ('{"schema": "comfy-build/2"}', UnsupportedVersion, r"schema 'comfy-build/2' is not supported\. Available: 'comfy-build/1'\."),
        ("[]", InvalidConfig, "a config is a mapping, got list"),
        ("{", InvalidConfig, "line 1, column 2"),
        ('{"schema": "comfy-build/1"}', InvalidConfig, r"x\.json: name: Field required .*; definition: Field required"),
    ],
)
def test_a_file_that_is_not_a_spec_is_an_error_that_names_it(tmp_path: Path, document: str, error: type[Exception], message: str) -> None:
    (tmp_path / "x.json").write_text(document, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_spec(tmp_path / "x.json")


def test_a_spec_is_equal_in_json_and_yaml(tmp_path: Path) -> None:
    text = {"pipDependencies": "a==1\nb==2\n", "models": []}
    spec = spec_from_document({**SPEC, "definition": text, "description": "yes: no # 1"}, "x")
    for name in ("x.json", "comfy-build.yaml"):
        write_spec(spec, tmp_path / name)
        assert read_spec(tmp_path / name).to_document() == spec.to_document()
    assert "pipDependencies: |\n    a==1\n    b==2\n" in spec_text(spec, yaml=True)


def test_a_spec_is_written_with_a_known_suffix_only(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"'x\.toml' has no suffix of a version spec\. Available: '\.json', '\.yaml', '\.yml'\."):
        write_spec(spec_from_document(SPEC, "x"), tmp_path / "x.toml")


def test_folders_come_from_the_environment_the_working_folder_and_the_package() -> None:
    folders = version_folders({"YGGDRASILL_VERSIONS": "/a:/b"})
    assert folders[:3] == [Path("/a"), Path("/b"), Path("versions")]
    assert folders[3].is_absolute()


def test_the_shipped_examples_are_valid() -> None:
    examples = available_versions([version_folders({})[-1]])
    assert examples
    for version_id in examples:
        assert load_version(version_id, [version_folders({})[-1]]).version_id == version_id
