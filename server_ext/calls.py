"""Execution of a call: validates its run options and runs a runnable of any level with decoded inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidState, format_options
from yggdrasill.foundation.kinds import find_kind
from yggdrasill.stage.state import State

__all__ = ["PREVIEW_METHODS", "call", "check_options"]

#: Latent preview methods of ComfyUI; ``default`` keeps the method that the server was started with.
PREVIEW_METHODS = ("auto", "latent2rgb", "taesd", "none", "default")
#: ``max_workers`` changes no result, so every kind accepts it and those without parallel children ignore it.
_FOR_EVERY_KIND = frozenset({"dry_run", "max_workers"})
_MAX_WORKERS = 64


def check_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the validated options without those that are None.

    Raises:
        InvalidArgument: an option that this kind does not accept, or an invalid value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.pop("training", False):
        raise InvalidArgument(
            "Remote training is not supported: gradients do not cross endpoints. Train on the machine that has the weights."
        )
    options_of_kind = find_kind(kind).run_options
    allowed = options_of_kind | _FOR_EVERY_KIND
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise InvalidArgument(f"A remote {kind} does not accept {', '.join(map(repr, unknown))}. Available: {format_options(allowed)}.")
    if given.get("dry_run", False) not in (True, False):
        raise InvalidArgument(f"dry_run must be true or false, got {given['dry_run']!r}")
    if given.get("preview_method", "default") not in PREVIEW_METHODS:
        raise InvalidArgument(
            f"Unknown preview_method {str(given['preview_method'])[:40]!r}. Available: {format_options(PREVIEW_METHODS)}."
        )
    for name in ("num_loop_steps", "max_workers", "num_steps", "seed"):
        if name in given and (not isinstance(given[name], int) or isinstance(given[name], bool)):
            raise InvalidArgument(f"{name} must be an integer, got {given[name]!r}")
    if given.get("max_workers", 1) > _MAX_WORKERS:
        given["max_workers"] = _MAX_WORKERS
    if "max_workers" not in options_of_kind:
        given.pop("max_workers", None)
    return given


def call(kind: str, runnable: Any, value: Any, options: Mapping[str, Any], seed: int | None) -> Any:
    """Run and return the result for the caller: outputs by name, or ``{"state": ...}`` for a stage or world.

    Raises:
        InvalidArgument, InvalidState: ``value`` is invalid for this kind. Otherwise as the runnable's ``run``.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"The inputs of a {kind} must be a dict, got {type(value).__name__}.")
    boundary = find_kind(kind).boundary
    if boundary == "ports":
        return runnable.run(value, **options)
    unknown = sorted(str(key) for key in value if key not in ("state", "action"))
    if unknown:
        raise InvalidArgument(f"Unknown inputs of a {kind}: {format_options(unknown)}. Available: 'state', 'action'.")
    given = value.get("state")
    if given is not None and not isinstance(given, Mapping):
        raise InvalidState(f"The state of a {kind} call must be a serialised state (a dict), got {type(given).__name__}.")
    if boundary == "state":
        result = runnable.run(State.of(given), action=value.get("action"), seed=seed, **options)
    else:
        result = runnable.run(None if given is None else State.of(given), action=value.get("action"), **options)
    return {"state": result.to_dict()}
