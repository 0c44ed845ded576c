"""Real values of ComfyUI's links, most of them made by its nodes; runs inside ComfyUI's Python.

`LIVE` values are outputs of ComfyUI's nodes; `BUILT` values have types whose nodes need weights, or that no node creates.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = ["BUILT", "LIVE", "ValueFactory"]

_MODULES = (
    "audio audio_encoder bounding_boxes camera_trajectory color compositor curve custom_sampler edit_model flux gaussian_splat hooks hunyuan3d "
    "images json_prompt latent load_3d lt mask math mesh_postprocess post_processing primitive rebatch save_3d string video wan wanmove"
).split()
DRAWING = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="4" height="4"/></svg>'


class ValueFactory:
    """Calls ComfyUI's nodes, and holds a folder for input files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: Any = importlib.import_module("nodes")
        self.torch: Any = importlib.import_module("torch")
        self.api: Any = importlib.import_module("comfy_api.latest")
        asyncio.run(self._load())

    async def _load(self) -> None:
        extras = Path(str(self.nodes.__file__)).parent / "comfy_extras"
        for name in _MODULES:
            loaded = await self.nodes.load_custom_node(str(extras / f"nodes_{name}.py"), module_parent="comfy_extras")
            assert loaded, f"comfy_extras/nodes_{name}.py does not load"

    def call(self, node: str, /, **inputs: Any) -> tuple[Any, ...]:
        """Return the outputs of ``node``, called as the executor calls it."""
        cls = self.nodes.NODE_CLASS_MAPPINGS[node]
        if isinstance(getattr(cls, "FUNCTION", None), str) and cls.FUNCTION != "EXECUTE_NORMALIZED":
            result = getattr(cls(), cls.FUNCTION)(**inputs)
        else:
            result = cls.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
        outputs = getattr(result, "result", result)
        return tuple(outputs["result"] if isinstance(outputs, dict) else outputs)

    def noise(self, *shape: int) -> Any:
        """Return a reproducible tensor of normal noise."""
        return self.torch.randn(*shape, generator=self.torch.Generator().manual_seed(7))

    def image(self, count: int = 1, size: int = 32) -> Any:
        """Return an IMAGE with a gradient."""
        return self.torch.linspace(0, 1, count * size * size * 3).reshape(count, size, size, 3)

    def conditioning(self) -> Any:
        """Return a CONDITIONING as a text encoder returns it."""
        return [[self.noise(1, 77, 16), {"pooled_output": self.noise(1, 16)}]]

    def clip_vision(self, layers: int = 2) -> Any:
        """Return a CLIP_VISION with a few thousand random weights."""
        module: Any = importlib.import_module("comfy.clip_vision")
        config = dict.fromkeys(["hidden_size", "intermediate_size", "projection_dim"], 16)
        config |= {"num_hidden_layers": layers, "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "num_channels": 3}
        model = module.ClipVisionModel({**config, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"})
        return self._filled(model, model.model)

    def audio_encoder(self) -> Any:
        """Return an AUDIO_ENCODER with one small layer."""
        module: Any = importlib.import_module("comfy.audio_encoders.audio_encoders")
        sizes = {"embed_dim": 32, "num_heads": 2, "num_layers": 1}
        flags = {"conv_norm": False, "conv_bias": False, "do_normalize": False, "do_stable_layer_norm": False}
        model = module.AudioEncoderModel({"model_type": "wav2vec2", **sizes, **flags})
        return self._filled(model, model.model)

    def _filled(self, owner: Any, module: Any) -> Any:
        for parameter in module.parameters():
            self.torch.nn.init.normal_(parameter, std=0.05, generator=self.torch.Generator().manual_seed(3))
        return owner

    def video_file(self) -> str:
        """Return the name of a video in ComfyUI's input folder."""
        path = self.folder / "input" / "clip.mp4"
        if not path.exists():
            self.created_video(audio=True).save_to(str(path))
        return path.name

    def created_video(self, *, audio: bool = False, bit_depth: int = 8) -> Any:
        sound = self.call("EmptyAudio", duration=0.5, sample_rate=44100, channels=2)[0] if audio else None
        return self.call("CreateVideo", images=self.image(8), fps=23.976, audio=sound, bit_depth=bit_depth)[0]

    def splat(self) -> Any:
        shapes = {"positions": 3, "scales": 3, "rotations": 4, "opacities": 1}
        fields = {name: self.noise(1, 10, width).sigmoid() for name, width in shapes.items()}
        return self.api.Types.SPLAT(**fields, sh=self.noise(1, 10, 1, 3))

    def voxel(self) -> Any:
        return self.api.Types.VOXEL(self.noise(1, 6, 6, 6))

    def mesh(self) -> Any:
        return self.call("VoxelToMeshBasic", voxel=self.voxel(), threshold=0.2)[0]

    def model_file(self) -> str:
        path = self.folder / "input" / "3d" / "mesh.glb"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.call("MeshToFile3D", mesh=self.mesh())[0].get_bytes())
        return "3d/mesh.glb"


def _crop(factory: ValueFactory) -> Any:
    """Return a view with gaps, as from ImageCrop."""
    return factory.call("ImageCrop", image=factory.image(2), width=8, height=8, x=3, y=5)[0]


def _latent(factory: ValueFactory) -> Any:
    latent = factory.call("EmptyLatentImage", width=64, height=64, batch_size=4)[0]
    picked = factory.call("LatentFromBatch", samples=latent, batch_index=1, length=2)[0]
    mask = factory.call("SolidMask", value=0.5, width=64, height=64)[0]
    return factory.call("SetLatentNoiseMask", samples=picked, mask=mask)[0]


def _nested_latent(factory: ValueFactory) -> Any:
    video = factory.call("EmptyLTXVLatentVideo", width=64, height=64, length=9, batch_size=1)[0]
    audio = {"samples": factory.noise(1, 8, 10, 16), "sample_rate": 16000, "type": "audio"}
    return factory.call("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)[0]


def _area_conditioning(factory: ValueFactory) -> Any:
    first = factory.call("ConditioningSetArea", conditioning=factory.conditioning(), width=64, height=64, x=8, y=0, strength=0.7)[0]
    second = factory.call("ConditioningSetAreaPercentage", conditioning=first, width=0.5, height=0.25, x=0.1, y=0.0, strength=1.0)[0]
    mask = factory.call("SolidMask", value=1.0, width=8, height=8)[0]
    third = factory.call("ConditioningSetMask", conditioning=second, mask=mask, set_cond_area="mask bounds", strength=0.9)[0]
    timed = factory.call("ConditioningSetTimestepRange", conditioning=third, start=0.1, end=0.8)[0]
    return factory.call("ConditioningCombine", conditioning_1=timed, conditioning_2=first)[0]


def _reference_conditioning(factory: ValueFactory) -> Any:
    latent = factory.call("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    once = factory.call("ReferenceLatent", conditioning=factory.conditioning(), latent=latent)[0]
    twice = factory.call("ReferenceLatent", conditioning=once, latent={"samples": factory.noise(1, 4, 8, 8)})[0]
    return factory.call("FluxGuidance", conditioning=twice, guidance=3.5)[0]


def _vision(factory: ValueFactory) -> Any:
    return factory.call("CLIPVisionEncode", clip_vision=factory.clip_vision(), image=factory.image(2), crop="center")[0]


def _vision_conditioning(factory: ValueFactory) -> Any:
    inputs = {"conditioning": factory.conditioning(), "clip_vision_output": _vision(factory)}
    return factory.call("unCLIPConditioning", **inputs, strength=1.0, noise_augmentation=0.1)[0]


def _audio_encoder_output(factory: ValueFactory) -> Any:
    audio = {"waveform": factory.noise(1, 1, 16000), "sample_rate": 16000}
    return factory.call("AudioEncoderEncode", audio_encoder=factory.audio_encoder(), audio=audio)[0]


def _trimmed_audio(factory: ValueFactory) -> Any:
    audio = factory.call("EmptyAudio", duration=2.0, sample_rate=8000, channels=2)[0]
    return factory.call("TrimAudioDuration", audio=audio, start_index=0.5, duration=1.0)[0]


def _loaded_video(factory: ValueFactory) -> Any:
    return factory.call("LoadVideo", file=factory.video_file())[0]


def _sliced_video(factory: ValueFactory) -> Any:
    return factory.call("Video Slice", video=_loaded_video(factory), start_time=-0.2, duration=0.1, strict_duration=False)[0]


def _viewport(factory: ValueFactory) -> tuple[Any, ...]:
    camera = factory.call("CreateCameraInfo", mode={"mode": "orbit", "yaw": 30.0, "pitch": 10.0, "distance": 3.0}, **_CAMERA)[0]
    placed = {"position": {"x": 0, "y": 1.5, "z": 0}, "quaternion": {"x": 0, "y": 0, "z": 0, "w": 1}, "scale": {"x": 1, "y": 1, "z": 1}}
    state = {"camera_info": camera, "model_3d_info": [placed]}
    return factory.call("Load3DAdvanced", model_file=factory.model_file(), viewport_state=state, width=64, height=64)


_CAMERA = {"target_x": 0.0, "target_y": 0.5, "target_z": 0.0, "roll": 0.0, "fov": 50.0}
_POINTS = [(0.0, 0.0), (0.3, 0.1), (0.7, 0.95), (1.0, 1.0)]
_BOX = {"x": 4, "y": 5, "width": 10, "height": 12}

LIVE: dict[str, tuple[str, Callable[[ValueFactory], Any]]] = {
    "IMAGE of one colour": ("IMAGE", lambda k: k.call("EmptyImage", width=16, height=8, batch_size=2, color=0x336699)[0]),
    "IMAGE scaled": (
        "IMAGE",
        lambda k: k.call("ImageScale", image=k.image(), upscale_method="bilinear", width=20, height=12, crop="disabled")[0],
    ),
    "IMAGE cropped": ("IMAGE", _crop),
    "MASK": ("MASK", lambda k: k.call("SolidMask", value=0.3, width=8, height=8)[0]),
    "MASK of a channel": ("MASK", lambda k: k.call("ImageToMask", image=k.image(), channel="green")[0]),
    "SIGMAS": ("SIGMAS", lambda k: k.call("KarrasScheduler", steps=7, sigma_max=14.6, sigma_min=0.03, rho=7.0)[0]),
    "SIGMAS split": ("SIGMAS", lambda k: k.call("SplitSigmas", sigmas=k.noise(9), step=3)[1]),
    "WAN_CAMERA_EMBEDDING": (
        "WAN_CAMERA_EMBEDDING",
        lambda k: k.call("WanCameraEmbedding", camera_pose="Zoom In", width=32, height=32, length=5)[0],
    ),
    "LATENT with mask and batch index": ("LATENT", _latent),
    "LATENT of picture and sound": ("LATENT", _nested_latent),
    "CONDITIONING with areas, masks and ranges": ("CONDITIONING", _area_conditioning),
    "CONDITIONING with references and guidance": ("CONDITIONING", _reference_conditioning),
    "CONDITIONING with an image seen": ("CONDITIONING", _vision_conditioning),
    "CLIP_VISION_OUTPUT": ("CLIP_VISION_OUTPUT", _vision),
    "AUDIO_ENCODER_OUTPUT": ("AUDIO_ENCODER_OUTPUT", _audio_encoder_output),
    "AUDIO": ("AUDIO", lambda k: k.call("EmptyAudio", duration=0.1, sample_rate=44100, channels=2)[0]),
    "AUDIO trimmed": ("AUDIO", _trimmed_audio),
    "VIDEO created": ("VIDEO", lambda k: k.created_video()),
    "VIDEO created with sound, ten bits": ("VIDEO", lambda k: k.created_video(audio=True, bit_depth=10)),
    "VIDEO from a file": ("VIDEO", _loaded_video),
    "VIDEO from the end of a file": ("VIDEO", _sliced_video),
    "VIDEO as components": ("AUDIO", lambda k: k.call("GetVideoComponents", video=_loaded_video(k))[1]),
    "COMBO": ("COMBO", lambda k: k.call("GetVideoComponents", video=_loaded_video(k))[4]),
    "FILE_3D_GLB": ("FILE_3D_GLB", lambda k: k.call("MeshToFile3D", mesh=k.mesh())[0]),
    "FILE_3D of a path": ("FILE_3D", lambda k: _viewport(k)[0]),
    "FILE_3D_SPLAT_ANY ply": ("FILE_3D_SPLAT_ANY", lambda k: k.call("SplatToFile3D", splat=k.splat(), format="ply")[0]),
    "FILE_3D_SPLAT_ANY spz": ("FILE_3D_SPLAT_ANY", lambda k: k.call("SplatToFile3D", splat=k.splat(), format="spz")[0]),
    "SPLAT": ("SPLAT", lambda k: k.call("File3DToSplat", model_3d=k.call("SplatToFile3D", splat=k.splat(), format="ply")[0])[0]),
    "MESH": ("MESH", lambda k: k.mesh()),
    "MESH with normals": ("MESH", lambda k: k.call("MeshSmoothNormals", mesh=k.mesh(), crease_angle=180.0)[0]),
    "LOAD3D_CAMERA": ("LOAD3D_CAMERA", lambda k: _viewport(k)[2]),
    "LOAD3D_MODEL_INFO": ("LOAD3D_MODEL_INFO", lambda k: _viewport(k)[1]),
    "CURVE": ("CURVE", lambda k: k.call("CurveEditor", curve={"points": _POINTS, "interpolation": "monotone_cubic"})[0]),
    "CURVE of lines": ("CURVE", lambda k: k.call("CurveEditor", curve={"points": _POINTS, "interpolation": "linear"})[0]),
    "HISTOGRAM": ("HISTOGRAM", lambda k: k.call("ImageHistogram", image=k.image())[1]),
    "TRACKS": ("TRACKS", lambda k: k.call("WanMoveTracksFromCoords", track_coords='[[{"x": 1, "y": 2}, {"x": 3, "y": 5}]]')[0]),
    "LAYERS": ("LAYERS", lambda k: k.call("AddLayer", image=k.image(), mask=k.noise(1, 32, 32), name="sky", opacity=0.5, rotation=12.5)[0]),
    "BOUNDING_BOX": ("BOUNDING_BOX", lambda k: k.call("PrimitiveBoundingBox", **_BOX)[0]),
    "ARRAY": ("ARRAY", lambda k: k.call("CreateBoundingBoxes", width=64, height=64, bboxes=[_BOX])[2]),
    "DICT": ("DICT", lambda k: k.call("BuildJsonPromptIdeogram", element=[{"type": "obj"}], style={"style": "photo", "photo": "35mm"})[0]),
    "COLOR": ("COLOR", lambda k: k.call("ColorToRGBInt", color="#336699aa")[1]),
    "TIMESTEPS_RANGE": ("TIMESTEPS_RANGE", lambda k: k.call("ConditioningTimestepsRange", start_percent=0.25, end_percent=0.75)[1]),
    "STRING": ("STRING", lambda k: k.call("PrimitiveString", value="Yggdrasill ᛦ 🌳\ud83c")[0]),
    "INT": ("INT", lambda k: k.call("PrimitiveInt", value=(1 << 63) - 1)[0]),
    "FLOAT": ("FLOAT", lambda k: k.call("PrimitiveFloat", value=float.fromhex("0x1.fffffffffffffp-1022"))[0]),
    "BOOLEAN": ("BOOLEAN", lambda k: k.call("PrimitiveBoolean", value=True)[0]),
}


def _every_key(factory: ValueFactory) -> Any:
    """Return a CONDITIONING with the keys of many model families."""
    noise, vision = factory.noise, _vision(factory)
    extra = {
        "concat_latent_image": noise(1, 4, 8, 8).half(),
        "concat_mask": noise(1, 1, 8, 8).bfloat16(),
        "guide_attention_entries": [{"pre_filter_count": 3, "strength": 0.5, "pixel_mask": None, "latent_shape": [1, 2, 3]}],
        "attention_mask_img_shape": (8, 8),
        "unclip_conditioning": [{"clip_vision_output": vision, "strength": 1.0, "noise_augmentation": 0.0}],
        "clip_vision_output": vision,
        "keyframe_idxs": None,
        "vace_strength": [1.0, float("nan")],
        "control": None,
        "hooks": None,
        1: "a key that is no text",
    }
    return [[noise(1, 4, 8), extra], [noise(1, 4, 8).to(factory.torch.float8_e4m3fn), {}]]


def _odd_tensors(factory: ValueFactory) -> Any:
    torch = factory.torch
    nan = torch.tensor([0x7FC00001, 0x7F800001, -0x7FFFFF, -0x80000000], dtype=torch.int32).view(torch.float32)
    views = [factory.noise(2, 3, 4).permute(2, 0, 1), factory.noise(1, 4, 4, 4).to(memory_format=torch.channels_last)]
    return {"nan": nan, "views": views, "wide": factory.noise(1, 3).expand(5, 3), "none": torch.empty(0, 4), "one": torch.tensor(1.5)}


def _full_video(factory: ValueFactory) -> Any:
    parts = {
        "images": factory.image(3),
        "audio": {"waveform": factory.noise(1, 2, 100), "sample_rate": 8000},
        "alpha": factory.noise(3, 32, 32),
    }
    components = factory.api.Types.VideoComponents(**parts, frame_rate=Fraction(30000, 1001), metadata={"title": "a", "n": [1, 2]})
    return factory.api.InputImpl.VideoFromComponents(components)


def _video_in_memory(factory: ValueFactory) -> Any:
    stream = BytesIO((factory.folder / "input" / factory.video_file()).read_bytes())
    stream.seek(17)
    return factory.api.InputImpl.VideoFromFile(stream, start_time=0.1, duration=0.2)


def _full_mesh(factory: ValueFactory) -> Any:
    torch, noise = factory.torch, factory.noise
    maps = {"texture": noise(1, 4, 4, 3), "normal_map": noise(1, 4, 4, 3), "uvs": noise(1, 5, 2), "vertex_colors": noise(1, 5, 4)}
    counts = {"vertex_counts": torch.tensor([4]), "face_counts": torch.tensor([2])}
    faces = torch.tensor([[[0, 1, 2], [1, 2, 3]]], dtype=torch.int32)
    return factory.api.Types.MESH(noise(1, 5, 3), faces, **maps, **counts, unlit=True, material={"roughness": 0.4, "alpha": "BLEND"})


def _range(factory: ValueFactory) -> Any:
    cls: Any = importlib.import_module("comfy_api.input").RangeInput
    return cls.from_raw({"min": 0.1, "max": 0.9, "midpoint": 0.4})


def _file_in_a_stream(factory: ValueFactory) -> Any:
    path = factory.folder / "input" / "cloud.ply"
    path.write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    return factory.api.Types.File3D(path.open("rb"), "ply")


BUILT: dict[str, tuple[str, Callable[[ValueFactory], Any]]] = {
    "CONDITIONING with every kind of key": ("CONDITIONING", _every_key),
    "CONDITIONING with all hidden states": (
        "CONDITIONING",
        lambda k: [[k.noise(1, 2, 3), {"pooled_output": None, "x": k.torch.Size([1, 2])}]],
    ),
    "LATENT with free keys": ("LATENT", lambda k: {"samples": k.noise(1, 4, 8), "type": "audio", "mine": {"deep": [(1, 2.5), None, b"x"]}}),
    "odd tensors": ("*", _odd_tensors),
    "VIDEO with all components": ("VIDEO", _full_video),
    "VIDEO from a stream": ("VIDEO", _video_in_memory),
    "SVG": ("SVG", lambda k: k.api.io.SVG.Type([BytesIO(DRAWING), BytesIO(DRAWING * 50)])),
    "VOXEL": ("VOXEL", lambda k: k.voxel()),
    "VOXEL with colours": ("VOXEL", lambda k: k.api.Types.VOXEL(k.noise(4, 3), k.noise(4, 6), 512)),
    "SPLAT with counts": (
        "SPLAT",
        lambda k: k.api.Types.SPLAT(*[k.noise(2, 3, n) for n in (3, 3, 4, 1)], k.noise(2, 3, 1, 3), k.torch.tensor([3, 2])),
    ),
    "MESH with every map": ("MESH", _full_mesh),
    "FILE_3D of an open file": ("FILE_3D_PLY", _file_in_a_stream),
    "RANGE": ("RANGE", _range),
    "LORA_MODEL": ("LORA_MODEL", lambda k: {"a.lora_up.weight": k.torch.nn.Parameter(k.noise(4, 2)).bfloat16().detach()}),
    "LOSS_MAP": ("LOSS_MAP", lambda k: {"loss": [k.torch.tensor(0.5), 0.25]}),
    "MOGE_GEOMETRY": ("MOGE_GEOMETRY", lambda k: {"points": k.noise(1, 4, 4, 3), "mask": k.noise(1, 4, 4) > 0, "image": k.image()}),
    "FACE_LANDMARKS": (
        "FACE_LANDMARKS",
        lambda k: {"frames": [[{"landmarks_xy": k.noise(5, 2).numpy()}]], "connection_sets": {"lips": frozenset({(1, 2)})}},
    ),
    "LOAD_3D": ("LOAD_3D", lambda k: {"image": "a.png", "mask": "b.png", "normal": "c.png", "camera_info": {"zoom": 1}, "recording": ""}),
}
