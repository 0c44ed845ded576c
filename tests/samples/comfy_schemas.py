"""The node classes of ComfyUI 0.33 from /object_info, reduced to what a `NodeSchema` needs, and the code that recorded them."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from yggdrasill.remote.partition import NodeSchemas

__all__ = ["ASK_AGAIN", "OBJECT_INFO", "comfy_schemas", "reduced"]

OBJECT_INFO = Path(__file__).with_name("comfy_object_info.json")
#: The classes of that version that have a fingerprint; the answer does not tell.
ASK_AGAIN = ("LoadAudio", "LoadImage", "LoadImageMask", "LoadImageOutput", "LoadLatent", "LoadVideo", "Painter", "WebcamCapture")
_OPTIONS = ("lazy", "rawLink", "template", "image_upload", "audio_upload", "video_upload", "file_upload")


@lru_cache(maxsize=1)
def comfy_schemas() -> NodeSchemas:
    """Return the schemas of all node classes of ComfyUI 0.33."""
    return NodeSchemas.from_object_info(json.loads(OBJECT_INFO.read_text(encoding="utf-8")), asks_again=ASK_AGAIN)


def reduced(info: dict[str, Any]) -> dict[str, Any]:
    """Return a response of /object_info without texts, defaults and the options of combos."""
    return {name: _entry(entry) for name, entry in sorted(info.items())}


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "input": _sockets(entry["input"]),
        "output": [kind if isinstance(kind, str) else "COMBO" for kind in entry["output"]],
        "output_is_list": entry["output_is_list"] if any(entry["output_is_list"]) else [],
        "output_matchtypes": entry.get("output_matchtypes"),
        "is_input_list": entry.get("is_input_list"),
        "output_node": entry["output_node"],
    }
    return {key: value for key, value in kept.items() if value or key in ("input", "output")}


def _sockets(sockets: dict[str, Any]) -> dict[str, Any]:
    return {need: {name: _socket(spec) for name, spec in group.items()} for need, group in sockets.items() if group}


def _socket(spec: Any) -> Any:
    if isinstance(spec, str):
        return [spec]
    kind = spec[0] if isinstance(spec[0], str) else "COMBO"
    options = spec[1] if len(spec) > 1 else {}
    kept = {key: options[key] for key in _OPTIONS if options.get(key)}
    if "input" in kept.get("template", {}):
        kept["template"] = {**kept["template"], "input": _sockets(kept["template"]["input"])}
    if kind == "COMFY_DYNAMICCOMBO_V3":
        kept["options"] = [{"key": each["key"], "inputs": _sockets(each.get("inputs") or {})} for each in options["options"]]
    return [kind, kept] if kept else [kind]


if __name__ == "__main__":
    # python -m samples.comfy_schemas ANSWER: record what `curl .../object_info` wrote to the file ANSWER
    answer = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lines = [f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in reduced(answer).items()]
    OBJECT_INFO.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
