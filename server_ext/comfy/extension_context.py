"""The extension's state in a ComfyUI process, as its nodes and routes access it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yggdrasill.errors import InvalidArgument, UnsupportedVersion
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.comfy.compat.probe import FEATURES
from yggdrasill.server_ext.comfy.local_fallback import LocalFallbacks
from yggdrasill.server_ext.comfy.placement.workflow_placements import WorkflowPlacements
from yggdrasill.server_ext.comfy.runner import QueueRunner

if TYPE_CHECKING:
    from yggdrasill.server_ext.comfy.placement.service import PlacementService

__all__ = ["ExtensionContext", "extension_context", "set_extension_context"]


@dataclass
class ExtensionContext:
    """The components of the extension. ``problem`` is the reason why this ComfyUI is not an endpoint, or None.

    ``off`` has the features that this ComfyUI does not support, each with the reason; see `yggdrasill.server_ext.comfy.compat.probe`.

    ``workflow_placements`` are the placements that users made in the editor.

    ``local_fallbacks`` finds the workflow that runs locally when no endpoint accepts a call; it is None if this ComfyUI is not an endpoint.
    """

    runner: QueueRunner
    read_registry: Callable[[], EndpointRegistry] = EndpointRegistry
    problem: str | None = None
    off: dict[str, str] = field(default_factory=dict)
    local_fallbacks: LocalFallbacks | None = None
    workflow_placements: WorkflowPlacements = field(default_factory=lambda: WorkflowPlacements(None))
    _placement: PlacementService | None = field(default=None, repr=False)

    def require(self, feature: str) -> None:
        """Check that a feature is on.

        Raises:
            UnsupportedVersion: it is off; the message has the reason.
        """
        reason = self.off.get(feature)
        if reason is not None:
            raise UnsupportedVersion(
                f"{FEATURES[feature]} is off in this ComfyUI: {reason}. Update Yggdrasill, or use a ComfyUI version that it supports."
            )

    @property
    def placement(self) -> PlacementService:
        """Return the service that places parts of workflows, with its endpoint monitor and its timeline."""
        if self._placement is None:
            from yggdrasill.server_ext.comfy.placement.service import PlacementService

            self._placement = PlacementService(lambda: self.registry, lambda: self.workflow_placements)
        return self._placement

    @property
    def registry(self) -> EndpointRegistry:
        """Return the registry of endpoints as ``endpoints.yaml`` currently defines it."""
        return self.read_registry()


_context: ExtensionContext | None = None


def set_extension_context(context: ExtensionContext | None) -> None:
    """Set the context of this process; None removes it."""
    global _context  # noqa: PLW0603 - a process has at most one ComfyUI
    _context = context


def extension_context() -> ExtensionContext:
    """Return the context of this process.

    Raises:
        InvalidArgument: the extension is not loaded.
    """
    if _context is None:
        raise InvalidArgument("This ComfyUI did not load Yggdrasill. See ComfyUI's log for the reason.")
    return _context
