"""Workflows with sound, video, drawings and 3D objects."""

from __future__ import annotations

from samples.conformance.workflow import Draw, Drawing, Node

__all__ = ["MEDIA"]

_CAMERA = {"target_x": 0.0, "target_y": 0.5, "target_z": 0.0, "roll": 0.0, "fov": 50.0, "zoom": 1.0, "camera_type": "perspective"}
_DRAWN = {
    **{f"draw_{part}": True for part in ("body", "hands", "face", "feet", "head")},
    "stick_width": 2,
    "face_point_size": 1,
    "score_threshold": 0.3,
}
_MOVED = {f"{what}_{axis}": 1.5 for what in ("translate", "rotate", "scale") for axis in "xyz"}
_PLACED = {"position": {"x": 0, "y": 1.5, "z": 0}, "quaternion": {"x": 0, "y": 0, "z": 0, "w": 1}, "scale": {"x": 1, "y": 1, "z": 1}}


def _sound(w: Drawing) -> None:
    loaded = w.node("LoadAudio", audio="sound.wav")
    silence = w.node("EmptyAudio", duration=0.2, sample_rate=16000, channels=2)
    with w.part():
        short = w.node("TrimAudioDuration", audio=loaded, start_index=0.1, duration=0.5)
        long = w.node("AudioConcat", audio1=short, audio2=silence, direction="before")
        loud = w.node("AudioAdjustVolume", audio=long, volume=3)
    w.node("SaveAudio", audio=loud, filename_prefix="audio/sound")
    w.capture(short, loud)


def _channels(w: Drawing) -> None:
    loaded = w.node("LoadAudio", audio="sound.wav")
    with w.part():
        sides = w.node("SplitAudioChannels", audio=loaded)
        merged = w.node("AudioMerge", audio1=sides[0], audio2=sides[1], merge_method="mean")
        swapped = w.node("JoinAudioChannels", audio_left=sides[1], audio_right=sides[0])
        bands = {
            "low_gain_dB": 6.0,
            "low_freq": 100,
            "mid_gain_dB": 0.0,
            "mid_freq": 1000,
            "mid_q": 0.7,
            "high_gain_dB": -3.0,
            "high_freq": 5000,
        }
        bass = w.node("AudioEqualizer3Band", audio=swapped, **bands)
    w.capture(merged, swapped, bass)


def _video_made(w: Drawing) -> None:
    """A video of frames and sound is sent as such."""
    picture = w.node("LoadImage", image="picture.png")
    frames = w.node("ImageAddNoise", image=w.node("RepeatImageBatch", image=picture, amount=6), seed=3, strength=0.2)
    sound = w.node("LoadAudio", audio="sound.wav")
    video = w.node("CreateVideo", images=frames, fps=23.976, audio=sound, bit_depth=10)
    with w.part():
        parts = w.node("GetVideoComponents", video=video)
        again = w.node("CreateVideo", images=w.node("ImageInvert", image=parts[0]), fps=parts[2], audio=parts[1])
    w.capture(video, again, parts[1], parts[2], parts[3], parts[4])


def _video_file(w: Drawing) -> None:
    """A video file is sent as its bytes with its trim."""
    video = w.node("LoadVideo", file="clip.mp4")
    end = w.node("Video Slice", video=video, start_time=-0.2, duration=0.1, strict_duration=False)
    with w.part():
        parts = w.node("GetVideoComponents", video=end)
        start = w.node("Video Slice", video=video, start_time=0.0, duration=0.15, strict_duration=False)
    w.capture(end, start, parts[0], parts[1], parts[2])


def _drawing(w: Drawing) -> None:
    svg = w.node("ConformanceSource", kind="SVG")
    with w.part():
        saved = w.node("SaveSVGNode", svg=svg, filename_prefix="svg/there")
    w.capture(saved)


def _voxels(w: Drawing) -> None:
    voxel = w.node("ConformanceSource", kind="VOXEL")
    with w.part():
        mesh = w.node("VoxelToMesh", voxel=voxel, algorithm="surface net", threshold=0.2)
        smooth = w.node("MeshSmoothNormals", mesh=mesh, crease_angle=120.0)
        file = w.node("MeshToFile3D", mesh=smooth)
    w.node("SaveGLB", mesh=file, filename_prefix="3d/mesh")
    w.capture(voxel, mesh, smooth, file)


def _meshes(w: Drawing) -> None:
    """A mesh made locally, repaired and painted remotely."""
    mesh = w.node("VoxelToMeshBasic", voxel=w.node("ConformanceSource", kind="VOXEL"), threshold=0.2)
    camera = w.node("CreateCameraInfo", mode="orbit", **{"mode.yaw": 30.0, "mode.pitch": 10.0, "mode.distance": 3.0}, **_CAMERA)
    with w.part():
        welded = w.node("WeldVertices", mesh=mesh, epsilon_rel=1e-5, epsilon_abs=0.0)
        seen = w.node("RenderMesh", mesh=welded, mode="normal", width=64, height=64, background="#203040", camera_info=camera)
    w.capture(welded, seen[0], seen[1], camera)


def _model_file(w: Drawing) -> None:
    """A 3D file with its position and camera."""
    info = {"camera_info": {"position": {"x": 1.0, "y": 2.0, "z": 3.0}, "zoom": 1}, "model_3d_info": [_PLACED]}
    loaded = w.node("Load3DAdvanced", model_file="3d/mesh.glb", viewport_state=info, width=64, height=48)
    with w.part():
        shown = w.node(
            "Preview3DAdvanced",
            model_3d=loaded[0],
            viewport_state=info,
            width=64,
            height=48,
            model_3d_info=loaded[1],
            camera_info=loaded[2],
        )
    w.capture(loaded[0], shown[0], shown[1], shown[2], shown[3])


def _splats(w: Drawing) -> None:
    splat = w.node("ConformanceSource", kind="SPLAT")
    ply = w.node("SplatToFile3D", splat=splat, format="ply")
    with w.part():
        read = w.node("File3DToSplat", model_3d=ply)
        moved = w.node("TransformSplat", splat=read, **_MOVED)
        both = w.node("MergeSplat", **{"splats.splat0": splat, "splats.splat1": moved})
        count = w.node("GetSplatCount", splat=both)
        spz = w.node("SplatToFile3D", splat=both, format="spz")
    w.capture(read, both, count[1], spz)


def _tracks(w: Drawing) -> None:
    made = w.node("WanMoveTracksFromCoords", track_coords='[[{"x": 1, "y": 2}, {"x": 30, "y": 25}], [{"x": 9, "y": 9}, {"x": 4, "y": 20}]]')
    picture = w.node("LoadImage", image="picture.png")
    with w.part():
        joined = w.node("WanMoveConcatTrack", tracks_1=made[0], tracks_2=made[0])
        shown = w.node(
            "WanMoveVisualizeTracks", images=picture, line_resolution=4, circle_size=3, opacity=0.75, line_width=2, tracks=joined
        )
    w.capture(joined, shown, made[1])


def _boxes(w: Drawing) -> None:
    box = w.node("PrimitiveBoundingBox", x=4, y=5, width=20, height=12)
    picture = w.node("LoadImage", image="picture.png")
    listed = w.node("CreateBoundingBoxes", width=64, height=64, editor_state={"__value__": []}, bboxes=box)
    with w.part():
        cut = w.node("ImageCropV2", image=picture, crop_region=box)
        drawn = w.node("DrawBBoxes", bboxes=listed[1], image=picture)
        told = w.node("ConvertArrayToString", array=listed[2], indent=2)
    w.capture(box, listed[1], listed[2], cut, drawn, told)


def _sources(kind: str, class_type: str, **inputs: object) -> Draw:
    """Return a value whose node needs weights, and the ComfyUI node that reads it."""

    def draw(w: Drawing) -> None:
        value = w.node("ConformanceSource", kind=kind)
        with w.part():
            name = str(inputs["port"])
            read: Node = w.node(class_type, **{name: value}, **{key: item for key, item in inputs.items() if key != "port"})
            same = w.node("ComfySwitchNode", switch=True, on_false=value, on_true=value)
        w.capture(read, same)

    return draw


def _cloud(w: Drawing) -> None:
    """A point cloud that is saved remotely and returned."""
    ply = w.node("SplatToFile3D", splat=w.node("ConformanceSource", kind="SPLAT"), format="ply")
    view = {"camera_info": {"position": {"x": 1.0, "y": 2.0, "z": 3.0}, "zoom": 1}, "model_3d_info": [_PLACED]}
    with w.part():
        saved = w.node(
            "SavePointCloud",
            model_3d=w.node("ConformanceSource", kind="FILE_3D_PLY"),
            viewport_state=view,
            width=64,
            height=64,
            filename_prefix="3d/cloud",
        )
    again = w.node("PreviewPointCloud", model_3d=saved[0], viewport_state=view, width=64, height=64)
    with w.part():
        back = w.node("ComfySwitchNode", switch=True, on_false=again, on_true=again)
    w.capture(saved, back, ply)


MEDIA: dict[str, Draw] = {
    "sound cut, joined and saved": _sound,
    "sound by its channels": _channels,
    "a video of frames and sound": _video_made,
    "a video that is a file": _video_file,
    "a drawing": _drawing,
    "voxels, a mesh and its file": _voxels,
    "a mesh mended and seen": _meshes,
    "a file of a model and its camera": _model_file,
    "splats": _splats,
    "a cloud of points": _cloud,
    "tracks": _tracks,
    "boxes": _boxes,
    "geometry of MoGe": _sources("MOGE_GEOMETRY", "MoGeRender", port="moge_geometry", output="depth_colored"),
    "geometry of Depth Anything": _sources(
        "DA3_GEOMETRY",
        "DA3Render",
        port="da3_geometry",
        output="depth",
        **{"output.normalization": "min_max", "output.apply_sky_clip": False},
    ),
    "faces": _sources("FACE_LANDMARKS", "MediaPipeFaceMask", port="face_landmarks", regions="all"),
    "poses": _sources("POSE_KEYPOINT", "SDPoseDrawKeypoints", port="keypoints", **_DRAWN),
    "tracked masks": _sources("SAM3_TRACK_DATA", "SAM3_TrackToMask", port="track_data", object_indices="0,2"),
}
