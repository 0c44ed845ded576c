"""Input files for a real ComfyUI: run by its Python inside its checkout, with the input folder to write to."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

__all__ = ["main"]

_WIDTH, _HEIGHT = 64, 48


def _picture(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    channels = [x * 4 % 256, y * 5 % 256, (x * y) % 256, np.where((x - 32) ** 2 + (y - 24) ** 2 < 400, 255, x)]
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGBA").save(folder / "picture.png")


def _samples(seconds: float, rate: int) -> Any:
    import numpy as np

    time = np.arange(int(seconds * rate)) / rate
    left, right = np.sin(time * 2 * np.pi * 220), np.sin(time * time * 2 * np.pi * 300) * 0.5
    return (np.stack([left, right]) * 20000).astype(np.int16)


def _sound(folder: Path) -> None:
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(_samples(1.0, 16000).T.tobytes())


def _clip(folder: Path) -> None:
    import numpy as np

    av: Any = importlib.import_module("av")
    with av.open(str(folder / "clip.mp4"), "w") as file:
        picture: Any = file.add_stream("h264", rate=Fraction(24000, 1001))
        picture.width, picture.height, picture.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        sound: Any = file.add_stream("aac", rate=16000, layout="stereo")
        for number in range(12):
            pixels = np.full((_HEIGHT, _WIDTH, 3), number * 20, np.uint8)
            pixels[number : number + 10, 10:30] = (200, 40, 90)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(_samples(0.5, 16000).T.reshape(1, -1)), "s16", "stereo")
        frame.sample_rate = 16000
        file.mux(sound.encode(frame))
        file.mux(sound.encode())


def _latent(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    save_file({"latent_tensor": noise, "latent_format_version_0": torch.tensor([])}, str(folder / "noise.latent"))


def _model(folder: Path) -> None:
    """Return an empty binary glTF."""
    text = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}).encode()
    text += b" " * (-len(text) % 4)
    (folder / "3d").mkdir(exist_ok=True)
    chunk = struct.pack("<I4s", len(text), b"JSON") + text
    (folder / "3d" / "mesh.glb").write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunk)) + chunk)


def main(folder: Path) -> None:
    """Write every file into ``folder``."""
    for make in (_picture, _sound, _clip, _latent, _model):
        make(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
