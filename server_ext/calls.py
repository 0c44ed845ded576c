"""Calling a runnable of any level with a value that came over the wire, inside the run context of its caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidState, format_options
from yggdrasill.stage.state import State

__all__ = ["KINDS", "OPTIONS", "PREVIEW_METHODS", "call", "check_options"]

#: How ComfyUI makes previews of latents; ``default`` is as its owner started it.
PREVIEW_METHODS = ("auto", "latent2rgb", "taesd", "none", "default")
KINDS = ("graph", "pipeline", "stage", "world", "comfy")

#: Run options that may cross a wire, by kind. ``max_workers`` changes no result, so a workflow, which has no use for it, ignores it.
OPTIONS: dict[str, frozenset[str]] = {
    "graph": frozenset({"num_loop_steps", "dry_run", "max_workers"}),
    "pipeline": frozenset({"num_loop_steps", "dry_run", "max_workers"}),
    "stage": frozenset({"num_loop_steps", "dry_run", "max_workers"}),
    "comfy": frozenset({"num_loop_steps", "dry_run", "max_workers", "preview_method"}),
    "world": frozenset({"num_loop_steps", "dry_run", "max_workers", "num_steps", "seed"}),
}
_MOST_WORKERS = 64


def check_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set, None counting as not set.

    Raises:
        InvalidArgument: one this kind does not take, or a value no run takes.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.pop("training", False):
        raise InvalidArgument("training does not cross a wire: gradients stop at an endpoint; train where the weights are")
    stray = sorted(set(given) - OPTIONS[kind])
    if stray:
        raise InvalidArgument(f"a remote {kind} does not take {', '.join(map(repr, stray))}; it takes {format_options(OPTIONS[kind])}")
    if given.get("dry_run", False) not in (True, False):
        raise InvalidArgument(f"dry_run must be true or false, got {given['dry_run']!r}")
    if given.get("preview_method", "default") not in PREVIEW_METHODS:
        raise InvalidArgument(f"preview_method is {str(given['preview_method'])[:40]!r}; it can be {format_options(PREVIEW_METHODS)}")
    for name in ("num_loop_steps", "max_workers", "num_steps", "seed"):
        if name in given and (not isinstance(given[name], int) or isinstance(given[name], bool)):
            raise InvalidArgument(f"{name} must be an integer, got {given[name]!r}")
    if given.get("max_workers", 1) > _MOST_WORKERS:
        given["max_workers"] = _MOST_WORKERS
    if kind == "comfy":
        given.pop("max_workers", None)
    return given


def call(kind: str, runnable: Any, value: Any, options: Mapping[str, Any], seed: int | None) -> Any:
    """Run and give what the caller gets: outputs by name, or ``{"state": ...}`` for a stage or world.

    Raises:
        InvalidArgument, InvalidState: ``value`` is nothing this kind takes. Otherwise as the runnable's ``run``.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"the inputs of a {kind} are a dict, got {type(value).__name__}")
    if kind in ("graph", "pipeline", "comfy"):
        return runnable.run(value, **options)
    stray = sorted(str(key) for key in value if key not in ("state", "action"))
    if stray:
        raise InvalidArgument(f"a {kind} takes 'state' and 'action', not {format_options(stray)}")
    given = value.get("state")
    if given is not None and not isinstance(given, Mapping):
        raise InvalidState(f"the state of a {kind} call is a serialised state, got {type(given).__name__}")
    if kind == "stage":
        after = runnable.run(State.of(given), action=value.get("action"), seed=seed, **options)
    else:
        after = runnable.run(None if given is None else State.of(given), action=value.get("action"), **options)
    return {"state": after.to_dict()}
