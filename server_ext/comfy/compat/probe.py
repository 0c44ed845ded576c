"""Checks at start whether ComfyUI has what each feature of the extension uses. A feature whose parts are not all present is off."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "EDITOR",
    "ENDPOINT",
    "FEATURES",
    "NESTED_RUNS",
    "PLACEMENT",
    "REMOTE_GRAPH",
    "Hold",
    "calls",
    "exists",
    "has_keys",
    "is_called_by",
    "is_coroutine",
    "is_route",
    "probe",
    "takes",
]

ENDPOINT, REMOTE_GRAPH, PLACEMENT, NESTED_RUNS, EDITOR = "endpoint", "remote_graph", "placement", "nested_runs", "editor"
FEATURES = {
    ENDPOINT: "The endpoint",
    REMOTE_GRAPH: "The execution of graph nodes",
    PLACEMENT: "Placement of workflow parts",
    NESTED_RUNS: "The execution of a workflow inside a waiting node",
    EDITOR: "The extension of the editor",
}
"""The features, each with its name at the start of a sentence."""

_MOST_NAMED = 3

Check = Callable[[Any], "str | None"]
"""Returns what is wrong with an object, to be read after its name, or None."""


@dataclass(frozen=True)
class Hold:
    """Something that the extension uses of ComfyUI: its location ``module:attribute.attribute``, its form, and the features that need it.

    A hold that no feature needs is used for information alone, such as the free memory.
    """

    location: str
    check: Check
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        """The dotted name of the object, as messages show it."""
        return self.location.replace(":", ".")

    def problem(self) -> str | None:
        """Return why the object cannot be used, as a clause that names it, or None."""
        module, _, path = self.location.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            problem = self.check(found)
        except (AttributeError, ImportError):
            problem = "is missing"
        except Exception as error:  # noqa: BLE001 - ComfyUI's object decides what it raises
            problem = f"cannot be read: {type(error).__name__}: {error}"
        return None if problem is None else f"{self.name} {problem}"


def probe(holds: Iterable[Hold]) -> Mapping[str, str]:
    """Return the features that are off, each with the reason, in the order of `FEATURES`. The reason names at most three holds."""
    problems: dict[str, list[str]] = {feature: [] for feature in FEATURES}
    for hold in holds:
        problem = hold.problem()
        for feature in hold.features if problem is not None else ():
            problems[feature].append(str(problem))
    return {feature: _joined(found) for feature, found in problems.items() if found}


def _joined(problems: list[str]) -> str:
    more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
    return "; ".join(problems[:_MOST_NAMED]) + more


# -- forms -------------------------------------------------------------------------------------------------------


def exists(found: Any) -> str | None:
    """Accept any object."""
    return None


def has_keys(found: Any) -> str | None:
    """Accept a mapping."""
    return None if isinstance(found, Mapping) else f"is a {type(found).__name__}, not a dict"


def takes(*positional: str, **named: Any) -> Check:
    """Accept what can be called with these arguments; ``self`` is one of them for a function of a class."""

    def check(found: Any) -> str | None:
        if not callable(found):
            return f"is a {type(found).__name__}, not a function"
        try:
            signature = inspect.signature(found)
        except (TypeError, ValueError):
            return None
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            return f"takes other arguments, {signature}: {error}"
        return None

    return check


def calls(*positional: str) -> Check:
    """Accept what can be called with these positional arguments."""
    return takes(*positional)


def is_coroutine(*positional: str) -> Check:
    """Accept an asynchronous function with these positional arguments, or a wrapper of one that another extension installed."""
    accepts = takes(*positional)

    def check(found: Any) -> str | None:
        problem = accepts(found)
        plain = inspect.isfunction(found) and not inspect.iscoroutinefunction(found) and found.__module__ == "execution"
        return "is not asynchronous" if problem is None and plain else problem

    return check


def is_called_by(name: str) -> Check:
    """Accept a function whose code uses ``name``, or code that cannot be read, such as a wrapper that another extension installed."""

    def check(found: Any) -> str | None:
        code: Any = getattr(inspect.unwrap(found), "__code__", None)
        is_original = code is not None and getattr(found, "__module__", None) == "execution"
        return f"does not call {name}" if is_original and name not in code.co_names else None

    return check


def is_route(path: str) -> Check:
    """Accept a route table with a route of this path."""

    def check(found: Any) -> str | None:
        return None if any(getattr(route, "path", None) == path for route in found) else f"has no {path!r}"

    return check
