"""The workflows that the editor ships: their two formats, and the placements of their parts in tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from samples.comfy import ROOT
from samples.comfy_graphs import Prompt, node

__all__ = [
    "CAPTURE",
    "FOLDER",
    "NAMES",
    "PLACES",
    "SERVED",
    "api_form",
    "editor_form",
    "groups_of",
    "in_small",
    "without_notes",
    "write_api_form",
]

FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
CAPTURE = "ConformanceCapture"
#: What endpoints.yaml says under ``graphs`` while a workflow is tested, as its note tells.
PLACES: dict[str, dict[str, str]] = {
    "graph-from-blocks": {"poster": "forge"},
    "latent-and-conditioning": {"Words": "forge", "Sampling": "loom", "Picture": "forge"},
    "pipeline-over-two-servers": {"architect": "forge", "creator": "loom"},
    "remote-upscale-chain": {"enlarge": "forge", "refine": "loom"},
    "serve-refine": {},
    "serve-this-workflow": {},
    "stage": {"imagine": "forge", "creator": "loom"},
    "terrain-world": {"creator": "forge", "philosopher": "loom"},
    "terrain-world-three-servers": {"creator": "forge", "philosopher": "forge", "author": "loom", "environment/world_update": "loom"},
    "two-endpoints-in-parallel": {"Drawing": "forge", "Glow": "loom"},
}
#: The workflows that are served, and under which name.
SERVED = {"serve-this-workflow": "enlarge", "serve-refine": "refine"}
_NOTES = {"MarkdownNote", "Note"}


def editor_form(name: str) -> dict[str, Any]:
    """Return a workflow in the editor's format."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def api_form(name: str) -> Prompt:
    """Return the same workflow as a prompt."""
    found: Prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def write_api_form(name: str, prompt: Prompt) -> Path:
    """Write the editor's conversion of a workflow to a file."""
    path = FOLDER / "api" / f"{name}.json"
    path.write_text(json.dumps(prompt, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def groups_of(workflow: dict[str, Any]) -> dict[str, list[str]]:
    """Return the ids of the nodes in each group, which a prompt does not contain."""
    found = {}
    for group in workflow.get("groups", ()):
        left, top, width, height = group["bounding"]
        centres = {str(each["id"]): [each["pos"][axis] + each["size"][axis] / 2 for axis in (0, 1)] for each in without_notes(workflow)}
        found[group["title"]] = [key for key, (x, y) in centres.items() if left <= x <= left + width and top <= y <= top + height]
    return found


def without_notes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes that run."""
    return [each for each in workflow["nodes"] if each["type"] not in _NOTES]


def in_small(prompt: Prompt) -> Prompt:
    """Return a prompt that is fast enough for tests: the noise model in place of a real one, few steps, and recorded values."""
    small = copy.deepcopy(prompt)
    for each in small.values():
        changes = _SMALL.get(each["class_type"], {})
        each["inputs"].update({name: value for name, value in changes.items() if name in each["inputs"]})
    links = [
        (key, name, value)
        for key, each in small.items()
        if each["class_type"] in _ENDS
        for name, value in each["inputs"].items()
        if isinstance(value, list) and small[value[0]]["class_type"] != "YggdrasillEndpointInfo"
    ]
    links += [(key, "result", [key, 0]) for key, each in small.items() if each["class_type"] == "YggdrasillRunGraph"]
    return small | {f"note-{key}-{name}": node(CAPTURE, value=tuple(link)) for key, name, link in links}


_ENDS = {"PreviewAny", "PreviewImage", "SaveImage", "YggdrasillGraphOutput", "YggdrasillReadState", "YggdrasillSaveWorld"}
_SMALL: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": "tiny.ckpt"},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 3},
    "YggdrasillRunWorld": {"steps": 2, "keep": False},
    "YggdrasillWorld": {"source.size": 64},
}
