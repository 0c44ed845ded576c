"""Errors and warnings about a spec that can be read: inputs without a node, what is not exact, what the platform of Comfy refuses."""

from __future__ import annotations

import re

from yggdrasill.errors import YggdrasillError
from yggdrasill.version_specs.model import COMMIT, VersionSpec

__all__ = ["errors_of", "warnings_of"]

_PLATFORM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PLATFORM_REPOSITORY = re.compile(r"https://github\.com/[^/]+/[^/]+/?")
_EXACT = re.compile(r"(==|===|@)")


def warnings_of(spec: VersionSpec) -> list[str]:
    """Return the warnings, each with the entry that it is about."""
    definition = spec.definition
    found = []
    if definition.base_comfy_version is None:
        found.append("baseComfyVersion is not set, so any ComfyUI is accepted")
    for index, model in enumerate(definition.models):
        where = f"models[{index}] ({model.target})"
        if model.sha256 is None:
            found.append(f"{where} has no sha256; run: yggdrasill version lock")
        if not spec.sources_of(model):
            found.append(f"{where} has no url; it must be on the machine, or needs one in 'sourceUri' or x-yggdrasill.sources")
        elif model.size_bytes is None:
            found.append(f"{where} has no sizeBytes, so the total size is known only from its source")
        if model.source_uri and not model.source_uri.startswith("https://"):
            found.append(
                f"{where}: the platform of Comfy fetches https urls only; put {model.source_uri.partition(':')[0]}:// urls into x-yggdrasill.sources"
            )
        if not all(map(_PLATFORM_NAME.fullmatch, model.target.split("/"))):
            found.append(f"{where}: the platform of Comfy accepts letters, digits, '.', '_' and '-' in names")
    for index, node in enumerate(definition.custom_nodes):
        where = f"customNodes[{index}] ({node.name})"
        if node.repository and not (node.revision and COMMIT.fullmatch(node.revision.lower())):
            found.append(f"{where} is not at a commit; run: yggdrasill version lock")
        if node.repository and not _PLATFORM_REPOSITORY.fullmatch(node.repository):
            found.append(f"{where}: the platform of Comfy accepts repositories at https://github.com only")
        if not node.repository and not node.registry_version:
            found.append(f"{where} has no repository and no version of the registry; it must be on the machine")
    return [*found, *_loose_requirements(definition.pip_dependencies or "")]


def _loose_requirements(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    loose = [line for line in lines if line and not line.startswith(("#", "-")) and not _EXACT.search(line)]
    return [f"pipDependencies: {line!r} has no exact version" for line in loose]


def errors_of(spec: VersionSpec) -> list[str]:
    """Return what is wrong with the prompt of a version, and between it and the inputs."""
    try:
        prompt = spec.read_prompt()
    except YggdrasillError as error:
        return [f"x-yggdrasill.workflow: {error.message}"]
    if prompt is None:
        return [f"x-yggdrasill.inputs.{name}: the version has no workflow" for name in spec.x.inputs]
    if isinstance(prompt.get("nodes"), list):
        return ["x-yggdrasill.workflow is in the editor's format; save it with Export (API)"]
    found = []
    for name, target in spec.x.inputs.items():
        node = prompt.get(target.node)
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict):
            found.append(f"x-yggdrasill.inputs.{name}: the workflow has no node {target.node!r}")
        elif target.field not in inputs:
            found.append(f"x-yggdrasill.inputs.{name}: node {target.node!r} has no input {target.field!r}")
    return found
