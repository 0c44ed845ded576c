# mypy: ignore-errors
# ruff: noqa: N802, T201
"""Node classes for ComfyUI that make every kind of output, take time, fail, and end the process."""

import os
import time
import wave
from pathlib import Path

import comfy.utils
import folder_paths
from PIL import Image

__all__ = ["NODE_CLASS_MAPPINGS"]


class _Node:
    FUNCTION = "act"
    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True


class EveryKind(_Node):
    """Saves a file of each kind, each reported under the key that its usual nodes use."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"prefix": ("STRING", {"default": "kind"})}}

    def act(self, prefix):
        folder = Path(folder_paths.get_output_directory()) / "kinds"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / f"{prefix}.png")
        with wave.open(str(folder / f"{prefix}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(200))
        (folder / f"{prefix}.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(64))
        (folder / f"{prefix}.glb").write_bytes(b"glTF" + bytes(20))
        keys = {"images": "png", "audio": "wav", "gifs": "mp4", "3d": "glb"}
        found = {key: [{"filename": f"{prefix}.{suffix}", "subfolder": "kinds", "type": "output"}] for key, suffix in keys.items()}
        lost = [
            {"filename": "never.png", "subfolder": "", "type": "output"},
            {"filename": "passwd", "subfolder": "../../../../../../etc", "type": "output"},
        ]
        return {"ui": {**found, "text": [f"words of {prefix}"], "animated": (True,), "lost": lost}}


class LargeFile(_Node):
    """Saves a file of a given size."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"nbytes": ("INT", {"default": 1000, "max": 1 << 30})}}

    def act(self, nbytes):
        (Path(folder_paths.get_output_directory()) / "large.bin").write_bytes(bytes(nbytes))
        return {"ui": {"files": [{"filename": "large.bin", "subfolder": "", "type": "output"}]}}


class Wait(_Node):
    """Reports progress with previews for a number of seconds, and writes a file when it is not interrupted."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 1000.0}), "mark": ("STRING", {"default": ""})}}

    def act(self, seconds, mark):
        steps = max(1, int(seconds * 10))
        bar = comfy.utils.ProgressBar(steps)
        if mark:
            Path(mark).write_text("begun", encoding="utf-8")
        for step in range(steps):
            time.sleep(0.1)
            bar.update_absolute(step + 1, steps, ("JPEG", Image.new("RGB", (64, 64), (step % 256, 0, 0)), 64))
        if mark:
            Path(mark).write_text("ended", encoding="utf-8")
        return {"ui": {"text": ["waited"]}}


class Crash(_Node):
    """Ends the process."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"code": ("INT", {"default": 7})}}

    @classmethod
    def IS_CHANGED(cls, code):
        return float("nan")

    def act(self, code):
        print("the last words of this ComfyUI", flush=True)
        os._exit(code)


class Broken(_Node):
    """Raises an exception whose message has a path of the server."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"message": ("STRING", {"default": "broken"})}}

    def act(self, message):
        raise RuntimeError(f"{message} {__file__} {os.environ.get('RUNPOD_AI_API_KEY')}")


NODE_CLASS_MAPPINGS = {f"WorkerTest{cls.__name__}": cls for cls in (EveryKind, LargeFile, Wait, Crash, Broken)}
