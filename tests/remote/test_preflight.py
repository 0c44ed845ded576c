"""Before a workflow is sent anywhere: what is missing, where, and what there is instead."""

from __future__ import annotations

from typing import Any

import pytest

from yggdrasill.errors import InvalidConfig, MissingFile, UnknownBlockType
from yggdrasill.remote.preflight import check_workflow

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
def test_an_endpoint_that_is_no_comfyui_is_said_to_be_none(facts: Any) -> None:
    with pytest.raises(InvalidConfig, match="endpoint 'cpu' is no ComfyUI"):
        check_workflow(loader("two.ckpt"), facts, "cpu")
