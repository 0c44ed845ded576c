"""Small but valid model files for a real ComfyUI: run by its Python inside its checkout, with the models folder to write to.

Each model has the keys and shapes that ComfyUI recognises, as few layers as it lets, and weights of noise. Large tensors are
windows on one buffer of 2^17 numbers, which ``torch.save`` stores once: the files stay small and load with ``weights_only``.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

_BUFFER = 1 << 17
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": -2,
}


def _modules() -> dict[str, list[tuple[str, Any]]]:
    """Return the path of each file and its modules under their prefixes. The modules have shapes but no weights."""
    _module("comfy.cli_args").args.cpu = True
    clip, ops = _module("comfy.clip_model"), _module("comfy.ops")
    torch = _module("torch")
    configs = Path(str(clip.__file__)).parent
    text, vision = (json.loads((configs / name).read_text("utf-8")) for name in ("sd1_clip_config.json", "clip_vision_config_vitl.json"))
    plain: dict[str, Any] = {"dtype": torch.float32, "device": "meta", "operations": ops.disable_weight_init}
    sound = {"embed_dim": 768, "num_heads": 12, "num_layers": 12, "conv_norm": False, "conv_bias": False, "do_stable_layer_norm": False}
    with torch.device("meta"):
        checkpoint = [
            ("model.diffusion_model.", _module("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel(**_UNET, **plain)),
            ("cond_stage_model.transformer.", clip.CLIPTextModel(text, **plain)),
            ("first_stage_model.", _module("comfy.taesd.taesd").TAESD(latent_channels=4)),
        ]
        seen = [("", clip.CLIPVisionModelProjection(vision, **plain))]
        heard = [("", _module("comfy.audio_encoders.wav2vec2").Wav2Vec2Model(**sound, **plain))]
    return {"checkpoints/tiny.ckpt": checkpoint, "clip_vision/tiny.pt": seen, "audio_encoders/tiny.pt": heard}


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _weights(modules: list[tuple[str, Any]]) -> dict[str, Any]:
    import torch

    noise = torch.randn(_BUFFER, generator=torch.Generator().manual_seed(1))
    scaled: dict[float, Any] = {}
    weights: dict[str, Any] = {}
    for prefix, module in modules:
        for name, empty in module.state_dict().items():
            weights[prefix + name] = _filled(prefix + name, empty, noise, scaled)
    return weights


def _filled(name: str, empty: Any, noise: Any, scaled: dict[float, Any]) -> Any:
    """Return weights: ones for norms and scales, zeros for biases, small noise for embeddings, else noise that preserves the scale of activations."""
    import torch

    shape = tuple(empty.shape)
    if not empty.is_floating_point():
        return torch.arange(math.prod(shape)).reshape(shape)
    if len(shape) < 2:
        return torch.ones(shape) if name.endswith(("weight", "scale")) else torch.zeros(shape)
    scale = 0.02 if "embed" in name else 1 / math.sqrt(math.prod(shape[1:]))
    return _window(scaled.setdefault(scale, noise * scale), shape)


def _window(buffer: Any, shape: tuple[int, ...]) -> Any:
    """Return a tensor of the given shape whose rows are overlapping windows of ``buffer``."""
    import torch

    step = min(8191, (_BUFFER - math.prod(shape[1:])) // max(1, shape[0] - 1))
    return torch.as_strided(buffer, shape, (step, *torch.empty(shape[1:], device="meta").stride()))


def main(models: Path) -> None:
    """Write every file below ``models``."""
    import torch

    for place, modules in _modules().items():
        path = models / place
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_weights(modules), path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main(Path(sys.argv[1]))
