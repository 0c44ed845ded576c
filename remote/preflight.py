"""Checks before a workflow is sent to an endpoint: whether that is a ComfyUI and has the node classes and model files.

If this process is a ComfyUI too, the checks also compare both sides: signatures of node classes, and contents of model files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from yggdrasill.errors import CheckpointMismatch, InvalidConfig, InvalidStructure, MissingFile, UnknownBlockType, unknown_name
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.retry import Retry

__all__ = [
    "LocalComfy",
    "MissingItem",
    "check_at",
    "check_workflow",
    "class_signature",
    "gaps_of",
    "is_model_file",
    "missing_at",
    "same_path",
    "set_local_comfy",
    "signature_differences",
]

_MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx")
_OWN_PREFIX = "Yggdrasill"
Signature = dict[str, Any]


def is_model_file(name: str) -> bool:
    """Return whether a text is named like a file of weights."""
    return name.lower().endswith(_MODEL_FILES)


def same_path(name: str) -> str:
    """Return one spelling for a path written with ``\\`` or ``/``."""
    return name.replace("\\", "/")


class LocalComfy(Protocol):
    """Node classes and model files of the ComfyUI of this process. Must not be called on ComfyUI's main loop."""

    def node_hashes(self) -> Mapping[str, str]:
        """Return a hash of the signature of every node class, as in the capabilities."""
        ...

    def node_forms(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Return as `EndpointClient.nodes`."""
        ...

    def model_fingerprints(self, files: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """Return as `EndpointClient.model_fingerprints`."""
        ...


_local_comfy: LocalComfy | None = None


def set_local_comfy(local_comfy: LocalComfy | None) -> None:
    """Set the ComfyUI of this process that endpoints are compared with; None disables the comparison."""
    global _local_comfy  # noqa: PLW0603 - a process has one ComfyUI or none
    _local_comfy = local_comfy


async def check_at(prompt: Mapping[str, Any], client: EndpointClient, retry: Retry) -> None:
    """Check that an endpoint, whose capabilities were fetched, has what ``prompt`` names, equal to the ComfyUI of this process.

    Raises:
        InvalidConfig, UnknownBlockType, MissingFile: as `check_workflow`.
        InvalidStructure: the endpoint's node class differs.
        CheckpointMismatch: the endpoint's model file differs.
    """
    try:
        check_workflow(prompt, client.facts, client.name)
    except (InvalidConfig, UnknownBlockType):
        # The endpoint may have been updated since its capabilities were fetched.
        client.facts = await retry.persist(client.capabilities)
        check_workflow(prompt, client.facts, client.name)
    local_comfy = _local_comfy
    if local_comfy is not None:
        await _compare_classes(prompt, local_comfy, client, retry)
        await _compare_files(prompt, local_comfy, client, retry)


async def _compare_classes(prompt: Mapping[str, Any], local_comfy: LocalComfy, client: EndpointClient, retry: Retry) -> None:
    local_hashes = await asyncio.to_thread(local_comfy.node_hashes)
    remote_hashes = (client.facts or {}).get("comfy", {}).get("node_classes", {})
    used = sorted({str(node["class_type"]) for node in prompt.values()})
    others = [name for name in used if local_hashes.get(name) and remote_hashes.get(name) and local_hashes[name] != remote_hashes[name]]
    if not others:
        return
    forms = [
        (await asyncio.to_thread(local_comfy.node_forms, others))["nodes"],
        (await retry.persist(lambda: client.nodes(others)))["nodes"],
    ]
    found = {
        name: signature_differences(prompt, name, *(class_signature(side[name]) for side in forms))
        for name in others
        if all(name in side for side in forms)
    }
    found = {name: differences for name, differences in found.items() if differences}
    if found:
        listing = "; ".join(f"{name!r}: {', '.join(differences)}" for name, differences in found.items())
        raise InvalidStructure(
            f"endpoint {client.name!r} has different node classes than this ComfyUI ({listing}); install the same version of their node pack "
            "on both sides",
            endpoint=client.name,
            errors=[f"{name}: {item}" for name, differences in found.items() for item in differences],
            classes=sorted(found),
        )


async def _compare_files(prompt: Mapping[str, Any], local_comfy: LocalComfy, client: EndpointClient, retry: Retry) -> None:
    named = {name: node_id for node_id, name in _files_of(prompt)}
    local_prints = await asyncio.to_thread(local_comfy.model_fingerprints, list(named)) if named else {}
    unchecked = [name for name, prints in local_prints.items() if client.compared.get(name) != prints]
    if not unchecked:
        return
    remote_prints = await retry.persist(lambda: client.model_fingerprints(unchecked))
    for name in unchecked:
        other = {
            folder: (mark, remote_prints[name][folder])
            for folder, mark in local_prints[name].items()
            if remote_prints.get(name, {}).get(folder, mark) != mark
        }
        if other:
            listing = ", ".join(
                f"in {folder!r} {local[:8]} here and {remote[:8]} on the endpoint" for folder, (local, remote) in other.items()
            )
            raise CheckpointMismatch(
                f"node {named[name]!r} needs {name!r}, and endpoint {client.name!r} has another file of that name ({listing}); use the same file on both sides",
                endpoint=client.name,
                file=name,
                node_id=named[name],
            )
        client.compared[name] = dict(local_prints[name])


def check_workflow(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None, endpoint: str) -> None:
    """Check that the endpoint with the capabilities ``facts`` has what ``prompt`` names, as far as they are known.

    Raises:
        InvalidConfig: it is not a ComfyUI.
        UnknownBlockType: it lacks node classes.
        MissingFile: it lacks model files.
    """
    comfy = (facts or {}).get("comfy")
    if not isinstance(comfy, Mapping):
        raise InvalidConfig(
            f"endpoint {endpoint!r} is not a ComfyUI with this extension, which a ComfyUI workflow needs; place it on one",
            endpoint=endpoint,
        )
    classes = comfy.get("node_classes")
    if isinstance(classes, Mapping):
        wanted = {str(node["class_type"]) for node in prompt.values()}
        missing = sorted(name for name in wanted - set(classes) if not name.startswith(_OWN_PREFIX))
        if missing:
            hint = f"The workflow needs {', '.join(map(repr, missing))} at endpoint {endpoint!r}. Install the node pack that has it on the endpoint."
            error = unknown_name("node class", missing[0], classes, hint, UnknownBlockType)
            error.details.update(endpoint=endpoint, missing=missing)
            raise error
    models = comfy.get("models")
    if isinstance(models, Mapping):
        _check_models(prompt, {same_path(str(file)) for files in models.values() for file in files}, endpoint)


class MissingItem(NamedTuple):
    """An item that a node needs and an endpoint lacks: its ``kind`` (``node class`` or ``model file``) and its name."""

    node_id: str
    kind: str
    name: str


def missing_at(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None) -> list[MissingItem] | None:
    """Return what the endpoint with the capabilities ``facts`` lacks, as far as they are known; None if it is not a ComfyUI."""
    comfy = (facts or {}).get("comfy")
    if not isinstance(comfy, Mapping):
        return None
    found = []
    classes, models = comfy.get("node_classes"), comfy.get("models")
    if isinstance(classes, Mapping):
        used = ((node_id, str(node["class_type"])) for node_id, node in prompt.items())
        found += [
            MissingItem(node_id, "node class", name) for node_id, name in used if name not in classes and not name.startswith(_OWN_PREFIX)
        ]
    if isinstance(models, Mapping):
        available = {same_path(str(file)) for files in models.values() for file in files}
        found += [MissingItem(node_id, "model file", name) for node_id, name in _files_of(prompt) if same_path(name) not in available]
    return found


def gaps_of(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, list[str]] | None:
    """Return descriptions of what the endpoint with the capabilities ``facts`` lacks, by node; None if it is not a ComfyUI."""
    missing = missing_at(prompt, facts)
    if missing is None:
        return None
    gaps: dict[str, list[str]] = {}
    for node_id, kind, name in missing:
        gaps.setdefault(node_id, []).append(f"{kind} {name!r}")
    return gaps


def _check_models(prompt: Mapping[str, Any], available: set[str], endpoint: str) -> None:
    missing = [(node_id, name) for node_id, name in _files_of(prompt) if same_path(name) not in available]
    if missing:
        node_id, name = missing[0]
        suggestion = unknown_name("model file", name, available)
        raise MissingFile(
            f"node {node_id!r} needs {name!r}, which endpoint {endpoint!r} does not have: {suggestion.message} Copy the file to the endpoint.",
            endpoint=endpoint,
            missing=[name for _, name in missing],
        )


def _files_of(prompt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of model files among the constants of loader nodes; an output's file name is not one."""
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and is_model_file(value) and "Load" in node["class_type"] and "prefix" not in name:
                yield node_id, value


def class_signature(entry: Mapping[str, Any]) -> Signature:
    """Return ``{"required": {name: type}, "optional": {name: type}, "outputs": [type]}`` for an entry of ComfyUI's ``/object_info``.

    The options of a combo are ignored, because they are often a machine's files.
    """
    inputs = entry.get("input") or {}
    groups = {
        group: {
            str(name): "COMBO" if isinstance(item[0], (list, tuple)) else str(item[0]) for name, item in (inputs.get(group) or {}).items()
        }
        for group in ("required", "optional")
    }
    return {**groups, "outputs": [str(kind) for kind in entry.get("output") or ()]}


def signature_differences(prompt: Mapping[str, Any], class_type: str, local: Signature, remote: Signature) -> list[str]:
    """Return the differences that change the meaning of ``prompt`` on the endpoint; unused inputs and outputs are ignored."""
    nodes = {node_id: node for node_id, node in prompt.items() if node["class_type"] == class_type}
    found = [difference for node in nodes.values() for difference in _input_differences(node["inputs"], local, remote)]
    used = {value[1] for node in prompt.values() for value in node["inputs"].values() if is_link(value) and value[0] in nodes}
    for index in sorted(used):
        local_type, remote_type = (str(dict(enumerate(form["outputs"])).get(index, "missing")) for form in (local, remote))
        if local_type != remote_type:
            found.append(f"output {index} is {local_type} here and {remote_type} on the endpoint")
    return list(dict.fromkeys(found))


def _input_differences(inputs: Mapping[str, Any], local: Signature, remote: Signature) -> Iterator[str]:
    local_types, remote_types = ({**form["optional"], **form["required"]} for form in (local, remote))
    for name in inputs:
        # Names of growing inputs contain a dot and have no entry on either side.
        if name in local_types and local_types[name] != remote_types.get(name):
            yield f"input {name!r} is {local_types[name]} here and {remote_types.get(name, 'missing')} on the endpoint"
    for name, kind in remote["required"].items():
        if name not in inputs and name not in local_types:
            yield f"input {name!r} ({kind}) is required on the endpoint and missing here"
