"""Placement in this ComfyUI: what looks at each posted prompt, and what the editor may ask of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.partition.placement_keys import parts_of
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.execution_blockers import allow_blockers
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointMonitor
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.patches import patch_comfyui
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.timeline import Timeline
from yggdrasill.server_ext.comfy.placement.validator import PromptValidator

__all__ = ["PlacementService"]

_LOG = logging.getLogger("yggdrasill.comfy")


class PlacementService:
    """``known`` gives the registry of endpoints as it is now.

    `states` is what is known of the endpoints, `timeline` what the last calls cost, `runs` the prompts with parts elsewhere that run
    now, by prompt id; `stale` are the plans whose cached results turned out to be gone from where they lay.
    """

    def __init__(self, known: Callable[[], EndpointRegistry]) -> None:
        self._known = known
        self.monitor = EndpointMonitor(known)
        self.timeline = Timeline()
        self.runs: dict[str, PartitionedPrompt] = {}
        self.stale: set[str] = set()
        self.validator = PromptValidator(self.monitor, SchemaCache())

    def install(self) -> None:
        """Look at every prompt that is posted from now on."""
        allow_blockers()
        patch_comfyui(self.validator.check, self._running)
        host_api.prompt_server().add_on_prompt_handler(self.on_prompt)

    @contextmanager
    def _running(self, prompt_id: str, partitioned: PartitionedPrompt) -> Iterator[None]:
        self.runs[prompt_id] = partitioned
        self.timeline.begin(prompt_id)
        try:
            yield
        finally:
            del self.runs[prompt_id]

    def on_prompt(self, posted: dict[str, Any]) -> dict[str, Any]:
        """What ComfyUI is to take for the body of a POST /prompt: the same object where nothing of it is placed elsewhere."""
        prompt, extra = posted.get("prompt"), posted.get("extra_data")
        if not isinstance(prompt, dict):
            return posted
        registry = self._known()
        try:
            naming = parts_of(prompt, extra, registry.placements, registry.endpoints)
        except YggdrasillError as error:
            return {**posted, "prompt": PostedPrompt(prompt, problem=error)}
        for warning in naming.warnings:
            _LOG.warning("Yggdrasill: %s", warning)
        if not naming.parts:
            return posted
        return {**posted, "prompt": PostedPrompt(prompt, naming.parts)}
