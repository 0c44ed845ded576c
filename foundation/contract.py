"""Protocols between the levels: what a runnable offers its container, and what a resolver returns to place a part.

This module knows neither endpoints nor urls: a level requests a runnable from the resolver and runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

__all__ = ["ProjectResolver", "Resolver", "Runnable", "whole_project"]


@runtime_checkable
class Runnable(Protocol):
    """Contract of a child of a pipeline or stage: ``Graph``, ``Pipeline``, a ComfyUI prompt with ports, a remote proxy.

    A runnable with a true ``accepts_handles`` receives handles (`yggdrasill.values.handles`) unchanged; others receive loaded values.
    """

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the external inputs: entries with ``name`` (the external key) and, with ``include_dtype``, ``dtype`` and ``optional``."""
        ...

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the external outputs, as `get_input_spec`."""
        ...

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Return the outputs by external key; an output that was not written is left out."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values."""
        ...


class Resolver(Protocol):
    """Maps places of a project to runnables; passed as ``endpoints=`` to the levels' ``from_config``."""

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        """Return the runnable for the child at ``path`` (ids from the outermost level down), or None to build it locally.

        ``config`` is the child's entry: ``{"graph_config": ...}`` or ``{"endpoint_url": ...}`` and its id; ``base_dir``
        is the folder that ``ref`` paths in it are relative to, if it has one.
        """
        ...


@runtime_checkable
class ProjectResolver(Resolver, Protocol):
    """A resolver that checks its names against all parts of a project, so it needs to know when a project begins and ends."""

    def project(self, config: Mapping[str, Any]) -> AbstractContextManager[Resolver]:
        """Return a context with the resolver for the project of that config; a normal exit means that every part was resolved."""
        ...


@contextmanager
def whole_project(resolver: Resolver | None, path: tuple[str, ...], config: Mapping[str, Any]) -> Iterator[Resolver | None]:
    """Yield the resolver to build the level of ``config`` with: one for the whole project if ``path`` is empty, else ``resolver``."""
    if path or not isinstance(resolver, ProjectResolver):
        yield resolver
        return
    with resolver.project(config) as project:
        yield project
