"""Validation results in the form of ComfyUI's `validate_prompt`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from yggdrasill.errors import YggdrasillError

__all__ = ["Validate", "ValidationResult", "drop_file_errors", "error_result", "explains_errors"]

ValidationResult = tuple[bool, "dict[str, Any] | None", list[str], dict[str, Any]]
"""The result of `validate_prompt`: validity, the error of the prompt as a whole, the output nodes to run, and the errors by node."""

Validate = Callable[[dict[str, Any]], Awaitable[ValidationResult]]

_ABOUT_FILES = frozenset({"value_not_in_list", "custom_validation_failed"})
"""Types of errors with which a class reports that a file is missing on this machine; at an endpoint it may exist."""


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


def drop_file_errors(result: ValidationResult, inside: frozenset[str]) -> tuple[ValidationResult, list[str]]:
    """Drop 'file not found' errors of nodes that run at an endpoint, which validates them itself.

    Return the new result and the output nodes that can still run.
    """
    _, _, good, by_node = result
    runnable, failed, remaining = set(good), set[str](), dict[str, Any]()
    for node, facts in by_node.items():
        outputs = set(facts["dependent_outputs"])
        runnable |= outputs
        if not (node in inside and all(error["type"] in _ABOUT_FILES for error in facts["errors"])):
            failed |= outputs
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
