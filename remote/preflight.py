"""Checks before a workflow is sent to an endpoint: whether that is a ComfyUI and has the node classes and model files.

If this process is a ComfyUI too, a text is a model file if that ComfyUI has it in a folder of models, and the checks also compare both
sides: signatures of node classes, and contents of model files. Otherwise only files that loaders name are checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from yggdrasill.errors import CheckpointMismatch, InvalidConfig, InvalidStructure, MissingFile, UnknownBlockType, unknown_name
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.model_names import ModelFolders, NamedFile, files_of, folders_of_list, is_model_file, same_path, spelled_at
from yggdrasill.remote.retry import Retry

__all__ = [
    "EMPTY_FILE",
    "DifferentFile",
    "LocalComfy",
    "MissingItem",
    "by_node",
    "check_at",
    "check_workflow",
    "choice_gaps",
    "choices_of",
    "class_signature",
    "different_models",
    "file_lists",
    "gaps_of",
    "missing_at",
    "models_of",
    "not_offered",
    "offered_only_there",
    "set_local_comfy",
    "signature_differences",
]

_OWN_PREFIX = "Yggdrasill"
Signature = dict[str, Any]
EMPTY_FILE = "71e0a99173564931c0b8acc52d2685a8e39c64dc52e3d02390fdac2a12b155cb"
"""The fingerprint of a file of 0 bytes."""


class LocalComfy(Protocol):
    """Node classes and model files of the ComfyUI of this process. Only `model_files` may be called on ComfyUI's main loop."""

    def model_files(self) -> ModelFolders:
        """Return the model files in each folder of models, as ComfyUI spells them."""
        ...

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


async def check_at(prompt: Mapping[str, Any], client: EndpointClient, retry: Retry, *, compare_models: bool = True) -> None:
    """Check that an endpoint, whose capabilities were fetched, has what ``prompt`` names, equal to the ComfyUI of this process.

    Without ``compare_models`` it may have other model files under the same names.

    Raises:
        InvalidConfig, UnknownBlockType, MissingFile: as `check_workflow`.
        InvalidStructure: the endpoint's node class differs.
        CheckpointMismatch: the endpoint's model file differs.
    """
    try:
        check_workflow(prompt, client.facts, client.name)
    except (InvalidConfig, UnknownBlockType, MissingFile):
        # The endpoint may have been updated since its capabilities were fetched.
        client.facts = await retry.persist(lambda: client.capabilities(fresh=True))
        check_workflow(prompt, client.facts, client.name)
    local_comfy = _local_comfy
    if local_comfy is not None:
        local_hashes, local_files = await asyncio.to_thread(lambda: (local_comfy.node_hashes(), local_comfy.model_files()))
        await _compare_classes(prompt, local_comfy, local_hashes, client, retry)
        different = await _different_models(prompt, local_comfy, local_files, client, retry) if compare_models else []
        if different:
            raise _mismatch(different, client.name)


async def _compare_classes(
    prompt: Mapping[str, Any], local_comfy: LocalComfy, local_hashes: Mapping[str, str], client: EndpointClient, retry: Retry
) -> None:
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


class DifferentFile(NamedTuple):
    """A model file that a node names and that has other bytes on an endpoint; ``local`` and ``remote`` are its fingerprints."""

    node_id: str
    name: str
    folder: str
    local: str
    remote: str


async def different_models(prompt: Mapping[str, Any], client: EndpointClient, retry: Retry) -> list[DifferentFile]:
    """Return the model files of ``prompt`` that differ between the ComfyUI of this process and an endpoint, whose capabilities were fetched.

    An empty file of this ComfyUI differs from none: it is not a model.
    """
    local_comfy = _local_comfy
    if local_comfy is None:
        return []
    return await _different_models(prompt, local_comfy, await asyncio.to_thread(local_comfy.model_files), client, retry)


async def _different_models(
    prompt: Mapping[str, Any], local_comfy: LocalComfy, local_files: ModelFolders, client: EndpointClient, retry: Retry
) -> list[DifferentFile]:
    models = models_of(client.facts)
    named = {file.name: file for file in files_of(prompt, local_files)}
    local_prints = await asyncio.to_thread(local_comfy.model_fingerprints, list(named)) if named else {}
    spelled = {name: spelled_at(named[name], models) or name for name in local_prints}
    unchecked = [name for name, prints in local_prints.items() if client.compared.get(name) != prints]
    if not unchecked:
        return []
    remote_prints = await retry.persist(lambda: client.model_fingerprints([spelled[name] for name in unchecked]))
    found = []
    for name in unchecked:
        local, remote = local_prints[name], remote_prints.get(spelled[name], {})
        others = [
            DifferentFile(named[name].node_id, name, folder, mark, there)
            for folder, mark in local.items()
            if mark != EMPTY_FILE and folder in named[name].folders and (there := remote.get(folder, mark)) != mark
        ]
        if len(local) > 1 and others:
            used = await _folder_of_input(prompt, named[name], local_comfy)
            others = [each for each in others if used is None or each.folder == used]
        if others:
            found.append(others[0])
        else:
            client.compared[name] = dict(local)
    return found


async def _folder_of_input(prompt: Mapping[str, Any], file: NamedFile, local_comfy: LocalComfy) -> str | None:
    """Return the kind of folder whose files are the options of the input that names a file, or None if its options do not tell."""
    class_type = str(prompt[file.node_id]["class_type"])
    entry = (await asyncio.to_thread(local_comfy.node_forms, [class_type]))["nodes"].get(class_type)
    options = _options_of(_specs_of(entry).get(file.input)) or ()
    folders = [kind for kind in folders_of_list(options, local_comfy.model_files()) if kind in file.folders]
    return folders[0] if folders else None


def _mismatch(different: Sequence[DifferentFile], endpoint: str) -> CheckpointMismatch:
    first = different[0]
    listing = ", ".join(
        f"{each.name!r} in {each.folder!r} is {each.local[:8]} here and {each.remote[:8]} on the endpoint" for each in different
    )
    return CheckpointMismatch(
        f"node {first.node_id!r} needs {first.name!r}, and endpoint {endpoint!r} has another file of that name ({listing}). Choose the "
        "endpoint's file in Preflight or with 'models: theirs', or use the same file on both sides.",
        endpoint=endpoint,
        file=first.name,
        files=[each.name for each in different],
        node_id=first.node_id,
    )


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
    if isinstance(comfy.get("models"), Mapping):
        _check_models(prompt, models_of(facts), endpoint)


class MissingItem(NamedTuple):
    """An item that a node needs and an endpoint lacks: its ``kind`` (``node class``, ``model file`` or ``choice``) and its name.

    ``folder`` is the kind of folder of a model file, if known, and ``input`` the input that names it.
    """

    node_id: str
    kind: str
    name: str
    folder: str | None = None
    input: str | None = None


def missing_at(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None) -> list[MissingItem] | None:
    """Return what the endpoint with the capabilities ``facts`` lacks, as far as they are known; None if it is not a ComfyUI."""
    comfy = (facts or {}).get("comfy")
    if not isinstance(comfy, Mapping):
        return None
    found = []
    classes = comfy.get("node_classes")
    if isinstance(classes, Mapping):
        used = ((node_id, str(node["class_type"])) for node_id, node in prompt.items())
        found += [
            MissingItem(node_id, "node class", name) for node_id, name in used if name not in classes and not name.startswith(_OWN_PREFIX)
        ]
    if isinstance(comfy.get("models"), Mapping):
        models = models_of(facts)
        found += [
            MissingItem(file.node_id, "model file", file.name, next(iter(file.folders), None), file.input)
            for file in files_of(prompt, _local_models())
            if spelled_at(file, models) is None
        ]
    return found


def gaps_of(prompt: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, list[str]] | None:
    """Return descriptions of what the endpoint with the capabilities ``facts`` lacks, by node; None if it is not a ComfyUI."""
    missing = missing_at(prompt, facts)
    return None if missing is None else by_node(missing)


def by_node(missing: Iterable[MissingItem]) -> dict[str, list[str]]:
    """Return descriptions of missing items by node."""
    gaps: dict[str, list[str]] = {}
    for item in missing:
        gaps.setdefault(item.node_id, []).append(f"{item.kind} {item.name!r}")
    return gaps


def choice_gaps(
    prompt: Mapping[str, Any], entries: Mapping[str, Any], unchecked: Callable[[str, str], bool], models: ModelFolders | None = None
) -> list[MissingItem]:
    """Return the choices of ``prompt`` that are not among the options of the endpoint, whose /object_info entries are ``entries``.

    ``unchecked(class_type, input)`` returns whether the class validates an input itself, so that ComfyUI does not compare it with the options.
    The endpoint's ``models`` show which kind of folder a list has.
    """
    found = []
    for node_id, node in prompt.items():
        class_type = str(node["class_type"])
        specs = _specs_of(entries.get(class_type))
        for name, value in node["inputs"].items():
            options = choices_of(specs.get(name))
            if options is None or isinstance(value, (dict, list)) or _is_option(value, options) or unchecked(class_type, name):
                continue
            model = isinstance(value, str) and is_model_file(value)
            folder = next(iter(folders_of_list(options, models or {})), None) if model else None
            item = (
                MissingItem(node_id, "model file", value, folder, name)
                if model
                else MissingItem(node_id, "choice", f"{name}: {value}", None, name)
            )
            found.append(item)
    return found


def not_offered(missing: Iterable[MissingItem], prompt: Mapping[str, Any], entries: Mapping[str, Any]) -> list[MissingItem]:
    """Return ``missing`` without the files that the endpoint offers in the list of their input, by its /object_info entries."""
    found = []
    for item in missing:
        node = prompt[item.node_id]
        options = choices_of(_specs_of(entries.get(str(node["class_type"]))).get(item.input)) if item.input is not None else None
        if options is None or not _is_option(node["inputs"].get(item.input), options):
            found.append(item)
    return found


def offered_only_there(node: Mapping[str, Any], local: Mapping[str, Any] | None, remote: Mapping[str, Any] | None) -> set[str]:
    """Return the inputs of a node whose choice an endpoint offers and this ComfyUI does not, by their /object_info entries."""
    here, there = _specs_of(local), _specs_of(remote)
    found = set()
    for name, value in node["inputs"].items():
        known, offered = _options_of(here.get(name)), _options_of(there.get(name))
        if offered is not None and not isinstance(value, (dict, list)) and _is_option(value, offered):
            # compared exactly: this ComfyUI also refuses a path that it has with the other separator
            found |= set() if known is not None and value in known else {name}
    return found


def file_lists(local: Mapping[str, Any] | None, remote: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return the lists of model files that a class has at an endpoint and that differ from this ComfyUI's, by input.

    ``local`` and ``remote`` are its /object_info entries. Lists with an upload have the user's files and are left out.
    """
    here, there = _specs_of(local), _specs_of(remote)
    found = {}
    for name, spec in there.items():
        offered, known = choices_of(spec), choices_of(here.get(name))
        if offered is None or offered == known or _is_upload(spec):
            continue
        if any(isinstance(option, str) and is_model_file(option) for option in (*offered, *(known or ()))):
            found[name] = [str(option) for option in offered]
    return found


def _specs_of(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    inputs = _inputs_of(entry)
    return {**(inputs.get("optional") or {}), **(inputs.get("required") or {})}


def _is_upload(spec: Sequence[Any]) -> bool:
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    return any(value and str(key).endswith("_upload") for key, value in options.items())


def _inputs_of(entry: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (entry or {}).get("input") or {}


def _options_of(spec: Any) -> list[Any] | None:
    """Return the options of a combo's entry, or None if it is not a combo or its options are not in the entry."""
    return choices_of(spec) or None


def choices_of(spec: Any) -> list[Any] | None:
    """Return the options of a combo, an empty list if its folder is empty; None for another input, and for a combo without options."""
    if not isinstance(spec, (list, tuple)) or not spec:
        return None
    options = spec[0] if isinstance(spec[0], (list, tuple)) else spec[1].get("options") if spec[0] == "COMBO" and len(spec) > 1 else None
    options = list(options) if isinstance(options, tuple) else options
    return options if isinstance(options, list) and not any(isinstance(option, dict) for option in options) else None


def _is_option(value: Any, options: Sequence[Any]) -> bool:
    return value in options or (isinstance(value, str) and same_path(value) in {same_path(str(option)) for option in options})


def _check_models(prompt: Mapping[str, Any], models: ModelFolders, endpoint: str) -> None:
    missing = [file for file in files_of(prompt, _local_models()) if spelled_at(file, models) is None]
    if missing:
        first = missing[0]
        suggestion = unknown_name("model file", first.name, {same_path(name) for names in models.values() for name in names})
        raise MissingFile(
            f"node {first.node_id!r} needs {first.name!r}, which endpoint {endpoint!r} does not have: {suggestion.message} Copy the file to "
            "the endpoint.",
            endpoint=endpoint,
            missing=[file.name for file in missing],
        )


def models_of(facts: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return the model files by kind of folder in an endpoint's capabilities."""
    comfy = (facts or {}).get("comfy")
    models = comfy.get("models") if isinstance(comfy, Mapping) else None
    return {str(kind): [str(file) for file in files] for kind, files in models.items()} if isinstance(models, Mapping) else {}


def _local_models() -> ModelFolders | None:
    return None if _local_comfy is None else _local_comfy.model_files()


def class_signature(entry: Mapping[str, Any]) -> Signature:
    """Return ``{"required": {name: type}, "optional": {name: type}, "outputs": [type]}`` for an entry of ComfyUI's ``/object_info``.

    The options of a combo, as an input or an output, are ignored, because they are often a machine's files.
    """
    inputs = entry.get("input") or {}
    groups = {
        group: {str(name): _type_name(item[0]) for name, item in (inputs.get(group) or {}).items()} for group in ("required", "optional")
    }
    return {**groups, "outputs": [_type_name(kind) for kind in entry.get("output") or ()]}


def _type_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, (list, tuple)) else str(kind)


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
