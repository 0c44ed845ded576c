"""Which model files a prompt names, and the rule of the check before a run: missing there is what is found here and not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yggdrasill.remote.model_names import embedding_words, files_of, folders_of_list, has_model, same_path, spelled_at
from yggdrasill.remote.preflight import MissingItem, choice_gaps, file_lists, missing_at, not_offered, set_local_comfy

KINDS = ("checkpoints", "loras", "embeddings", "vae")
STEMS = ("ink", "wash", "bad hands", "a,b", "sub/ink", "sub/deep/wash", "été")
SUFFIXES = (".safetensors", ".pt", ".ckpt")

names = st.builds(lambda stem, suffix: stem + suffix, st.sampled_from(STEMS), st.sampled_from(SUFFIXES))
folders = st.dictionaries(st.sampled_from(KINDS), st.lists(names, unique=True, max_size=5), max_size=4)


class Local:
    """A ComfyUI with these model files."""

    def __init__(self, models: Mapping[str, Sequence[str]]) -> None:
        self.models = models

    def model_files(self) -> Mapping[str, Sequence[str]]:
        return self.models

    def node_hashes(self) -> Mapping[str, str]:
        return {}

    def node_forms(self, names: Sequence[str]) -> Mapping[str, Any]:
        return {"nodes": {}}

    def model_fingerprints(self, files: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        return {}


@pytest.fixture(autouse=True)
def no_comfyui() -> Iterator[None]:
    yield
    set_local_comfy(None)


def windows(models: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {kind: [name.replace("/", "\\") for name in files] for kind, files in models.items()}


def missing(inputs: dict[str, Any], here: Mapping[str, Sequence[str]], there: Mapping[str, Sequence[str]]) -> list[MissingItem]:
    set_local_comfy(Local(here))
    found = missing_at({"1": {"class_type": "Any", "inputs": inputs}}, {"comfy": {"node_classes": {"Any": ""}, "models": there}})
    assert found is not None
    return found


def loads(word: str, files: Sequence[str]) -> set[str]:
    """Return the files that ComfyUI may load for an embedding, whose folder it searches with all subfolders."""
    for wanted in (word, *(word + suffix for suffix in (".safetensors", ".pt", ".bin"))):
        found = {file for file in files if file == wanted or file.endswith(f"/{wanted}")}
        if found:
            return found
    return set()


@given(
    kind=st.sampled_from(KINDS),
    name=names,
    here=folders,
    there=folders,
    as_windows=st.booleans(),
    wrap=st.sampled_from(("", "dict", "list")),
)
def test_a_value_is_missing_if_and_only_if_the_file_is_here_and_not_there(
    kind: str, name: str, here: dict[str, list[str]], there: dict[str, list[str]], as_windows: bool, wrap: str
) -> None:
    written = name.replace("/", "\\") if as_windows else name
    value: Any = {"dict": {"on": True, "lora": written}, "list": [[written, 1.0]], "": written}[wrap]
    kinds = [kind for kind, files in here.items() if name in files]
    found = missing({"lora": value}, here, windows(there))
    assert [item.name for item in found] == ([written] if kinds and not any(name in there.get(kind, ()) for kind in kinds) else [])


@given(word=st.sampled_from(("ink", "wash", "a,b", "sub/ink", "deep/wash", "ink.pt", "été", "none")), here=folders, there=folders)
def test_an_embedding_is_missing_if_and_only_if_comfyui_finds_it_here_and_not_there(
    word: str, here: dict[str, list[str]], there: dict[str, list[str]]
) -> None:
    found = missing({"text": f"a tree, (embedding:{word}:1.2)"}, here, there)
    local, remote = (loads(word, models.get("embeddings", ())) for models in (here, there))
    assert bool(found) == (bool(local) and not remote)
    assert {item.name for item in found} <= local


@given(text=st.text(max_size=60), here=folders, there=folders)
def test_free_text_never_raises_and_names_only_files_of_this_comfyui(
    text: str, here: dict[str, list[str]], there: dict[str, list[str]]
) -> None:
    known = {name for files in here.values() for name in files}
    for item in missing({"text": text, "words": f"embedding:{text} <lora:{text}:1>"}, here, there):
        assert same_path(item.name) in known


@given(here=folders, there=folders, text=st.text(alphabet="embdingk:() \\,<>[1.", max_size=40))
def test_what_is_here_is_never_missing_at_an_endpoint_with_the_same_files(
    here: dict[str, list[str]], there: dict[str, list[str]], text: str
) -> None:
    values = [name for files in here.values() for name in files]
    inputs = {"text": f"{text} embedding:ink", "lora": values, "words": " ".join(f"<lora:{name}:1>" for name in values)}
    assert missing(inputs, here, {**there, **here}) == []
    assert missing(inputs, here, windows({**there, **here})) == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("embedding:bad", ["bad"]),
        ("a embedding:bad, embedding:worse", ["bad,", "worse"]),
        ("a,embedding:bad", []),
        ("an_embedding:bad", []),
        ("(embedding:bad:1.2)", ["bad"]),
        ("((embedding:bad))", ["bad"]),
        ("(a tree embedding:bad:0.5), b", ["bad"]),
        ("embedding:bad:1.2", ["bad:1.2"]),
        ("embedding:bad<lora:x:1>", ["bad"]),
        ("embedding:bad[x]", ["bad"]),
        ("\\(embedding:bad\\)", []),
        ("a \nembedding:sub\\bad\nb", ["sub\\bad"]),
        ("embedding: bad", []),
        ("(" * 5000 + "embedding:bad", []),
    ],
)
def test_words_are_read_as_comfyui_reads_a_prompt(text: str, words: list[str]) -> None:
    assert list(embedding_words(text)) == words


def test_a_complete_name_has_precedence_over_the_end_of_another() -> None:
    here = {"loras": ["sub/ink.safetensors", "ink.safetensors"]}
    (file,) = files_of({"1": {"class_type": "Any", "inputs": {"text": "<lora:ink:1>"}}}, here)
    assert file.name == "ink.safetensors"
    assert spelled_at(file, {"loras": ["sub\\ink.safetensors"]}) == "sub\\ink.safetensors"
    assert spelled_at(file, {"checkpoints": ["ink.safetensors"]}) is None


def test_kinds_of_folders_under_former_or_other_names() -> None:
    prompt = {"1": {"class_type": "Any", "inputs": {"name": "t5.safetensors", "yolo": "face.pt"}}}
    here = {"clip": ["t5.safetensors"], "ultralytics_bbox": ["face.pt"]}
    text, face = files_of(prompt, here)
    assert spelled_at(text, {"text_encoders": ["t5.safetensors"]}) == "t5.safetensors"
    assert spelled_at(face, {"ultralytics": ["face.pt"]}) == "face.pt"
    assert has_model(here, "t5.safetensors", "text_encoders")
    assert not has_model(here, "t5.safetensors", "loras")


def entry(*options: str, **more: Any) -> dict[str, Any]:
    return {"input": {"required": {"name": [list(options), more]}}}


@given(options=st.lists(names, unique=True, max_size=4), value=names, known=st.lists(names, unique=True, max_size=4), here=folders)
def test_the_endpoint_s_own_list_decides_on_a_choice(options: list[str], value: str, known: list[str], here: dict[str, list[str]]) -> None:
    set_local_comfy(Local({**here, "loras": [*known, value]}))
    prompt = {"1": {"class_type": "Any", "inputs": {"name": value.replace("/", "\\")}}}
    entries = {"Any": entry(*options)}
    found = missing_at(prompt, {"comfy": {"node_classes": {"Any": ""}, "models": {"checkpoints": known}}}) or []
    found = [*not_offered(found, prompt, entries), *choice_gaps(prompt, entries, lambda _, name: False)]
    assert bool(found) == (value not in options)


@pytest.mark.parametrize(
    "local, remote, lists",
    [
        (entry("a.ckpt"), entry("b.ckpt"), {"name": ["b.ckpt"]}),
        (entry(), entry("b.ckpt"), {"name": ["b.ckpt"]}),
        (entry("a.ckpt"), entry(), {"name": []}),
        (entry("a.ckpt"), entry("a.ckpt"), {}),
        (entry("euler"), entry("euler", "heun"), {}),
        (entry("a.ckpt", image_upload=True), entry("b.ckpt", image_upload=True), {}),
        (None, entry("b.ckpt"), {"name": ["b.ckpt"]}),
        (entry("a.ckpt"), None, {}),
        (
            {"input": {"optional": {"lora": ["COMBO", {"options": ["None"]}]}}},
            {"input": {"optional": {"lora": ["COMBO", {"options": ["None", "x.pt"]}]}}},
            {"lora": ["None", "x.pt"]},
        ),
    ],
    ids=["other files", "none here", "none there", "equal", "not files", "uploads", "class not here", "class not there", "newer form"],
)
def test_lists_of_model_files_that_differ(local: Any, remote: Any, lists: dict[str, list[str]]) -> None:
    assert file_lists(local, remote) == lists


def test_the_folder_of_a_list_is_the_smallest_that_has_all_its_files() -> None:
    models = {"all": ["a.pt", "b.pt", "c.pt"], "some": ["a.pt", "b.pt"], "other": ["c.pt"]}
    assert folders_of_list(["None", "a.pt", "b.pt"], models) == ["some", "all"]
    assert folders_of_list(["None"], models) == []
