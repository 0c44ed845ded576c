"""Files of the servers of the packs suite: the same names on all of them, with other contents on each."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import shutil
import wave
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["content_of", "output_files", "reset_folders", "write_inputs", "write_models"]

_WIDTH, _HEIGHT = 64, 48


def write_inputs(base: Path, seed: int) -> None:
    """Write the input files of a server, except its clip; ``seed`` decides their contents, not their names, sizes or formats."""
    folder, chance = base / "input", random.Random(seed)
    for name in ("a.png", "b.png", "frames/frame_001.png", "frames/frame_002.png", "frames/frame_003.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(chance, "RGBA" if name == "b.png" else "RGB").save(path)
    (folder / "notes.txt").write_text(f"notes of server {seed}\n", encoding="utf-8")
    (folder / "list.csv").write_text(f"name,value\nserver,{seed}\n", encoding="utf-8")
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes(chance.randbytes(4 * 16000))


def _picture(chance: random.Random, mode: str) -> Image.Image:
    picture = Image.frombytes("RGBA", (8, 6), chance.randbytes(8 * 6 * 4)).resize((_WIDTH, _HEIGHT), Image.Resampling.BILINEAR)
    return picture.convert("RGB").convert(mode) if mode != "RGBA" else picture


def write_models(base: Path, seed: int) -> None:
    """Write an embedding, ``word.pt``, and a LoRA for text encoders, ``style.safetensors``, with contents by ``seed``."""
    import torch
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(seed)
    models = base / "models"
    for name in ("embeddings", "loras"):
        (models / name).mkdir(parents=True, exist_ok=True)
    torch.save({"emb_params": torch.randn(2, 768, generator=chance)}, models / "embeddings" / "word.pt")
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = {
        f"{layer}.lora_up.weight": torch.randn(3072, 2, generator=chance),
        f"{layer}.lora_down.weight": torch.randn(2, 768, generator=chance),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    save_file(lora, models / "loras" / "style.safetensors")


def reset_folders(base: Path, seed: int) -> None:
    """Empty the output and temp folders, except for one text in each, and restore the input folder if a file in it was changed."""
    for name in ("output", "temp"):
        folder = base / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "kept.txt").write_text(f"kept in {name} of server {seed}\n", encoding="utf-8")
    kept = base / "kept input"
    if not kept.exists():
        shutil.copytree(base / "input", kept)
    elif _listing(base / "input") != _listing(kept):
        shutil.rmtree(base / "input", ignore_errors=True)
        shutil.copytree(kept, base / "input")


def _listing(folder: Path) -> dict[str, Any]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime, path.stat().st_size) for path in found}


def output_files(base: Path) -> dict[str, str]:
    """Return the files in the output folder by path, with what `content_of` says of each."""
    folder = base / "output"
    return {path.relative_to(folder).as_posix(): content_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def content_of(path: Path) -> str:
    """Return a hash of a file. A PNG counts by its pixels and texts, of the prompt in it only classes and inputs."""
    if not path.is_file():
        return "missing"
    data = path.read_bytes()
    if path.suffix.lower() == ".png":
        data = _png(data)
    return hashlib.sha256(data).hexdigest()[:24]


def _png(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        texts = {key: str(value) for key, value in picture.info.items()}
        if "prompt" in texts:
            prompt = json.loads(texts["prompt"])
            texts["prompt"] = {node: [facts["class_type"], facts["inputs"]] for node, facts in prompt.items()}  # type: ignore[assignment]
        facts = [picture.mode, picture.size, base64.b64encode(picture.tobytes()).decode(), texts]
    return json.dumps(facts, sort_keys=True).encode()
