"""Workflows with CONDITIONING, made by a text encoder on the first server."""

from __future__ import annotations

from samples.conformance.workflow import Draw, Drawing, Node

__all__ = ["CONDITIONING", "checkpoint", "text"]


def checkpoint(w: Drawing) -> Node:
    """Return MODEL, CLIP and VAE of the small checkpoint."""
    return w.node("CheckpointLoaderSimple", ckpt_name="tiny.ckpt")


def text(w: Drawing, loaded: Node, words: str) -> Node:
    """Return the text encoding of ``words``."""
    return w.node("CLIPTextEncode", clip=loaded[1], text=words)


def _two(w: Drawing) -> tuple[Node, Node]:
    loaded = checkpoint(w)
    return text(w, loaded, "an ash tree above the clouds"), text(w, loaded, "three (wells:1.3) at its roots")


def _areas(w: Drawing) -> None:
    tree, wells = _two(w)
    mask = w.node("SolidMask", value=0.7, width=64, height=64)
    with w.part():
        area = w.node("ConditioningSetArea", conditioning=tree, width=64, height=64, x=8, y=0, strength=0.7)
        percent = w.node("ConditioningSetAreaPercentage", conditioning=wells, width=0.5, height=0.25, x=0.1, y=0.0, strength=1.0)
        stronger = w.node("ConditioningSetAreaStrength", conditioning=percent, strength=0.4)
        masked = w.node("ConditioningSetMask", conditioning=stronger, mask=mask, strength=0.9, set_cond_area="mask bounds")
        both = w.node("ConditioningCombine", conditioning_1=area, conditioning_2=masked)
    w.capture(area, percent, both)


def _mixes(w: Drawing) -> None:
    tree, wells = _two(w)
    with w.part():
        long = w.node("ConditioningConcat", conditioning_to=tree, conditioning_from=wells)
        mean = w.node("ConditioningAverage", conditioning_to=tree, conditioning_from=wells, conditioning_to_strength=0.35)
        loud = w.node("ConditioningMultiply", conditioning=mean, multiplier=1.7)
        none = w.node("ConditioningZeroOut", conditioning=long)
    w.capture(long, mean, loud, none)


def _times(w: Drawing) -> None:
    tree, wells = _two(w)
    ranges = w.node("ConditioningTimestepsRange", start_percent=0.25, end_percent=0.75)
    with w.part():
        early = w.node("ConditioningSetTimestepRange", conditioning=tree, start=0.0, end=0.4)
        pair = w.node(
            "PairConditioningSetProperties",
            positive_NEW=early,
            negative_NEW=wells,
            strength=0.8,
            set_cond_area="default",
            timesteps=ranges[1],
        )
    w.capture(early, pair[0], pair[1], ranges[0])


def _references(w: Drawing) -> None:
    tree, _ = _two(w)
    latent = w.node("LoadLatent", latent="noise.latent")
    with w.part():
        once = w.node("ReferenceLatent", conditioning=tree, latent=latent)
        guided = w.node("FluxGuidance", conditioning=once, guidance=3.5)
    twice = w.node("ReferenceLatent", conditioning=guided, latent=latent)
    w.capture(once, twice)


def _rates(w: Drawing) -> None:
    tree, wells = _two(w)
    latent = w.node("LoadLatent", latent="noise.latent")
    with w.part():
        timed = w.node("LTXVConditioning", positive=tree, negative=wells, frame_rate=23.976)
        staged = w.node("StableCascade_StageB_Conditioning", conditioning=timed[0], stage_c=latent)
    w.capture(timed[0], timed[1], staged)


def _inpaint(w: Drawing) -> None:
    """Conditioning that carries latents of a remote VAE."""
    tree, wells = _two(w)
    picture = w.node("LoadImage", image="picture.png")
    with w.part():
        vae = checkpoint(w)
        made = w.node(
            "InpaintModelConditioning", positive=tree, negative=wells, vae=vae[2], pixels=picture[0], mask=picture[1], noise_mask=True
        )
    w.capture(made[0], made[1], made[2])


def _seen(w: Drawing) -> None:
    """An image encoded locally and used remotely: CLIP_VISION_OUTPUT inside CONDITIONING and on a separate port."""
    tree, _ = _two(w)
    vision = w.node("CLIPVisionLoader", clip_name="tiny.pt")
    seen = w.node("CLIPVisionEncode", clip_vision=vision, image=w.node("LoadImage", image="picture.png"), crop="center")
    with w.part():
        known = w.node("unCLIPConditioning", conditioning=tree, clip_vision_output=seen, strength=1.0, noise_augmentation=0.1)
    w.capture(known, seen)


def _heard(w: Drawing) -> None:
    """A sound encoded locally and used remotely: AUDIO_ENCODER_OUTPUT."""
    tree, wells = _two(w)
    encoder = w.node("AudioEncoderLoader", audio_encoder_name="tiny.pt")
    heard = w.node("AudioEncoderEncode", audio_encoder=encoder, audio=w.node("LoadAudio", audio="sound.wav"))
    sizes = {"width": 64, "height": 64, "length": 5, "batch_size": 1}
    with w.part():
        vae = checkpoint(w)
        made = w.node("WanSoundImageToVideo", positive=tree, negative=wells, vae=vae[2], audio_encoder_output=heard, **sizes)
    w.capture(made[0], made[1], made[2], heard)


def _camera(w: Drawing) -> None:
    """A camera path, made locally and remotely: WAN_CAMERA_EMBEDDING."""
    tree, wells = _two(w)
    camera = w.node("WanCameraEmbedding", camera_pose="Zoom In", width=64, height=64, length=5)
    sizes = {"width": 64, "height": 64, "length": 5, "batch_size": 1}
    with w.part():
        vae = checkpoint(w)
        made = w.node("WanCameraImageToVideo", positive=tree, negative=wells, vae=vae[2], camera_conditions=camera, **sizes)
        other = w.node("WanCameraEmbedding", camera_pose="Pan Up", width=64, height=32, length=5)
    w.capture(made[0], made[1], made[2], camera, other)


CONDITIONING: dict[str, Draw] = {
    "areas and masks in conditioning": _areas,
    "conditioning joined and mixed": _mixes,
    "conditioning over time": _times,
    "conditioning with reference latents": _references,
    "conditioning with rates and stages": _rates,
    "conditioning for inpainting": _inpaint,
    "an image seen here and used there": _seen,
    "a sound heard here and used there": _heard,
    "a camera's way": _camera,
}
