"""Which types of ComfyUI's links can travel, and how: the table that is asked before anything is sent.

The classes behind the types are in `server_ext.comfy.value_classes`, the values on ports in `server_ext.comfy.port_checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yggdrasill.errors import CannotTravel

__all__ = ["Verdict", "can_travel", "refusal"]


@dataclass(frozen=True)
class Verdict:
    """What is known of a type: whether it ``travels`` and ``how``, or why it does not.

    ``known`` is false for a type that no table names: its values are looked at when they are there.
    """

    type: str
    travels: bool
    known: bool
    how: str


_TENSOR = "as a tensor"
_TREE = "as dicts and lists of tensors and plain values"
_PLAIN = "as plain values"
_FIELDS = "by its fields, which are tensors and plain values"
_FILE = "as the bytes of the file and its format"
_UNKNOWN = "by what its values turn out to be: tensors and plain values travel, in lists, tuples and dicts"

_WEIGHTS = "it holds weights that live on a device"
_CODE = "it holds functions, which are not values"

_TRAVELS = {
    **dict.fromkeys("IMAGE MASK SIGMAS WAN_CAMERA_EMBEDDING".split(), _TENSOR),
    **dict.fromkeys("AUDIO AUDIO_ENCODER_OUTPUT LAYERS LORA_MODEL LOSS_MAP TRACKS".split(), _TREE),
    **dict.fromkeys("DA3_GEOMETRY FACE_LANDMARKS IC_LORA_PARAMETERS MOGE_GEOMETRY POSE_KEYPOINT SAM3_TRACK_DATA".split(), _TREE),
    **dict.fromkeys("STRING INT FLOAT FLOATS BOOLEAN COMBO COLOR COLORS BOUNDING_BOX BOUNDING_BOXES HISTOGRAM".split(), _PLAIN),
    **dict.fromkeys("TIMESTEPS_RANGE DICT ARRAY LOAD_3D LOAD_3D_ANIMATION LOAD3D_CAMERA LOAD3D_MODEL_INFO".split(), _PLAIN),
    **dict.fromkeys("MESH VOXEL SPLAT RANGE CLIP_VISION_OUTPUT".split(), _FIELDS),
    "LATENT": "as a dict with every key it has; samples that are a NestedTensor by their parts",
    "CONDITIONING": "as tensors with every key they have, except control, gligen and hooks",
    "VIDEO": "by its frames, audio and rate, or as the bytes of the file and the part of it that is used",
    "SVG": "as the bytes of each drawing",
    "CURVE": "by its points",
}
_STAYS = {
    **dict.fromkeys("MODEL CLIP VAE CONTROL_NET CLIP_VISION STYLE_MODEL UPSCALE_MODEL LATENT_UPSCALE_MODEL GLIGEN".split(), _WEIGHTS),
    **dict.fromkeys("PHOTOMAKER AUDIO_ENCODER MODEL_PATCH BACKGROUND_REMOVAL OPTICAL_FLOW".split(), _WEIGHTS),
    **dict.fromkeys("NOISE SAMPLER GUIDER LATENT_OPERATION HOOKS HOOK_KEYFRAMES".split(), _CODE),
    "GPU_OPTIONS": "it names devices of the machine it was made on",
    "FLOW_CONTROL": "it names nodes of the prompt it was made in",
    "SHAPE_SUBDIVIDES": "it holds sparse tensors whose caches belong to the VAE that made them",
}


def can_travel(type_name: str | Sequence[str]) -> Verdict:
    """The verdict on a type as ComfyUI spells it: a name, names with commas between them, or the options of a combo.

    Of several types each must travel for the whole to be known to; if none does, the whole stays.
    """
    if not isinstance(type_name, str):
        return Verdict("COMBO", travels=True, known=True, how=_PLAIN)
    # a plain str, because node packs name types by strings that equal everything
    parts = type_name.split(",")
    name = ",".join(parts)
    verdicts = [_verdict(part.strip()) for part in parts]
    first = verdicts[0]
    if len(verdicts) == 1 or all((each.travels, each.known) == (first.travels, first.known) for each in verdicts):
        return Verdict(name, first.travels, first.known, first.how)
    return Verdict(name, travels=any(each.travels for each in verdicts), known=False, how=_UNKNOWN)


def _verdict(name: str) -> Verdict:
    how = _FILE if name == "FILE_3D" or name.startswith("FILE_3D_") else _TRAVELS.get(name)
    if how is not None:
        return Verdict(name, travels=True, known=True, how=how)
    why = _STAYS.get(name) or (_WEIGHTS if name.endswith("_MODEL") else None)
    if why is not None:
        return Verdict(name, travels=False, known=True, how=why)
    return Verdict(name, travels=True, known=False, how=_UNKNOWN)


def refusal(port: str, type_name: str | Sequence[str], why: str | None = None) -> CannotTravel:
    """The error for ``port``: ``why`` its value cannot travel, or else what the table says of its type."""
    verdict = can_travel(type_name)
    return CannotTravel(
        f"port {port!r} ({verdict.type}) cannot travel: {why or verdict.how}; what travels is tensors, plain values and ComfyUI's own types "
        "made of them, such as IMAGE, LATENT, CONDITIONING, AUDIO and VIDEO; let the nodes that make this value run on the side that uses it",
        port=port,
        type=verdict.type,
    )
