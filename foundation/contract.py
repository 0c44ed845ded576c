"""What every level shares with its neighbours: the one contract of a graph, and the resolver that may place it.

Nothing here knows of endpoints or urls: a level asks the resolver for a runnable and runs what it gets.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

__all__ = ["ProjectResolver", "Resolver", "Runnable", "build_foreign", "default_resolver", "whole_project"]

#: Resolves configs that carry ``endpoint_url`` when the caller passes no resolver; imported only then.
DEFAULT_RESOLVER = "yggdrasill.remote:UrlResolver"
#: What builds the graph of a config whose ``kind`` no level here knows; imported only then.
FOREIGN_KINDS = {"comfy": "yggdrasill.remote.comfy_graph:ComfyGraph"}


@runtime_checkable
class Runnable(Protocol):
    """Anything that is a graph to the levels above: ``Graph``, ``Pipeline``, a ComfyUI prompt with ports, a remote proxy.

    A runnable whose ``accepts_handles`` is true gets handles (`yggdrasill.values.handles`) as they are; others get the
    loaded values.
    """

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """External inputs: entries with ``name`` (the external key) and, if asked for, ``dtype`` and ``optional``."""
        ...

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """External outputs, as `get_input_spec`."""
        ...

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Outputs by external key; an output nothing wrote is left out."""
        ...

    def to_config(self) -> dict[str, Any]:
        """The structure as JSON values."""
        ...


class Resolver(Protocol):
    """Says what runs at a place of a project, given as ``endpoints=`` to the levels' ``from_config``."""

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        """The runnable for the child at ``path`` (ids from the outermost level down), or None to build it locally.

        ``config`` is the child's entry: ``{"graph_config": ...}`` or ``{"endpoint_url": ...}`` and its id; ``base_dir``
        is the folder that ``ref`` paths in it are relative to, if it has one.
        """
        ...


@runtime_checkable
class ProjectResolver(Resolver, Protocol):
    """A resolver that checks its names against all of a project's parts, so it has to know when a project begins and ends."""

    def project(self, config: Mapping[str, Any]) -> AbstractContextManager[Resolver]:
        """The resolver for the project of that config; leaving the context normally says that the project is complete."""
        ...


@contextmanager
def whole_project(resolver: Resolver | None, path: tuple[str, ...], config: Mapping[str, Any]) -> Iterator[Resolver | None]:
    """The resolver to build the level of ``config`` with: one for the whole project if it is the outermost one (``path`` is empty)."""
    if path or not isinstance(resolver, ProjectResolver):
        yield resolver
        return
    with resolver.project(config) as project:
        yield project


def default_resolver() -> Resolver:
    """The resolver for configs that name an ``endpoint_url`` themselves."""
    module, _, name = DEFAULT_RESOLVER.partition(":")
    resolver: Resolver = getattr(importlib.import_module(module), name)()
    return resolver


def build_foreign(config: Mapping[str, Any]) -> Any | None:
    """The graph of a config that says it is of another ``kind`` than graphs of blocks, such as a ComfyUI workflow; None if it says none."""
    target = FOREIGN_KINDS.get(str(config.get("kind")))
    if target is None:
        return None
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name).from_config(config)
