"""Workflows with LATENT, SIGMAS and schedules, without a model."""

from __future__ import annotations

from samples.conformance.workflow import Draw, Drawing, Node

__all__ = ["LATENTS"]


def _latent(w: Drawing, batch: int = 4) -> Node:
    """Return a latent with reproducible noise."""
    return (
        w.node("LoadLatent", latent="noise.latent")
        if batch == 1
        else w.node("RepeatLatentBatch", samples=w.node("LoadLatent", latent="noise.latent"), amount=batch)
    )


def _shapes(w: Drawing) -> None:
    latent = _latent(w, 1)
    with w.part():
        larger = w.node("LatentUpscale", samples=latent, upscale_method="bislerp", width=128, height=96, crop="disabled")
        flipped = w.node("LatentFlip", samples=larger, flip_method="y-axis: horizontally")
        turned = w.node("LatentRotate", samples=flipped, rotation="270 degrees")
        cut = w.node("LatentCrop", samples=turned, width=64, height=64, x=8, y=16)
    w.capture(larger, turned, cut)


def _composites(w: Drawing) -> None:
    latent = _latent(w, 2)
    empty = w.node("EmptyLatentImage", width=64, height=64, batch_size=2)
    mask = w.node("SolidMask", value=0.6, width=32, height=32)
    with w.part():
        small = w.node("LatentUpscaleBy", samples=latent, upscale_method="bilinear", scale_by=0.5)
        pasted = w.node("LatentComposite", samples_to=empty, samples_from=small, x=16, y=8, feather=8)
        masked = w.node("LatentCompositeMasked", destination=pasted, source=latent, x=0, y=0, resize_source=False, mask=mask)
    w.capture(pasted, masked)


def _masked(w: Drawing) -> None:
    """Noise masks, and the indices of batch members."""
    latent = _latent(w)
    mask = w.node("SolidMask", value=0.5, width=64, height=64)
    with w.part():
        some = w.node("LatentFromBatch", samples=latent, batch_index=1, length=2)
        masked = w.node("SetLatentNoiseMask", samples=some, mask=mask)
        again = w.node("RepeatLatentBatch", samples=masked, amount=2)
    fixed = w.node("LatentBatchSeedBehavior", samples=again, seed_behavior="fixed")
    w.capture(some, masked, again, fixed)


def _arithmetic(w: Drawing) -> None:
    latent = _latent(w, 1)
    with w.part():
        half = w.node("LatentMultiply", samples=latent, multiplier=0.3)
        total = w.node("LatentAdd", samples1=latent, samples2=half)
        rest = w.node("LatentSubtract", samples1=total, samples2=half)
        between = w.node("LatentInterpolate", samples1=total, samples2=rest, ratio=0.25)
        blend = w.node("LatentBlend", samples1=between, samples2=latent, blend_factor=0.5)
        batch = w.node("LatentBatch", samples1=blend, samples2=rest)
    w.capture(total, rest, between, batch)


def _nested(w: Drawing) -> None:
    """Image and sound in one latent."""
    video = w.node("EmptyLTXVLatentVideo", width=64, height=64, length=9, batch_size=1)
    audio = _latent(w, 1)
    both = w.node("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)
    with w.part():
        apart = w.node("LTXVSeparateAVLatent", av_latent=both)
        again = w.node("LTXVConcatAVLatent", video_latent=apart[0], audio_latent=w.node("LatentMultiply", samples=apart[1], multiplier=0.5))
    w.capture(both, apart[0], again)


def _other_latents(w: Drawing) -> None:
    with w.part():
        picture = w.node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        video = w.node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1)
        audio = w.node("EmptyLatentAudio", seconds=2.0, batch_size=1)
    longer = w.node("LatentConcat", samples1=video, samples2=video, dim="t")
    w.capture(picture, video, audio, longer)


def _saved(w: Drawing) -> None:
    latent = _latent(w, 1)
    with w.part():
        scaled = w.node("LatentMultiply", samples=latent, multiplier=1.5)
    w.node("SaveLatent", samples=scaled, filename_prefix="latents/kept")
    w.capture(scaled)


def _schedules(w: Drawing) -> None:
    with w.part():
        karras = w.node("KarrasScheduler", steps=9, sigma_max=14.6, sigma_min=0.03, rho=7.0)
        laplace = w.node("LaplaceScheduler", steps=7, sigma_max=14.6, sigma_min=0.03, mu=0.0, beta=0.5)
        vp = w.node("VPScheduler", steps=5, beta_d=19.9, beta_min=0.1, eps_s=0.001)
        steps = w.node("AlignYourStepsScheduler", model_type="SDXL", steps=6, denoise=0.8)
    w.capture(karras, laplace, vp, steps)


def _sigmas(w: Drawing) -> None:
    sigmas = w.node("ExponentialScheduler", steps=12, sigma_max=14.6, sigma_min=0.03)
    with w.part():
        halves = w.node("SplitSigmas", sigmas=sigmas, step=5)
        parts = w.node("SplitSigmasDenoise", sigmas=sigmas, denoise=0.4)
        back = w.node("FlipSigmas", sigmas=halves[1])
        first = w.node("SetFirstSigma", sigmas=halves[0], sigma=20.0)
        more = w.node("ExtendIntermediateSigmas", sigmas=first, steps=2, start_at_sigma=-1.0, end_at_sigma=2.0, spacing="cosine")
    w.capture(halves[0], halves[1], parts[1], back, more)


LATENTS: dict[str, Draw] = {
    "latents scaled, turned and cut": _shapes,
    "latents composed": _composites,
    "noise masks and batch numbers": _masked,
    "latent arithmetic": _arithmetic,
    "a latent of picture and sound": _nested,
    "empty latents of other models": _other_latents,
    "a latent saved": _saved,
    "schedules": _schedules,
    "sigmas split, turned and extended": _sigmas,
}
