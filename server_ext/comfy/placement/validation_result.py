"""Validation results in the form of ComfyUI's `validate_prompt`, and the lines that it logs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from yggdrasill.errors import MissingFile, UnknownBlockType, YggdrasillError, format_options
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.model_names import ModelFolders, has_model
from yggdrasill.remote.preflight import MissingItem, models_of

__all__ = [
    "HeldLines",
    "Validate",
    "ValidationResult",
    "drop_file_errors",
    "error_result",
    "explains_errors",
    "held_lines",
    "lacking_error",
    "needed_nodes",
]

ValidationResult = tuple[bool, "dict[str, Any] | None", list[str], dict[str, Any]]
"""The result of `validate_prompt`: validity, the error of the prompt as a whole, the output nodes to run, and the errors by node."""

Validate = Callable[[dict[str, Any]], Awaitable[ValidationResult]]

_ABOUT_FILES = frozenset({"value_not_in_list", "custom_validation_failed"})
"""Types of errors with which a class reports that a file is missing on this machine; at an endpoint it may exist."""


_OUTPUT = "Failed to validate prompt for output "
"""The begin of the lines about one output node; the others about it follow."""


class HeldLines(logging.Filter):
    """The lines that ComfyUI logs while it validates a prompt, held until it is known which of its errors are errors at the endpoint too."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Hold a record of the task that validates, and let all others pass."""
        if _held.get() is not self:
            return True
        self._records.append(record)
        return False

    def log(self, without: Collection[str] = ()) -> None:
        """Log the lines, except those about the output nodes in ``without``."""
        records, self._records = self._records, []
        output = None
        for record in records:
            message = record.getMessage()
            if message.startswith(_OUTPUT):
                output = message.removeprefix(_OUTPUT).rstrip(":")
            if output not in without:
                logging.getLogger().handle(record)


_held: ContextVar[HeldLines | None] = ContextVar("yggdrasill_held_lines", default=None)


@contextmanager
def held_lines() -> Iterator[HeldLines]:
    """Hold the lines that this task logs inside the context."""
    root, lines = logging.getLogger(), HeldLines()
    token = _held.set(lines)
    root.addFilter(lines)
    try:
        yield lines
    finally:
        root.removeFilter(lines)
        _held.reset(token)


def error_result(error: YggdrasillError, prompt: Mapping[str, Any], nodes: Iterable[str], parts: Iterable[str] = ()) -> ValidationResult:
    """Return the validation result for an error of ours, reported on ``nodes``. ``parts`` are the names of the parts that cannot run."""
    kind = type(error).__name__
    extra = {"yggdrasill": {"kind": kind, "parts": list(parts)}}
    entry = {
        "type": f"yggdrasill_{kind}",
        "message": "This part cannot run where it is placed",
        "details": error.message,
        "extra_info": extra,
    }
    whole = {"type": "prompt_outputs_failed_validation", "message": error.message, "details": error.message, "extra_info": extra}
    by_node = {
        node: {
            "errors": [entry],
            "dependent_outputs": [],
            "class_type": str(prompt[node].get("class_type")) if node in prompt else "Subgraph",
        }
        for node in nodes
    }
    return False, whole, [], by_node


def needed_nodes(prompt: Mapping[str, Any], wanted: Collection[str]) -> set[str]:
    """Return ``wanted`` and all nodes that they depend on."""
    found: set[str] = set()
    waiting = [node for node in wanted if node in prompt]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [value[0] for value in prompt[node].get("inputs", {}).values() if is_link(value) and value[0] in prompt]
    return found


def drop_file_errors(result: ValidationResult, inside: frozenset[str], prompt: Mapping[str, Any]) -> tuple[ValidationResult, list[str]]:
    """Drop 'file not found' errors of nodes that run at an endpoint, which validates them itself.

    Return the new result and the output nodes that can still run. The dependent outputs of a node in ComfyUI's result also include all
    invalid outputs that ComfyUI validated after one that depends on it, in an order that varies, so the links of ``prompt`` decide.
    """
    _, _, good, by_node = result
    runnable, failed, remaining = set(good), set[str](), dict[str, Any]()
    needed = {
        output: needed_nodes(prompt, [output]) for output in {name for facts in by_node.values() for name in facts["dependent_outputs"]}
    }
    for node, facts in by_node.items():
        outputs = set(facts["dependent_outputs"])
        runnable |= outputs
        if not (node in inside and all(error["type"] in _ABOUT_FILES for error in facts["errors"])):
            failed |= {output for output in outputs if node in needed[output]}
            remaining[node] = facts
    runnable -= failed
    return (bool(runnable), None if runnable else result[1], sorted(runnable), remaining), sorted(runnable)


def explains_errors(errors: Iterable[Mapping[str, Any]], offered: Collection[str]) -> bool:
    """Return whether dropped errors of a node are about the inputs in ``offered``, whose choices only the endpoint has.

    The error of a class that validates itself may name any of its inputs.
    """
    return all(
        (error.get("extra_info") or {}).get("input_name") in offered if error["type"] == "value_not_in_list" else bool(offered)
        for error in errors
    )


def lacking_error(
    part: str, missing: Mapping[str, Sequence[MissingItem] | None], local: ModelFolders, facts: Mapping[str, Mapping[str, Any]]
) -> YggdrasillError:
    """Return the error for a part whose endpoints all lack something, with the places where missing model files exist and what to do.

    ``missing`` is what each endpoint of the part lacks, ``local`` the model files of this server, and ``facts`` the capabilities of all
    endpoints in the registry.
    """
    problems, nodes, kinds, holders = [], set[str](), set[str](), set[str]()
    for name, items in missing.items():
        if items is None:
            problems.append(f"endpoint {name!r} is not a ComfyUI with this extension")
            continue
        words = []
        for item in {(item.kind, item.name): item for item in items}.values():
            servers, endpoints = _holders(item, local, {other: found for other, found in facts.items() if other not in missing})
            holders.update(endpoints)
            where = [*servers, *(f"endpoint {other!r}" for other in endpoints)]
            folder = f" in {item.folder!r}" if item.folder else ""
            words.append(f"{item.kind} {item.name!r}{folder}" + (f" (available on {' and '.join(where)})" if where else ""))
        problems.append(f"endpoint {name!r} lacks {', '.join(sorted(words))}")
        nodes.update(item.node_id for item in items)
        kinds.update(item.kind for item in items)
    error = UnknownBlockType if "node class" in kinds else MissingFile
    return error(f"Part {part!r} cannot run: {'; '.join(problems)}. {_act(kinds, missing, holders, facts)}", nodes=sorted(nodes))


def _holders(item: MissingItem, local: ModelFolders, facts: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return ``this server`` if it has a missing model file, and the endpoints that have it."""
    if item.kind != "model file":
        return [], []
    servers = ["this server"] if has_model(local, item.name, item.folder) else []
    return servers, sorted(name for name, found in facts.items() if has_model(models_of(found), item.name, item.folder))


def _act(kinds: Collection[str], missing: Collection[str], holders: Collection[str], facts: Mapping[str, Mapping[str, Any]]) -> str:
    if kinds != {"model file"}:
        return "Install what is missing, or place the part on another endpoint."
    can_fetch = [name for name in missing if facts.get(name, {}).get("model_sources")]
    files = f"Fetch the file to {format_options(can_fetch)} with Preflight" if can_fetch else "Copy the file to the endpoint"
    return f"{files}, or place the part on {format_options(sorted(holders)) if holders else 'another endpoint'}."
