"""The prompt of a ``generate`` request: its own workflow, one from a URL, or that of the version with the request's inputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, LimitExceeded, unknown_message
from yggdrasill.remote.comfy_ports import check_prompt
from yggdrasill.version_specs.model import VersionSpec
from yggdrasill.worker.fetching import Fetcher
from yggdrasill.worker.requests import Generate

__all__ = ["prompt_of", "read_workflow"]

_MAX_WORKFLOW = 16 << 20


async def prompt_of(request: Generate, spec: VersionSpec | None, fetcher: Fetcher) -> dict[str, Any]:
    """Return the prompt in ComfyUI's API format that a request wants to run.

    Raises:
        InvalidArgument: no workflow (code ``workflow_required``), several (``workflow_ambiguous``), one that is not an object or JSON
            (``invalid_workflow``), or an unknown input (``unknown_input``). Otherwise as `Fetcher.read`.
    """
    named = [name for name in ("workflow", "workflow_url") if getattr(request, name) is not None]
    inputs = _inputs(request)
    if len(named) > 1 or (named and request.prompt is not None):
        fields = " and ".join(f"'{name}'" for name in [*named, *(["prompt"] if request.prompt is not None else [])])
        raise InvalidArgument(f"The input has {fields}. Give one of them.", code="workflow_ambiguous")
    if named:
        if inputs:
            raise InvalidArgument(unknown_message("field", next(iter(inputs)), Generate.model_fields, limit=20), code="invalid_input")
        if request.workflow_url is not None:
            data = await fetcher.read(request.workflow_url, limit=_MAX_WORKFLOW, what="workflow_url")
            return read_workflow(data.decode("utf-8", "replace"))
        return read_workflow(request.workflow)
    if spec is None or (not inputs and request.inputs is None):
        raise InvalidArgument(
            "The input has no workflow. Give 'workflow', 'workflow_url', 'graph_id' or a 'prompt'.", code="workflow_required"
        )
    return _fill(spec, inputs)


def read_workflow(given: object) -> dict[str, Any]:
    """Return a prompt in ComfyUI's API format from an object or JSON text. An object with the key ``prompt``, as posted to ComfyUI, is taken too.

    Raises:
        InvalidArgument (code ``invalid_workflow``)
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise _invalid("It is text that is not JSON") from None
    if not isinstance(given, Mapping):
        raise _invalid(f"It is a {type(given).__name__}, not an object or JSON text")
    inner = given.get("prompt")
    if isinstance(inner, Mapping) and "class_type" not in given and not isinstance(inner.get("class_type"), str):
        given = inner
    try:
        return check_prompt(given, "workflow")
    except (InvalidConfig, LimitExceeded) as error:
        raise _invalid(error.message.removeprefix("workflow 'workflow': ")) from None


def _inputs(request: Generate) -> dict[str, Any]:
    """Return the inputs of the version's workflow in a request: ``inputs``, ``prompt``, and further fields."""
    named = {**(request.inputs or {}), **(request.model_extra or {})}
    if request.prompt is not None:
        named["prompt"] = request.prompt
    return named


def _fill(spec: VersionSpec, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the workflow of a version with its inputs set."""
    found = spec.read_prompt()
    if found is None:
        raise InvalidArgument(
            f"Version {spec.version_id!r} has no workflow of its own. Give 'workflow' or 'workflow_url', or add a workflow to the version.",
            code="workflow_required",
        )
    prompt = copy.deepcopy(read_workflow(found))
    targets = spec.x.inputs
    for name in inputs:
        if name not in targets:
            raise InvalidArgument(
                unknown_message("input", name[:60], targets, f"These are the inputs of version {spec.version_id!r}.", limit=30),
                code="unknown_input",
            )
    for name, target in targets.items():
        if target.node not in prompt:
            raise InvalidConfig(
                f"Version {spec.version_id!r}: input {name!r} names node {target.node!r}, which its workflow lacks.", code="invalid_version"
            )
        value = inputs.get(name, target.default)
        if value is not None:
            fields = prompt[target.node].setdefault("inputs", {})
            _check_type(name, fields.get(target.field), value)
            fields[target.field] = value
    return prompt


def _check_type(name: str, present: Any, value: Any) -> None:
    """Raise `InvalidArgument` if a text, a number or a switch of a workflow would become something else."""
    kinds: tuple[tuple[type, ...], ...] = ((bool,), (int, float), (str,))
    kind = next((kinds_of for kinds_of in kinds if isinstance(present, kinds_of)), None)
    wrong = kind is not None and (not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind))
    if wrong or isinstance(value, (dict, list)):
        expected = " or ".join(each.__name__ for each in kind) if kind else "a plain value"
        raise InvalidArgument(f"Input {name!r} must be {expected}, got {type(value).__name__}.", code="invalid_input")


def _invalid(why: str) -> InvalidArgument:
    return InvalidArgument(f"The workflow cannot be used. {why}. Export it in ComfyUI with 'Export (API)'.", code="invalid_workflow")
