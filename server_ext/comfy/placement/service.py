"""The placement service of this ComfyUI: inspects each posted prompt, and holds the state that the editor shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from yggdrasill.errors import RunError, YggdrasillError
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.execution_blockers import allow_blockers
from yggdrasill.server_ext.comfy.hidden_inputs import replace_hidden_inputs
from yggdrasill.server_ext.comfy.local_facts import LocalFacts
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointMonitor
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.patches import expect_posted, patch_comfyui
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.timeline import Timeline
from yggdrasill.server_ext.comfy.placement.validator import PromptValidator
from yggdrasill.server_ext.comfy.placement.workflow_placements import WorkflowPlacements, posted_parts

__all__ = ["PlacementService"]

_LOG = logging.getLogger("yggdrasill.comfy")


class PlacementService:
    """``read_registry`` returns the current registry of endpoints, ``read_stored`` the placements that users made in the editor.

    `monitor` has the states of the endpoints, `local_facts` the traits of node packs and the user's files, `timeline` the costs of recent
    calls, and `runs` the running partitioned prompts by prompt id.
    """

    def __init__(
        self,
        read_registry: Callable[[], EndpointRegistry],
        read_stored: Callable[[], WorkflowPlacements] = lambda: WorkflowPlacements(None),
    ) -> None:
        self._read_registry = read_registry
        self._read_stored = read_stored
        self.monitor = EndpointMonitor(read_registry)
        self.timeline = Timeline()
        self.runs: dict[str, PartitionedPrompt] = {}
        self.local_facts = LocalFacts()
        self.validator = PromptValidator(self.monitor, SchemaCache(), self.local_facts)

    def install(self) -> None:
        """Patch ComfyUI, and inspect every prompt that is posted from now on."""
        allow_blockers()
        replace_hidden_inputs()
        patch_comfyui(self.validator.check, self._running)
        compat.add_on_prompt_handler(self.on_prompt)

    @contextmanager
    def _running(self, prompt_id: str, partitioned: PartitionedPrompt) -> Iterator[None]:
        self.runs[prompt_id] = partitioned
        self.timeline.begin(prompt_id)
        try:
            yield
        finally:
            del self.runs[prompt_id]

    def on_prompt(self, posted: dict[str, Any]) -> dict[str, Any]:
        """Return the body that ComfyUI processes for a POST /prompt: the same object if nothing in it is placed.

        ComfyUI ignores a handler that raises and would run placed parts locally, so a prompt that cannot be read is refused.
        """
        prompt = posted.get("prompt") if isinstance(posted, dict) else None
        if not isinstance(prompt, dict):
            return posted
        marked = self._marked(posted, prompt)
        expect_posted(marked is not posted)
        return marked

    def _marked(self, posted: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
        registry = stored = None
        try:
            registry, stored = self._read_registry(), self._read_stored()
            naming = posted_parts(posted, prompt, registry, stored)
        except YggdrasillError as error:
            return {**posted, "prompt": PostedPrompt(prompt, problem=error)}
        except Exception as error:  # noqa: BLE001 - the prompt is refused with it
            compat.log_failure("the placed parts of a prompt could not be determined", error)
            if _has_no_placements(registry, stored) and "yggdrasill" not in (posted.get("extra_data") or ()):
                return posted
            problem = RunError(f"The placed parts of this workflow could not be determined: {type(error).__name__}: {error}.")
            return {**posted, "prompt": PostedPrompt(prompt, problem=problem)}
        for warning in naming.warnings:
            _LOG.warning("Yggdrasill: %s", warning)
        if not naming.parts:
            return posted
        extra = posted.get("extra_data")
        extra_pnginfo = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
        return {**posted, "prompt": PostedPrompt(prompt, naming.parts, extra_pnginfo=extra_pnginfo)}


def _has_no_placements(registry: EndpointRegistry | None, stored: WorkflowPlacements | None) -> bool:
    """Return whether neither the registry nor any workflow places a part."""
    return registry is not None and not registry.placements and stored is not None and stored.is_empty()
