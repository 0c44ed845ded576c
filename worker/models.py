"""Models of a worker: the files by kind, and what a LoRA file contains and whether ComfyUI would apply it."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import CorruptData, DuplicateName, InvalidArgument, StorageFailed, UnsupportedFormat
from yggdrasill.worker.workspace import Workspace, plain_name

__all__ = ["MODEL_SUFFIXES", "install_lora", "list_models", "lora_facts"]

MODEL_SUFFIXES = frozenset({".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".onnx"})
_MAX_HEADER = 64 << 20
_MAX_LISTED = 5000

#: A naming scheme of LoRA weights: how its keys look, and whether ComfyUI's loader applies them.
_SCHEMES: tuple[tuple[str, re.Pattern[str], bool], ...] = (
    ("kohya", re.compile(r"lora_(unet|te\d?|transformer|prior)_.+\.lora_(down|up)\.weight"), True),
    ("comfy", re.compile(r"(diffusion_model|text_encoders?)\..+\.lora_(A|B|down|up)\.weight"), True),
    ("diffusers-transformer", re.compile(r"transformer\..+\.lora_(A|B)\.weight"), True),
    ("diffusers-unet", re.compile(r"(unet|text_encoder(_2)?)\..+\.lora(_linear_layer)?[._](down|up|A|B)\.weight"), False),
    ("peft", re.compile(r"base_model\.model\..+\.lora_(A|B)\.weight"), False),
)
_WAN_DIFFUSERS = re.compile(r"transformer\.blocks\.\d+\.attn[12]\.to_(q|k|v|out)")


def list_models(models_dir: Path, workspace: Workspace, *, kind: str | None = None) -> dict[str, Any]:
    """Return ``{"models": {kind: [{"name", "size"}]}, "truncated"}`` of ComfyUI's models and those of the workspace.

    A kind is a folder, such as ``checkpoints`` or ``loras``; a name is the path in it, as a loader node has it. Linked models are included.
    """
    found: dict[str, dict[str, int]] = {}
    count = 0
    for base in dict.fromkeys((models_dir, workspace.models)):
        for folder in sorted(path for path in (base.iterdir() if base.is_dir() else ()) if path.is_dir() and not path.name.startswith(".")):
            if kind not in (None, folder.name):
                continue
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in MODEL_SUFFIXES and path.is_file() and count < _MAX_LISTED:
                    found.setdefault(folder.name, {}).setdefault(path.relative_to(folder).as_posix(), path.stat().st_size)
                    count += 1
    models = {name: [{"name": file, "size": size} for file, size in files.items()] for name, files in found.items()}
    return {"models": models, "truncated": count >= _MAX_LISTED}


def lora_facts(path: Path, name: str) -> dict[str, Any]:
    """Return what a LoRA file contains, from its header: ``{"scheme", "modules", "rank", "applies", "metadata"}``.

    ``applies`` is whether ComfyUI's loader knows the names of its weights; with unknown names it loads such a file and changes nothing.

    Raises:
        UnsupportedFormat: not a safetensors file. CorruptData: a damaged one, or one without LoRA weights (code ``not_a_lora``).
    """
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise UnsupportedFormat(
            f"{name!r} is not a safetensors file. Other formats can contain code and are not read.", code="unsupported_format"
        )
    header = _header(path, name)
    keys = [key for key in header if key != "__metadata__"]
    counts = {scheme: sum(pattern.fullmatch(key) is not None for key in keys) for scheme, pattern, _ in _SCHEMES}
    scheme = max(counts, key=lambda each: counts[each])
    if counts[scheme] == 0:
        raise CorruptData(f"{name!r} has no LoRA weights that are known ({len(keys)} tensors).", code="not_a_lora")
    applies = next(known for each, _, known in _SCHEMES if each == scheme)
    if scheme == "diffusers-transformer" and any(_WAN_DIFFUSERS.match(key) for key in keys):
        applies = False
    ranks = sorted({_rank(key, header[key]) for key in keys if re.search(r"lora(_linear_layer)?[._](down|A)\.weight$", key)} - {0})
    metadata = header.get("__metadata__")
    kept = {str(key)[:80]: str(value)[:200] for key, value in metadata.items()} if isinstance(metadata, Mapping) else {}
    return {
        "name": name, "size": path.stat().st_size, "scheme": scheme, "modules": counts[scheme] // 2, "rank": ranks[0] if len(ranks) == 1 else ranks,
        "applies": applies, "metadata": dict(list(kept.items())[:32]),
    }  # fmt: skip


def install_lora(path: Path, loras: Path, name: str, *, replace: bool = False) -> dict[str, Any]:
    """Copy a LoRA into ComfyUI's folder ``loras`` under ``name``, so that loader nodes find it, and return its facts.

    Raises:
        InvalidArgument: ComfyUI would apply none of its weights (code ``lora_applies_nothing``). DuplicateName, StorageFailed; otherwise as
            `lora_facts`.
    """
    target = loras / plain_name(name if name.endswith(".safetensors") else f"{name}.safetensors")
    facts = lora_facts(path, path.name)
    if not facts["applies"]:
        raise InvalidArgument(
            f"ComfyUI would apply none of the weights of {path.name!r}: their names are those of {facts['scheme']}. "
            "Save the LoRA with kohya's or ComfyUI's names.",
            code="lora_applies_nothing",
        )
    if target.exists() and not replace:
        raise DuplicateName(f"The LoRA {target.name!r} exists. Choose another name, or set 'replace'.", code="duplicate_name")
    partial = target.with_name(f".{target.name}.part")
    try:
        loras.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageFailed(
            f"Cannot copy the LoRA {target.name!r}: {error.strerror or error}. Nothing was changed.", path=target.name
        ) from error
    return {**facts, "name": target.name, "installed": True}


def _header(path: Path, name: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            found = json.loads(file.read(size)) if 2 <= size <= _MAX_HEADER else None
    except OSError as error:
        raise StorageFailed(f"Cannot read {name!r}: {error.strerror or error}.", path=name) from error
    except (ValueError, struct.error):
        found = None
    if not isinstance(found, dict):
        raise CorruptData(f"{name!r} has no safetensors header.")
    return found


def _rank(key: str, entry: Any) -> int:
    shape = entry.get("shape") if isinstance(entry, Mapping) else None
    return int(shape[0]) if isinstance(shape, list) and shape and isinstance(shape[0], int) else 0
