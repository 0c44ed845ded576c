"""ComfyUI's answers to a posted prompt: ours are made like them, and theirs are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from yggdrasill.errors import YggdrasillError

__all__ = ["Validate", "ValidationResult", "drop_file_errors", "error_result"]

ValidationResult = tuple[bool, "dict[str, Any] | None", list[str], dict[str, Any]]
"""What `validate_prompt` gives: whether it is good, what is wrong with it as a whole, the output nodes to run, what is wrong by node."""

Validate = Callable[[dict[str, Any]], Awaitable[ValidationResult]]

_ABOUT_FILES = frozenset({"value_not_in_list", "custom_validation_failed"})
"""Kinds of errors by which a class says that something is not on this machine; where the node runs elsewhere it may be there."""


def error_result(error: YggdrasillError, prompt: Mapping[str, Any], nodes: Iterable[str]) -> ValidationResult:
    """An error of ours, said on ``nodes``."""
    kind = f"yggdrasill_{type(error).__name__}"
    said = {"type": kind, "message": "This part cannot run where it is placed", "details": error.message, "extra_info": {}}
    whole = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": error.message}
    by_node = {
        node: {
            "errors": [said],
            "dependent_outputs": [],
            "class_type": str(prompt[node].get("class_type")) if node in prompt else "Subgraph",
        }
        for node in nodes
    }
    return False, {**whole, "extra_info": {}}, [], by_node


def drop_file_errors(answer: ValidationResult, inside: frozenset[str]) -> tuple[ValidationResult, list[str]]:
    """The answer without what is no error where the nodes ``inside`` run elsewhere, and the output nodes that are left to run."""
    _, _, good, by_node = answer
    wanted, lost, left = set(good), set[str](), dict[str, Any]()
    for node, facts in by_node.items():
        outputs = set(facts["dependent_outputs"])
        wanted |= outputs
        if not (node in inside and all(error["type"] in _ABOUT_FILES for error in facts["errors"])):
            lost |= outputs
            left[node] = facts
    wanted -= lost
    return (bool(wanted), None if wanted else answer[1], sorted(wanted), left), sorted(wanted)
