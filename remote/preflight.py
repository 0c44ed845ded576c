"""Before a workflow is brought to an endpoint: whether that is a ComfyUI, and has the node classes and model files it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig, MissingFile, UnknownBlockType, unknown

__all__ = ["check_workflow", "is_model_file", "same_path"]

_MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx")
_OWN = "Yggdrasill"


def is_model_file(name: str) -> bool:
    """Whether a text is named like a file of weights."""
    return name.lower().endswith(_MODEL_FILES)


def same_path(name: str) -> str:
    """One spelling for a path written with ``\\`` or ``/``."""
    return name.replace("\\", "/")


def check_workflow(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None, endpoint: str) -> None:
    """Return if the endpoint that said ``facts`` (its capabilities) has what ``prompt`` names, as far as it says.

    Raises:
        InvalidConfig: it is no ComfyUI. UnknownBlockType: it lacks node classes. MissingFile: it lacks model files.
    """
    comfy = (facts or {}).get("comfy")
    if not isinstance(comfy, Mapping):
        raise InvalidConfig(
            f"endpoint {endpoint!r} is no ComfyUI with this extension, and a ComfyUI workflow runs nowhere else; place it on one",
            endpoint=endpoint,
        )
    classes = comfy.get("node_classes")
    if isinstance(classes, Mapping):
        wanted = {str(node["class_type"]) for node in prompt.values()}
        missing = sorted(name for name in wanted - set(classes) if not name.startswith(_OWN))
        if missing:
            hint = f"The workflow needs {', '.join(map(repr, missing))} at endpoint {endpoint!r}; install the node pack that has it there."
            error = unknown("node class", missing[0], classes, hint, UnknownBlockType)
            error.details.update(endpoint=endpoint, missing=missing)
            raise error
    models = comfy.get("models")
    if isinstance(models, Mapping):
        _check_models(prompt, {same_path(str(file)) for files in models.values() for file in files}, endpoint)


def _check_models(prompt: Mapping[str, Any], there: set[str], endpoint: str) -> None:
    missing = [(node_id, name) for node_id, name in _files_of(prompt) if same_path(name) not in there]
    if missing:
        node_id, name = missing[0]
        said = unknown("model file", name, there)
        raise MissingFile(
            f"node {node_id!r} needs {name!r}, which endpoint {endpoint!r} does not have: {said.message} Bring the file there.",
            endpoint=endpoint,
            missing=[name for _, name in missing],
        )


def _files_of(prompt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names of model files among the constants of nodes that load something; an output's file name is none."""
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and is_model_file(value) and "Load" in node["class_type"] and "prefix" not in name:
                yield node_id, value
