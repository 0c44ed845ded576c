"""What every level shares with its neighbours: the one contract of a graph, and the resolver that may place it.

Nothing here knows of endpoints or urls: a level asks the resolver for a runnable and runs what it gets.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["Resolver", "Runnable", "default_resolver"]

#: Resolves configs that carry ``endpoint_url`` when the caller passes no resolver; imported only then.
DEFAULT_RESOLVER = "yggdrasill.remote:UrlResolver"


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

        ``config`` is the child's entry: ``{"graph_config": ...}`` or ``{"endpoint_url": ...}`` and its id.
        """
        ...


def default_resolver() -> Resolver:
    """The resolver for configs that name an ``endpoint_url`` themselves."""
    module, _, name = DEFAULT_RESOLVER.partition(":")
    resolver: Resolver = getattr(importlib.import_module(module), name)()
    return resolver
