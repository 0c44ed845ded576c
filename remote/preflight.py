"""Checks before a workflow is sent to an endpoint: node classes and model files."""

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


def is_model_file(name: str) -> bool:
    """Whether a text is named like a file of weights."""
    return name.lower().endswith(_MODEL_FILES)


def same_path(name: str) -> str:
    """One spelling for a path written with ``\\`` or ``/``."""
    return name.replace("\\", "/")


class LocalComfy(Protocol):
    """What the ComfyUI of this process has, to be compared with what an endpoint has. Not to be called on ComfyUI's main loop."""

    def node_hashes(self) -> Mapping[str, str]:
        """A hash of the form of every node class, as in its own endpoint's capabilities."""
        ...

    def node_forms(self, names: Sequence[str]) -> Mapping[str, Any]:
        """As `EndpointClient.nodes`."""
        ...

    def model_fingerprints(self, files: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """As `EndpointClient.model_fingerprints`."""
        ...


_local_comfy: LocalComfy | None = None


def set_local_comfy(own: LocalComfy | None) -> None:
    """Compare endpoints with the ComfyUI of this process from now on; None: with nothing."""
    global _local_comfy  # noqa: PLW0603 - a process has one ComfyUI or none
    _local_comfy = own


async def check_at(prompt: Mapping[str, Any], client: EndpointClient, retry: Retry) -> None:
    """Return if an endpoint, whose capabilities were fetched, has what ``prompt`` names, and the same as the ComfyUI of this process.

    Raises:
        InvalidConfig, UnknownBlockType, MissingFile: as `check_workflow`. InvalidStructure: a node class there is another one.
        CheckpointMismatch: a model file there is another one.
    """
    try:
        check_workflow(prompt, client.facts, client.name)
    except (InvalidConfig, UnknownBlockType):
        # it may have got what it lacked since it was asked
        client.facts = await retry.persist(client.capabilities)
        check_workflow(prompt, client.facts, client.name)
    own = _local_comfy
    if own is not None:
        await _compare_classes(prompt, own, client, retry)
        await _compare_files(prompt, own, client, retry)


async def _compare_classes(prompt: Mapping[str, Any], own: LocalComfy, client: EndpointClient, retry: Retry) -> None:
    here = await asyncio.to_thread(own.node_hashes)
    there = (client.facts or {}).get("comfy", {}).get("node_classes", {})
    used = sorted({str(node["class_type"]) for node in prompt.values()})
    others = [name for name in used if here.get(name) and there.get(name) and here[name] != there[name]]
    if not others:
        return
    forms = [(await asyncio.to_thread(own.node_forms, others))["nodes"], (await retry.persist(lambda: client.nodes(others)))["nodes"]]
    found = {
        name: signature_differences(prompt, name, *(class_signature(side[name]) for side in forms))
        for name in others
        if all(name in side for side in forms)
    }
    found = {name: said for name, said in found.items() if said}
    if found:
        told = "; ".join(f"{name!r}: {', '.join(said)}" for name, said in found.items())
        raise InvalidStructure(
            f"endpoint {client.name!r} has other node classes than this ComfyUI ({told}); install the same version of the pack that has them "
            "on both sides",
            endpoint=client.name,
            errors=[f"{name}: {item}" for name, said in found.items() for item in said],
            classes=sorted(found),
        )


async def _compare_files(prompt: Mapping[str, Any], own: LocalComfy, client: EndpointClient, retry: Retry) -> None:
    named = {name: node_id for node_id, name in _files_of(prompt)}
    here = await asyncio.to_thread(own.model_fingerprints, list(named)) if named else {}
    asked = [name for name, prints in here.items() if client.compared.get(name) != prints]
    if not asked:
        return
    there = await retry.persist(lambda: client.model_fingerprints(asked))
    for name in asked:
        other = {
            folder: (mark, there[name][folder]) for folder, mark in here[name].items() if there.get(name, {}).get(folder, mark) != mark
        }
        if other:
            told = ", ".join(f"in {folder!r} {ours[:8]} here and {theirs[:8]} there" for folder, (ours, theirs) in other.items())
            raise CheckpointMismatch(
                f"node {named[name]!r} needs {name!r}, and endpoint {client.name!r} has another file of that name ({told}); bring the same file to both",
                endpoint=client.name,
                file=name,
                node_id=named[name],
            )
        client.compared[name] = dict(here[name])


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
        missing = sorted(name for name in wanted - set(classes) if not name.startswith(_OWN_PREFIX))
        if missing:
            hint = f"The workflow needs {', '.join(map(repr, missing))} at endpoint {endpoint!r}; install the node pack that has it there."
            error = unknown_name("node class", missing[0], classes, hint, UnknownBlockType)
            error.details.update(endpoint=endpoint, missing=missing)
            raise error
    models = comfy.get("models")
    if isinstance(models, Mapping):
        _check_models(prompt, {same_path(str(file)) for files in models.values() for file in files}, endpoint)


class MissingItem(NamedTuple):
    """Something that a node needs and an endpoint lacks: a ``kind`` (``node class`` or ``model file``) and its name."""

    node_id: str
    kind: str
    name: str


def missing_at(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None) -> list[MissingItem] | None:
    """What the endpoint that said ``facts`` lacks of what ``prompt`` names, as far as it says; None for no ComfyUI."""
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
        there = {same_path(str(file)) for files in models.values() for file in files}
        found += [MissingItem(node_id, "model file", name) for node_id, name in _files_of(prompt) if same_path(name) not in there]
    return found


def gaps_of(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, list[str]] | None:
    """What the endpoint that said ``facts`` lacks for each node of ``prompt``, in words, as far as it says; None for no ComfyUI."""
    missing = missing_at(prompt, facts)
    if missing is None:
        return None
    gaps: dict[str, list[str]] = {}
    for node_id, kind, name in missing:
        gaps.setdefault(node_id, []).append(f"{kind} {name!r}")
    return gaps


def _check_models(prompt: Mapping[str, Any], there: set[str], endpoint: str) -> None:
    missing = [(node_id, name) for node_id, name in _files_of(prompt) if same_path(name) not in there]
    if missing:
        node_id, name = missing[0]
        said = unknown_name("model file", name, there)
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


Signature = dict[str, Any]


def class_signature(entry: Mapping[str, Any]) -> Signature:
    """``{"required": {name: type}, "optional": {name: type}, "outputs": [type]}`` of an entry of ComfyUI's ``/object_info``.

    The choices of a list are often a machine's files, so they do not count.
    """
    given = entry.get("input") or {}
    groups = {
        group: {
            str(name): "COMBO" if isinstance(item[0], (list, tuple)) else str(item[0]) for name, item in (given.get(group) or {}).items()
        }
        for group in ("required", "optional")
    }
    return {**groups, "outputs": [str(kind) for kind in entry.get("output") or ()]}


def signature_differences(prompt: Mapping[str, Any], class_type: str, here: Signature, there: Signature) -> list[str]:
    """What makes ``prompt`` mean something else over there; nothing it does not use counts."""
    nodes = {node_id: node for node_id, node in prompt.items() if node["class_type"] == class_type}
    found = [said for node in nodes.values() for said in _input_differences(node["inputs"], here, there)]
    used = {value[1] for node in prompt.values() for value in node["inputs"].values() if is_link(value) and value[0] in nodes}
    for index in sorted(used):
        ours, theirs = (str(dict(enumerate(form["outputs"])).get(index, "missing")) for form in (here, there))
        if ours != theirs:
            found.append(f"output {index} is {ours} here and {theirs} there")
    return list(dict.fromkeys(found))


def _input_differences(given: Mapping[str, Any], here: Signature, there: Signature) -> Iterator[str]:
    ours, theirs = ({**form["optional"], **form["required"]} for form in (here, there))
    for name in given:
        # names of inputs that grow have a dot, and no entry of their own on either side
        if name in ours and ours[name] != theirs.get(name):
            yield f"input {name!r} is {ours[name]} here and {theirs.get(name, 'missing')} there"
    for name, kind in there["required"].items():
        if name not in given and name not in ours:
            yield f"input {name!r} ({kind}) is needed there and missing here"
