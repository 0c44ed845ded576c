"""Workflows with IMAGE and MASK."""

from __future__ import annotations

from samples.conformance.workflow import Draw, Drawing, Node

__all__ = ["IMAGES"]


def _picture(w: Drawing) -> Node:
    return w.node("LoadImage", image="picture.png")


def _gradient(w: Drawing, seed: int = 1) -> Node:
    plain = w.node("EmptyImage", width=48, height=32, batch_size=2, color=0x336699)
    return w.node("ImageAddNoise", image=plain, seed=seed, strength=0.5)


def _filters(w: Drawing) -> None:
    picture, other = _picture(w), _gradient(w)
    with w.part():
        scaled = w.node("ImageScale", image=picture, upscale_method="lanczos", width=96, height=64, crop="center")
        same = w.node("ImageScale", image=other, upscale_method="bicubic", width=96, height=64, crop="disabled")
        one = w.node("ImageFromBatch", image=same, batch_index=1, length=1)
        blend = w.node("ImageBlend", image1=scaled, image2=one, blend_factor=0.3, blend_mode="overlay")
        blur = w.node("ImageBlur", image=blend, blur_radius=3, sigma=1.5)
        few = w.node("ImageQuantize", image=blur, colors=16, dither="floyd-steinberg")
    w.capture(few)
    w.node("SaveImage", images=few, filename_prefix="filters")


def _crops(w: Drawing) -> None:
    """A crop is a view with gaps; remote results must not depend on that."""
    picture = _picture(w)
    crop = w.node("ImageCrop", image=picture, width=32, height=24, x=7, y=5)
    with w.part():
        flipped = w.node("ImageFlip", image=crop, flip_method="x-axis: vertically")
        turned = w.node("ImageRotate", image=flipped, rotation="90 degrees")
        inner = w.node("ImageCrop", image=crop, width=16, height=16, x=3, y=2)
    sharp = w.node("ImageSharpen", image=turned, sharpen_radius=2, sigma=1.0, alpha=1.5)
    w.capture(turned, inner, sharp)


def _batches(w: Drawing) -> None:
    picture, other = _picture(w), _gradient(w)
    with w.part():
        many = w.node("RepeatImageBatch", image=picture, amount=3)
        joined = w.node("ImageBatch", image1=many, image2=other)
        grown = w.node("BatchImagesNode", **{"images.image0": joined, "images.image1": picture})
        size = w.node("GetImageSize", image=grown)
    w.capture(joined, grown, size[0], size[1], size[2])


def _composite(w: Drawing) -> None:
    picture, other = _picture(w), _gradient(w)
    mask = w.node("FeatherMask", mask=w.node("SolidMask", value=0.8, width=24, height=24), left=5, top=5, right=5, bottom=5)
    with w.part():
        small = w.node("ImageScale", image=other, upscale_method="area", width=24, height=24, crop="disabled")
        pasted = w.node("ImageCompositeMasked", destination=picture, source=small, x=10, y=8, resize_source=False, mask=mask)
        padded = w.node("ImagePadForOutpaint", image=pasted, left=8, top=0, right=8, bottom=16, feathering=6)
    w.capture(pasted, padded[0], padded[1])
    w.node("SaveImage", images=padded[0], filename_prefix="composite")


def _edges(w: Drawing) -> None:
    picture = _picture(w)
    with w.part():
        edges = w.node("Canny", image=picture, low_threshold=0.1, high_threshold=0.3)
        thick = w.node("Morphology", image=edges, operation="dilate", kernel_size=3)
        inverse = w.node("ImageInvert", image=thick)
    w.capture(edges, thick, inverse)


def _colours(w: Drawing) -> None:
    picture, other = _picture(w), _gradient(w)
    with w.part():
        bright = w.node("AdjustBrightness", images=picture, factor=1.3)
        moved = w.node("ColorTransfer", image_target=other, image_ref=bright, method="reinhard_lab", source_stats="per_frame", strength=0.7)
        stitched = w.node(
            "ImageStitch", image1=moved, image2=bright, direction="down", match_image_size=True, spacing_width=4, spacing_color="red"
        )
    w.capture(bright, moved, stitched)


def _alpha(w: Drawing) -> None:
    picture = _picture(w)
    with w.part():
        joined = w.node("JoinImageWithAlpha", image=picture[0], alpha=picture[1])
        split = w.node("SplitImageWithAlpha", image=joined)
        over = w.node(
            "PorterDuffImageComposite",
            source=split[0],
            source_alpha=split[1],
            destination=split[0],
            destination_alpha=picture[1],
            mode="XOR",
        )
    w.capture(joined, split[0], split[1], over[0], over[1])


def _masks(w: Drawing) -> None:
    loaded = w.node("LoadImageMask", image="picture.png", channel="red")
    square = w.node("SolidMask", value=1.0, width=20, height=20)
    with w.part():
        grown = w.node("GrowMask", mask=square, expand=-3, tapered_corners=True)
        joined = w.node("MaskComposite", destination=loaded, source=grown, x=9, y=7, operation="subtract")
        hard = w.node("ThresholdMask", mask=joined, value=0.4)
        other = w.node("InvertMask", mask=w.node("CropMask", mask=hard, x=3, y=1, width=24, height=16))
    w.capture(joined, hard, other)


def _masks_and_images(w: Drawing) -> None:
    picture = _picture(w)
    mask = w.node("ImageToMask", image=picture, channel="green")
    with w.part():
        back = w.node("MaskToImage", mask=mask)
        colour = w.node("ImageColorToMask", image=picture, color=0x000000)
        both = w.node("BatchMasksNode", **{"masks.mask0": mask, "masks.mask1": colour})
    w.capture(back, colour, both)


def _resized(w: Drawing) -> None:
    """The type of this node's output follows its input."""
    picture = _picture(w)
    with w.part():
        inputs = {"resize_type": "scale by multiplier", "resize_type.multiplier": 1.5, "scale_method": "bilinear"}
        image = w.node("ResizeImageMaskNode", input=picture[0], **inputs)
        mask = w.node("ResizeImageMaskNode", input=picture[1], **inputs)
    w.capture(image, mask)


def _upload_stays(w: Drawing) -> None:
    """The file exists on one server only; the same part saves its results there and returns them."""
    picture = _picture(w)
    with w.part():
        saved = w.node("SaveImage", images=w.node("ImageInvert", image=picture), filename_prefix="there")
    w.capture(saved)
    w.node("SaveImage", images=saved, filename_prefix="here")


def _layers(w: Drawing) -> None:
    picture, other = _picture(w), _gradient(w)
    mask = w.node("SolidMask", value=0.5, width=48, height=32)
    first = w.node("AddLayer", image=picture, name="ground")
    with w.part():
        second = w.node(
            "AddLayer", image=other, mask=mask, layers=first, name="sky", x=5, y=3, opacity=0.5, blend_mode="multiply", rotation=12.5
        )
    painted = w.node("ImageCompositor", layers=second, compositor={})
    w.capture(second, painted[0], painted[1])


def _two_frames(w: Drawing) -> None:
    """Results of both types from one part without inputs."""
    with w.part():
        image = w.node("EmptyImage", width=40, height=24, batch_size=3, color=0x10FF80)
        noisy = w.node("ImageAddNoise", image=image, seed=123456789012345, strength=0.25)
        mask = w.node("SolidMask", value=0.123456789, width=40, height=24)
    w.capture(noisy, mask)


IMAGES: dict[str, Draw] = {
    "scale, blend, blur and quantize": _filters,
    "crops with gaps in memory": _crops,
    "image batches": _batches,
    "a masked composite with padding": _composite,
    "edges and morphology": _edges,
    "colours matched and stitched": _colours,
    "alpha split and composed": _alpha,
    "masks grown, combined and cut": _masks,
    "masks and images into each other": _masks_and_images,
    "types that follow their input": _resized,
    "an upload here, a save on both sides": _upload_stays,
    "layers composed": _layers,
    "a part without inputs": _two_frames,
}
