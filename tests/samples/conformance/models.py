"""Workflows with a checkpoint: objects that are not transferable are loaded where they are used."""

from __future__ import annotations

from samples.conformance.conditioning import checkpoint, text
from samples.conformance.workflow import Draw, Drawing, Node

__all__ = ["MODELS", "PREVIEWED", "TRAINING"]

#: The settings of a short training.
TRAINING = {
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "steps": 2,
    "learning_rate": 0.001,
    "rank": 2,
    "optimizer": "SGD",
    "loss_function": "MSE",
    "seed": 3,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}


def _settings(sampler: str = "euler", **other: object) -> dict[str, object]:
    settings = {"seed": 42, "steps": 4, "cfg": 4.0, "sampler_name": sampler, "scheduler": "normal", "denoise": 1.0}
    return {**settings, **other}


def _empty(w: Drawing) -> Node:
    return w.node("EmptyLatentImage", width=64, height=64, batch_size=1)


def _text_to_image(w: Drawing) -> None:
    """Everything remote, the image local."""
    with w.part():
        loaded = checkpoint(w)
        good, bad = text(w, loaded, "an ash tree"), text(w, loaded, "fog")
        latent = w.node("KSampler", model=loaded[0], positive=good, negative=bad, latent_image=_empty(w), **_settings("euler_ancestral"))
        image = w.node("VAEDecode", samples=latent, vae=loaded[2])
    w.node("SaveImage", images=image, filename_prefix="tree")
    w.capture(latent, image)


def _sampled_there(w: Drawing) -> None:
    """Text encoding and image local, sampling remote."""
    loaded = checkpoint(w)
    good, bad = text(w, loaded, "an ash tree"), text(w, loaded, "fog")
    empty = _empty(w)
    with w.part():
        model = checkpoint(w)
        latent = w.node("KSampler", model=model[0], positive=good, negative=bad, latent_image=empty, **_settings("dpmpp_2m"))
    w.capture(latent, w.node("VAEDecode", samples=latent, vae=loaded[2]))


def _image_to_image(w: Drawing) -> None:
    """A local image encoded remotely, and a batch sampled with separate noise for each member."""
    picture = w.node("LoadImage", image="picture.png")
    with w.part():
        loaded = checkpoint(w)
        latent = w.node(
            "VAEEncode",
            pixels=w.node("ImageScale", image=picture, upscale_method="area", width=64, height=64, crop="center"),
            vae=loaded[2],
        )
        batch = w.node("RepeatLatentBatch", samples=latent, amount=2)
        good, bad = text(w, loaded, "an eagle"), text(w, loaded, "")
        drawn = w.node("KSampler", model=loaded[0], positive=good, negative=bad, latent_image=batch, **_settings("euler", denoise=0.6))
    w.capture(latent, drawn)


def _inpainted(w: Drawing) -> None:
    picture = w.node("LoadImage", image="picture.png")
    loaded = checkpoint(w)
    latent = w.node("VAEEncodeForInpaint", pixels=picture[0], vae=loaded[2], mask=picture[1], grow_mask_by=4)
    good = text(w, loaded, "a squirrel")
    with w.part():
        model = checkpoint(w)
        drawn = w.node("KSampler", model=model[0], positive=good, negative=good, latent_image=latent, **_settings("heun", steps=2))
    w.capture(latent, drawn)


def _two_passes(w: Drawing) -> None:
    """The first steps local, the remaining ones remote, with the leftover noise."""
    loaded = checkpoint(w)
    good, bad = text(w, loaded, "a hall"), text(w, loaded, "fog")
    shared = {"noise_seed": 5, "steps": 6, "cfg": 3.0, "sampler_name": "euler", "scheduler": "karras"}
    first = w.node(
        "KSamplerAdvanced",
        model=loaded[0],
        positive=good,
        negative=bad,
        latent_image=_empty(w),
        add_noise="enable",
        start_at_step=0,
        end_at_step=3,
        return_with_leftover_noise="enable",
        **shared,
    )
    with w.part():
        model = checkpoint(w)
        last = w.node(
            "KSamplerAdvanced",
            model=model[0],
            positive=good,
            negative=bad,
            latent_image=first,
            add_noise="disable",
            start_at_step=3,
            end_at_step=10000,
            return_with_leftover_noise="disable",
            **shared,
        )
    w.capture(first, last)


def _custom(w: Drawing) -> None:
    """Noise, guider and sampler are code and are made remotely; the sigmas are local."""
    loaded = checkpoint(w)
    good = text(w, loaded, "a root")
    sigmas = w.node("BasicScheduler", model=loaded[0], scheduler="simple", steps=4, denoise=1.0)
    empty = _empty(w)
    with w.part():
        model = checkpoint(w)
        guider = w.node("CFGGuider", model=model[0], positive=good, negative=good, cfg=2.0)
        noise = w.node("RandomNoise", noise_seed=99)
        sampler = w.node("KSamplerSelect", sampler_name="dpmpp_sde")
        drawn = w.node("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=empty)
    w.capture(drawn[0], drawn[1], sigmas)


def _areas(w: Drawing) -> None:
    """Conditioning with areas, masks and time ranges in a remote sampler."""
    loaded = checkpoint(w)
    tree, sky = text(w, loaded, "a tree"), text(w, loaded, "the sky")
    left = w.node("ConditioningSetArea", conditioning=tree, width=64, height=64, x=0, y=0, strength=0.9)
    mask = w.node("SolidMask", value=0.5, width=96, height=64)
    right = w.node("ConditioningSetMask", conditioning=sky, mask=mask, strength=0.8, set_cond_area="default")
    early = w.node("ConditioningSetTimestepRange", conditioning=right, start=0.0, end=0.6)
    both = w.node("ConditioningCombine", conditioning_1=left, conditioning_2=early)
    empty = w.node("EmptyLatentImage", width=96, height=64, batch_size=1)
    with w.part():
        model = checkpoint(w)
        drawn = w.node("KSampler", model=model[0], positive=both, negative=sky, latent_image=empty, **_settings("euler"))
    w.capture(drawn)


def _trained(w: Drawing) -> None:
    """A LoRA trained remotely and used locally: LORA_MODEL and LOSS_MAP are returned."""
    latent = w.node("LoadLatent", latent="noise.latent")
    with w.part():
        loaded = checkpoint(w)
        trained = w.node("TrainLoraNode", model=loaded[0], latents=latent, positive=text(w, loaded, "a tree"), **TRAINING)
    w.node("SaveLoRA", lora=trained[0], prefix="loras/there", steps=trained[2])
    w.capture(trained[0], trained[1], trained[2])


def _parameters(w: Drawing) -> None:
    """A value that a node reads from a model: IC_LORA_PARAMETERS."""
    with w.part():
        loaded = checkpoint(w)
        parameters = w.node("GetICLoRAParameters", iclora_model=loaded[0])
        sigma = w.node("SamplingPercentToSigma", model=loaded[0], sampling_percent=0.3, return_actual_sigma=True)
    w.capture(parameters, sigma)


def _chained(w: Drawing) -> None:
    """Text encoding on one server, sampling on another, the image local."""
    with w.part(1):
        loaded = checkpoint(w)
        good, bad = text(w, loaded, "a well"), text(w, loaded, "fog")
    with w.part(2):
        model = checkpoint(w)
        latent = w.node("KSampler", model=model[0], positive=good, negative=bad, latent_image=_empty(w), **_settings("euler"))
    here = checkpoint(w)
    w.capture(good, latent, w.node("VAEDecode", samples=latent, vae=here[2]))


MODELS: dict[str, Draw] = {
    "text to image": _text_to_image,
    "sampling alone": _sampled_there,
    "image to image": _image_to_image,
    "inpainting": _inpainted,
    "two passes of one sampling": _two_passes,
    "noise, guider and sampler": _custom,
    "areas and times through a sampler": _areas,
    "a LoRA trained": _trained,
    "parameters of a model": _parameters,
    "words, sampling and picture on three servers": _chained,
}

#: The workflow whose previews are waited for.
PREVIEWED = "text to image"
