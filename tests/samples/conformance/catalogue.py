"""All workflows of the conformance suite by name; the other modules of this folder define them."""

from __future__ import annotations

from samples.conformance.conditioning import CONDITIONING
from samples.conformance.flow import FLOW
from samples.conformance.images import IMAGES
from samples.conformance.latents import LATENTS
from samples.conformance.media import MEDIA
from samples.conformance.models import MODELS
from samples.conformance.values import VALUES
from samples.conformance.workflow import Draw

__all__ = ["QUICK", "WORKFLOWS"]

WORKFLOWS: dict[str, Draw] = {**IMAGES, **LATENTS, **CONDITIONING, **MEDIA, **VALUES, **FLOW, **MODELS}

#: Those that every test run tries, where there is a ComfyUI.
QUICK = frozenset({"scale, blend, blur and quantize", "a list on a port", "one of two outputs blocked"})
