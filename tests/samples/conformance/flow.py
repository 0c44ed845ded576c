"""Workflows with special shapes: lists, blocked values, several remote graphs in parallel and in sequence."""

from __future__ import annotations

from samples.conformance.models import TRAINING
from samples.conformance.values import WORDS
from samples.conformance.workflow import Draw, Drawing, Node

__all__ = ["FLOW"]


def _image(w: Drawing, seed: int, size: int = 32) -> Node:
    plain = w.node("EmptyImage", width=size, height=size, batch_size=1, color=0x804020)
    return w.node("ImageAddNoise", image=plain, seed=seed, strength=0.5)


def _list(w: Drawing) -> None:
    """Three values on one link: the remote nodes run once for each, and three values return."""
    images = w.node("CreateList", **{f"inputs.input{index}": _image(w, index, 16 + 8 * index) for index in range(3)})
    with w.part():
        inverse = w.node("ImageInvert", image=images)
        size = w.node("GetImageSize", image=inverse)
    again = w.node("ImageBlur", image=inverse, blur_radius=1, sigma=1.0)
    w.capture(images, inverse, size[0], again)


def _list_made(w: Drawing) -> None:
    """A list made locally and joined remotely, and vice versa."""
    image = _image(w, 10, 128)
    with w.part():
        tiles = w.node("SplitImageToTileList", image=image, tile_width=64, tile_height=64, overlap=8)
    merged = w.node("ImageMergeTileList", image_list=tiles, final_width=128, final_height=128, overlap=8)
    w.capture(tiles, merged)


def _list_rebatched(w: Drawing) -> None:
    batch = w.node("RepeatImageBatch", image=_image(w, 5), amount=5)
    singles = w.node("RebatchImages", images=batch, batch_size=1)
    with w.part():
        pairs = w.node("RebatchImages", images=singles, batch_size=2)
        joined = w.node("RebatchImages", images=singles, batch_size=8)
    w.capture(pairs, joined)


def _lists_zipped(w: Drawing) -> None:
    """Lists of unequal length on two ports: the shorter one repeats its last value."""
    images = w.node("CreateList", **{f"inputs.input{index}": _image(w, index) for index in range(3)})
    others = w.node("CreateList", **{f"inputs.input{index}": _image(w, 9 + index) for index in range(2)})
    with w.part():
        blend = w.node("ImageBlend", image1=images, image2=others, blend_factor=0.5, blend_mode="screen")
    w.capture(blend)


def _blocked_out(w: Drawing) -> None:
    """A value that is blocked remotely blocks only its dependants."""
    image = _image(w, 1)
    with w.part():
        none = w.node("ConformanceBlocked", value=image, block=True)
        some = w.node("ImageInvert", image=image)
    w.capture(w.node("ImageInvert", image=none), some)


def _blocked_one_of(w: Drawing) -> None:
    """A value that passes a node which could block it."""
    image = _image(w, 2)
    with w.part():
        through = w.node("ConformanceBlocked", value=image, block=False)
        none = w.node("ConformanceBlocked", value=through, block=True)
        after = w.node("ImageInvert", image=none)
    w.capture(through, after)


def _parallel(w: Drawing) -> None:
    """Two remote graphs on two servers and local work in parallel."""
    image = _image(w, 3)
    with w.part(1):
        left = w.node("ImageBlur", image=image, blur_radius=4, sigma=2.0)
    with w.part(2):
        right = w.node("ImageSharpen", image=image, sharpen_radius=2, sigma=1.0, alpha=1.0)
    here = w.node("ImageInvert", image=image)
    both = w.node("ImageBlend", image1=left, image2=right, blend_factor=0.5, blend_mode="multiply")
    w.capture(left, right, here, w.node("ImageBlend", image1=both, image2=here, blend_factor=0.25, blend_mode="normal"))


def _parallel_on_one(w: Drawing) -> None:
    """Three remote graphs on one server in parallel."""
    image = _image(w, 4)
    results = []
    for radius in (1, 2, 3):
        with w.part(1):
            results.append(w.node("ImageBlur", image=image, blur_radius=radius, sigma=1.0))
    w.capture(*results)


def _chain(w: Drawing) -> None:
    """The second server continues with the result of the first."""
    image = _image(w, 6)
    with w.part(1):
        large = w.node("ImageScaleBy", image=image, upscale_method="bicubic", scale_by=2.0)
    with w.part(2):
        few = w.node("ImageQuantize", image=large, colors=8, dither="none")
    w.capture(large, w.node("ImageInvert", image=few))


def _back_and_forth(w: Drawing) -> None:
    """Remote, local and remote again, where the second part also gets an input of the first."""
    image = _image(w, 7)
    with w.part(1):
        first = w.node("ImageInvert", image=image)
    here = w.node("ImageBlur", image=first, blur_radius=2, sigma=1.0)
    with w.part(1):
        second = w.node("ImageBlend", image1=here, image2=image, blend_factor=0.3, blend_mode="soft_light")
    w.capture(first, second)


def _diamond(w: Drawing) -> None:
    """One value used by two remote graphs whose results meet in a third."""
    image = _image(w, 8)
    with w.part(1):
        mask = w.node("ImageToMask", image=image, channel="red")
    with w.part(2):
        inverse = w.node("ImageInvert", image=image)
    with w.part(1):
        met = w.node("ImageCompositeMasked", destination=image, source=inverse, x=0, y=0, resize_source=False, mask=mask)
    w.capture(met)


def _seeds(w: Drawing) -> None:
    """Random numbers are the same as in a local run, and a list of seeds gives as many draws."""
    seeds = w.node(
        "CreateList", **{f"inputs.input{index}": w.node("PrimitiveInt", value=seed) for index, seed in enumerate((0, 7, 1 << 40))}
    )
    image = w.node("EmptyImage", width=24, height=24, batch_size=1, color=0x808080)
    with w.part():
        noisy = w.node("ImageAddNoise", image=image, seed=seeds, strength=0.5)
        again = w.node("ImageAddNoise", image=noisy, seed=(1 << 63) - 1, strength=0.1)
    w.capture(noisy, again)


def _many_ports(w: Drawing) -> None:
    """Twelve inputs, twelve outputs."""
    images = [_image(w, index, 8) for index in range(12)]
    with w.part():
        results = [w.node("ImageInvert", image=image) for image in images]
    w.capture(*results)


def _there_and_back(w: Drawing) -> None:
    """Values of many types are sent and returned unchanged."""
    picture = w.node("LoadImage", image="picture.png")
    vision = w.node("CLIPVisionLoader", clip_name="tiny.pt")
    encoder = w.node("AudioEncoderLoader", audio_encoder_name="tiny.pt")
    box = w.node("PrimitiveBoundingBox", x=4, y=5, width=20, height=12)
    boxes = w.node("CreateBoundingBoxes", width=64, height=64, editor_state={"__value__": []}, bboxes=box)
    voxel = w.node("ConformanceSource", kind="VOXEL")
    mesh = w.node("VoxelToMeshBasic", voxel=voxel, threshold=0.2)
    loaded = w.node("CheckpointLoaderSimple", ckpt_name="tiny.ckpt")
    trained = w.node(
        "TrainLoraNode", model=loaded[0], latents=w.node("LoadLatent", latent="noise.latent"), positive=_words(w, loaded), **TRAINING
    )
    values = [
        w.node("CLIPVisionEncode", clip_vision=vision, image=picture, crop="center"),
        w.node("AudioEncoderEncode", audio_encoder=encoder, audio=w.node("LoadAudio", audio="sound.wav")),
        w.node("ImageHistogram", image=picture),
        w.node("ConditioningTimestepsRange", start_percent=0.25, end_percent=0.75),
        w.node("KarrasScheduler", steps=9, sigma_max=14.6, sigma_min=0.03, rho=7.0),
        w.node("BuildJsonPromptIdeogram", element=boxes[2], style="photo", **{"style.photo": "35mm"}, **WORDS),
        w.node("ColorToRGBInt", color="#336699aa")[1],
        w.node("MeshToFile3D", mesh=mesh),
        w.node("GetICLoRAParameters", iclora_model=loaded[0]),
        w.node("LoadVideo", file="clip.mp4"),
        w.node("PrimitiveBoolean", value=True),
        w.node("PrimitiveFloat", value=0.1),
        w.node("PrimitiveString", value="Huginn"),
        box,
        boxes[2],
        voxel,
        trained[0],
        trained[1],
    ]
    with w.part():
        same = [w.node("ComfySwitchNode", switch=True, on_false=value, on_true=value) for value in values]
    w.capture(*same)


def _words(w: Drawing, loaded: Node) -> Node:
    return w.node("CLIPTextEncode", clip=loaded[1], text="a raven")


FLOW: dict[str, Draw] = {
    "a list on a port": _list,
    "a list made there": _list_made,
    "a list put into other batches": _list_rebatched,
    "two lists of unequal length": _lists_zipped,
    "one of two outputs blocked": _blocked_out,
    "blocked or let through": _blocked_one_of,
    "two servers at the same time": _parallel,
    "three graphs on one server at the same time": _parallel_on_one,
    "a chain over two servers": _chain,
    "there, here and there again": _back_and_forth,
    "a diamond over two servers": _diamond,
    "seeds": _seeds,
    "twelve ports": _many_ports,
    "values of many types there and back": _there_and_back,
}
