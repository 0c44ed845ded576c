"""Writes a clip with sound, ``clip.mp4``: run by ComfyUI's Python with the folder to write to and a seed for the contents."""

from __future__ import annotations

import importlib
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

__all__ = ["main"]

_WIDTH, _HEIGHT, _FRAMES, _RATE = 64, 48, 6, 16000


def main(folder: Path, seed: int) -> None:
    """Write 6 frames of 64x48 pixels at 12 frames per second, and half a second of stereo sound."""
    import numpy as np

    av: Any = importlib.import_module("av")
    chance = np.random.default_rng(seed)
    with av.open(str(folder / "clip.mp4"), "w") as file:
        picture: Any = file.add_stream("h264", rate=Fraction(12, 1))
        picture.width, picture.height, picture.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        sound: Any = file.add_stream("aac", rate=_RATE, layout="stereo")
        for _ in range(_FRAMES):
            pixels = np.full((_HEIGHT, _WIDTH, 3), chance.integers(0, 256, 3, dtype=np.uint8), np.uint8)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(picture.encode())
        samples = (chance.random((1, _RATE)) * 20000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate = _RATE
        file.mux(sound.encode(frame))
        file.mux(sound.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
