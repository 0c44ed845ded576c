"""Checks before a workflow is sent: what is missing, where, and what is available instead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from samples.endpoints import EndpointProcess
from yggdrasill.errors import CheckpointMismatch, InvalidConfig, InvalidStructure, MissingFile, UnknownBlockType
from yggdrasill.remote import RemoteWorkflow
from yggdrasill.remote.preflight import (
    MissingItem,
    check_workflow,
    choice_gaps,
    class_signature,
    gaps_of,
    missing_at,
    offered_only_there,
    set_local_comfy,
    signature_differences,
)

#: As in `samples.fake_comfyui`, which only an endpoint process may load.
FORM: dict[str, Any] = {"input": {"required": {"value": ["*", {}]}, "optional": {"times": ["INT", {}]}}, "output": ["*"]}
FILE, FINGERPRINT = "tiny.ckpt", "aa11"
FACTS: dict[str, Any] = {
    "comfy": {
        "version": "0.33.0",
        "node_classes": {"CheckpointLoaderSimple": "1", "SaveImage": "2", "KSampler": "3"},
        "models": {"checkpoints": ["sd/one.safetensors", "two.ckpt"]},
    }
}


def loader(name: str) -> dict[str, Any]:
    return {"4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}}


@pytest.mark.parametrize("name", ["sd/one.safetensors", "sd\\one.safetensors", "two.ckpt"])
def test_files_that_are_there_pass_however_their_path_is_written(name: str) -> None:
    check_workflow(loader(name), FACTS, "gpu")


def test_a_missing_model_is_named_with_its_node_and_what_is_there() -> None:
    with pytest.raises(
        MissingFile, match=r"node '4' needs 'sd/onne.safetensors', which endpoint 'gpu' does not have.*Did you mean 'sd/one.safetensors'"
    ) as caught:
        check_workflow(loader("sd/onne.safetensors"), FACTS, "gpu")
    assert caught.value.details["missing"] == ["sd/onne.safetensors"]


def test_missing_node_classes_are_all_named() -> None:
    prompt = {
        "1": {"class_type": "KSamplerr", "inputs": {}},
        "2": {"class_type": "Foo", "inputs": {}},
        "3": {"class_type": "YggdrasillGraphInput", "inputs": {}},
    }
    with pytest.raises(UnknownBlockType, match=r"'Foo', 'KSamplerr' at endpoint 'gpu'") as caught:
        check_workflow(prompt, FACTS, "gpu")
    assert caught.value.details["missing"] == ["Foo", "KSamplerr"]


def test_a_file_that_a_node_writes_need_not_be_there() -> None:
    check_workflow({"1": {"class_type": "SaveImage", "inputs": {"filename": "out.safetensors"}}}, FACTS, "gpu")


@pytest.mark.parametrize("facts", [None, {}, {"comfy": None}])
def test_an_endpoint_that_is_not_a_comfyui_is_refused(facts: Any) -> None:
    with pytest.raises(InvalidConfig, match="endpoint 'cpu' is not a ComfyUI"):
        check_workflow(loader("two.ckpt"), facts, "cpu")


NODE: dict[str, Any] = {
    "input": {"required": {"x": ["INT", {}], "mode": [["a", "b"]]}, "optional": {"y": ["FLOAT"]}},
    "output": ["IMAGE", "MASK"],
}


def form(**changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(NODE)
    for key, value in changes.items():
        target = changed["input"]["required"] if key in ("x", "mode", "new") else changed["input"]["optional"]
        if key == "output":
            changed["output"] = value
        elif value is None:
            del target[key]
        else:
            target[key] = value
    return class_signature(changed)


@pytest.mark.parametrize(
    "there, said",
    [
        (form(), []),
        (form(mode=[["c"]]), []),
        (form(mode=["COMBO", {"options": ["a"]}]), []),
        (form(y=["INT"]), []),
        (form(more=["INT"]), []),
        (form(output=["IMAGE"]), []),
        (form(x=["FLOAT"]), ["input 'x' is INT here and FLOAT on the endpoint"]),
        (form(x=None), ["input 'x' is INT here and missing on the endpoint"]),
        (form(new=["MASK"]), ["input 'new' (MASK) is required on the endpoint and missing here"]),
        (form(output=["MASK", "IMAGE"]), ["output 0 is IMAGE here and MASK on the endpoint"]),
        (form(output=[]), ["output 0 is IMAGE here and missing on the endpoint"]),
    ],
    ids=["same", "other files", "combo", "unused input", "more inputs", "unused output", "type", "missing", "new", "outputs", "no output"],
)
def test_only_what_a_prompt_uses_of_a_class_makes_a_difference(there: dict[str, Any], said: list[str]) -> None:
    prompt = {
        "1": {"class_type": "Mix", "inputs": {"x": 1, "mode": "a", "ports.p0": ["2", 0]}},
        "2": {"class_type": "Other", "inputs": {"z": ["1", 0], "w": 5}},
    }
    assert signature_differences(prompt, "Mix", form(), there) == said


class Own:
    """A ComfyUI with the sample's class and file, or different ones under these names."""

    def __init__(
        self, form: dict[str, Any] | None = None, mark: str = FINGERPRINT, models: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.form, self.mark = form or FORM, mark
        self.models = {"checkpoints": [FILE]} if models is None else models

    def model_files(self) -> Mapping[str, Sequence[str]]:
        return self.models

    def node_hashes(self) -> Mapping[str, str]:
        return {"FakeDouble": "here"}

    def node_forms(self, names: Sequence[str]) -> Mapping[str, Any]:
        return {"nodes": dict.fromkeys(names, self.form)}

    def model_fingerprints(self, files: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        return {name: {"checkpoints": self.mark} for name in files}


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    process = EndpointProcess("gpu", tmp_path_factory.mktemp("gpu"), plugins=["samples.served_blocks", "samples.fake_comfyui"]).start()
    yield process
    process.stop()


@pytest.fixture
def compared() -> Iterator[Callable[[Own], None]]:
    yield set_local_comfy
    set_local_comfy(None)


PROMPT: dict[str, Any] = {
    "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "x"}},
    "2": {"class_type": "FakeDouble", "inputs": {"value": ["1", 0]}},
    "3": {"class_type": "FakeLoader", "inputs": {"ckpt_name": FILE}},
    "4": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "y", "value": ["2", 0]}},
}


def test_a_comfyui_that_has_the_same_is_content(gpu: EndpointProcess, compared: Callable[[Own], None]) -> None:
    compared(Own())
    assert RemoteWorkflow(PROMPT, endpoint=gpu.endpoint()).run({"x": 3}) == {"y": 6}


def test_a_different_class_of_one_name_is_found_by_its_ports(gpu: EndpointProcess, compared: Callable[[Own], None]) -> None:
    compared(Own({"input": {"required": {"value": ["IMAGE", {}]}}, "output": ["IMAGE"]}))
    with pytest.raises(
        InvalidStructure, match=r"endpoint 'gpu'.*'FakeDouble': input 'value' is IMAGE here and \* on the endpoint, output 0 is"
    ):
        RemoteWorkflow(PROMPT, endpoint=gpu.endpoint()).run({"x": 3})


def test_a_different_file_of_one_name_is_found(gpu: EndpointProcess, compared: Callable[[Own], None]) -> None:
    compared(Own(mark="bb22"))
    with pytest.raises(
        CheckpointMismatch, match=r"node '3' needs 'tiny.ckpt'.*endpoint 'gpu' has another.*bb22 here and aa11 on the endpoint"
    ) as caught:
        RemoteWorkflow(PROMPT, endpoint=gpu.endpoint()).run({"x": 3})
    assert caught.value.details["node_id"] == "3"


def test_capabilities_are_fetched_again_before_a_refusal(gpu: EndpointProcess) -> None:
    client = gpu.client()
    client.facts = {"comfy": {"node_classes": {}}}
    assert RemoteWorkflow(PROMPT, endpoint=client).run({"x": 3}) == {"y": 6}


# -- what counts as a model file where this process is a ComfyUI -----------------------------------------------------------

MODELS = {
    "checkpoints": ["sd/one.safetensors"],
    "loras": ["ink.safetensors", "sub/wash.safetensors"],
    "embeddings": ["bad.pt", "sub/worse.safetensors"],
}


def there(**models: list[str]) -> dict[str, Any]:
    return {"comfy": {"node_classes": {"Any": "1", "TextEncode": "2", "DownloadAndLoad": "3"}, "models": models}}


@pytest.mark.parametrize(
    "inputs, missing",
    [
        ({"lora_1": {"on": True, "lora": "ink.safetensors", "strength": 1.0}}, ["ink.safetensors"]),
        ({"stack": [["sub/wash.safetensors", 1.0]]}, ["sub/wash.safetensors"]),
        ({"name": "sub\\\\wash.safetensors".replace("\\\\", "\\")}, ["sub\\wash.safetensors"]),
        ({"text": "a tree, (embedding:bad:1.2), embedding:sub/worse"}, ["bad.pt", "sub/worse.safetensors"]),
        ({"text": "a tree <lora:wash:0.8> <lora:ink.safetensors:1>"}, ["sub/wash.safetensors", "ink.safetensors"]),
        ({"text": "embedding:nowhere <lora:nowhere:1> bad"}, []),
        ({"model": "depth_anything.safetensors"}, []),
        ({"filename_prefix": "ink.safetensors"}, []),
    ],
    ids=[
        "a widget with fields",
        "a list",
        "a path of Windows",
        "embeddings",
        "loras in a text",
        "unknown words",
        "not of a folder of models",
        "a prefix",
    ],
)
def test_a_text_is_a_model_if_this_comfyui_has_it(inputs: dict[str, Any], missing: list[str], compared: Callable[[Own], None]) -> None:
    compared(Own(models=MODELS))
    prompt = {"5": {"class_type": "Any", "inputs": inputs}}
    found = missing_at(prompt, there(loras=["other.safetensors"]))
    assert [item[:3] for item in found or ()] == [("5", "model file", name) for name in missing]
    assert missing_at(prompt, there(**MODELS)) == []


def test_a_loader_of_a_pack_s_own_folder_is_not_refused(compared: Callable[[Own], None]) -> None:
    prompt = {"1": {"class_type": "DownloadAndLoad", "inputs": {"model": "depth_anything_v2.safetensors"}}}
    assert gaps_of(prompt, there(checkpoints=["x.safetensors"])) != {}
    compared(Own(models=MODELS))
    assert gaps_of(prompt, there(checkpoints=["x.safetensors"])) == {}


def test_outputs_that_list_the_files_of_a_machine_are_equal() -> None:
    local, remote = (class_signature({"input": {}, "output": [[name], "INT"]}) for name in ("a.ckpt", "b.ckpt"))
    assert local == remote
    assert local["outputs"] == ["COMBO", "INT"]


def test_a_choice_that_the_endpoint_does_not_offer_is_missing() -> None:
    entry = {
        "input": {
            "required": {"folder": [["a", "sub/b"], {}], "mode": ["COMBO", {"options": ["x"]}], "free": ["STRING", {}]},
            "optional": {"far": ["COMBO", {"remote": {"route": "/x"}}], "own": [["q"], {}]},
        }
    }
    inputs = {"folder": "c", "mode": "y.safetensors", "free": "c", "far": "c", "own": "c", "extra": "c"}
    prompt = {"3": {"class_type": "Pick", "inputs": inputs}, "4": {"class_type": "Other", "inputs": {"folder": "c"}}}
    found = choice_gaps(prompt, {"Pick": entry, "Other": None}, lambda _, name: name == "own")
    assert found == [
        MissingItem("3", "choice", "folder: c", input="folder"),
        MissingItem("3", "model file", "y.safetensors", input="mode"),
    ]
    fine = {"3": {"class_type": "Pick", "inputs": {"folder": "sub\\b", "mode": ["4", 0]}}}
    assert choice_gaps(fine, {"Pick": entry}, lambda _, name: False) == []


def test_choices_that_only_the_endpoint_offers_are_found() -> None:
    def entry(*names: str) -> dict[str, Any]:
        return {"input": {"required": {"name": [list(names), {}], "path": ["STRING", {}]}}}

    def node(name: Any) -> dict[str, Any]:
        return {"class_type": "Load", "inputs": {"name": name, "path": "nowhere"}}

    assert offered_only_there(node("b"), entry("a"), entry("a", "b")) == {"name"}
    assert offered_only_there(node("a"), entry("a"), entry("a", "b")) == set()
    assert offered_only_there(node("c"), entry("a"), entry("a", "b")) == set()
    assert offered_only_there(node(["1", 0]), entry("a"), entry("a", "b")) == set()
    assert offered_only_there(node("b"), None, None) == set()
