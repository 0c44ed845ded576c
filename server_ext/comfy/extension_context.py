"""What ComfyUI's nodes find of the extension around them: the runner of this process's prompts and the registry of endpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yggdrasill.errors import InvalidArgument
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.comfy.local_fallback import LocalFallbacks
from yggdrasill.server_ext.comfy.runner import QueueRunner

if TYPE_CHECKING:
    from yggdrasill.server_ext.comfy.placement.service import PlacementService

__all__ = ["ExtensionContext", "extension_context", "set_extension_context"]


@dataclass
class ExtensionContext:
    """The extension's parts in this process; ``problem`` says why there is no endpoint, if there is none.

    ``local_fallbacks`` has what runs here when no endpoint takes a call; None if this is no endpoint itself.
    """

    runner: QueueRunner
    known: Callable[[], EndpointRegistry] = EndpointRegistry
    problem: str | None = None
    local_fallbacks: LocalFallbacks | None = None
    _placement: PlacementService | None = field(default=None, repr=False)

    @property
    def placement(self) -> PlacementService:
        """Placement of parts of workflows: `states` of the endpoints, the `timeline` of the last calls."""
        if self._placement is None:
            from yggdrasill.server_ext.comfy.placement.service import PlacementService

            self._placement = PlacementService(lambda: self.registry)
        return self._placement

    @property
    def registry(self) -> EndpointRegistry:
        """The endpoints this ComfyUI knows, as its endpoints.yaml says now."""
        return self.known()


_around: ExtensionContext | None = None


def set_extension_context(parts: ExtensionContext | None) -> None:
    """Say what nodes find; None takes it away."""
    global _around  # noqa: PLW0603 - a process has one ComfyUI or none
    _around = parts


def extension_context() -> ExtensionContext:
    """The extension's parts.

    Raises:
        InvalidArgument: the extension is not loaded.
    """
    if _around is None:
        raise InvalidArgument("Yggdrasill was not loaded by this ComfyUI; its log says why")
    return _around
