"""Values for the inputs of node classes: defaults of widgets, sources of common types, and nodes of packs that make the other types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samples.packs.probe import SOURCES

__all__ = ["Unfillable", "Workbench", "add_dumps", "widget_default", "workflow_of"]

Prompt = dict[str, dict[str, Any]]

#: Values of these types are models or belong to one run; no dump asks for them.
UNRECORDED = frozenset(
    "MODEL CLIP VAE CLIP_VISION CONTROL_NET UPSCALE_MODEL FLOW_CONTROL FOREACH_LIST_CONTROL PIPE_LINE BASIC_PIPE".split()
)
_MODELS = frozenset(
    "MODEL CLIP VAE CLIP_VISION CONTROL_NET UPSCALE_MODEL STYLE_MODEL GLIGEN PIPE_LINE BASIC_PIPE LBW_MODEL IPADAPTER IPADAPTER_PIPE "
    "CLIP_VISION_OUTPUT ETN_CONTROL_NET FLOW_CONTROL FOREACH_LIST_CONTROL FACE_ANALYSIS_MODEL FACESWAP_MODEL FACEENHANCE_MODEL "
    "VITMATTE_MODEL REMBG_SESSION CLIP_SEG WHISPER_PIPELINE".split()
)
_NEUTRAL: dict[str, Any] = {"INT": 1, "FLOAT": 1.0, "STRING": "a red fox", "BOOLEAN": True}
_MAX_DEPTH = 2


class Unfillable(Exception):
    """An input for which the suite has no value; the message names its type."""


def widget_default(spec: Any) -> Any:
    """Return the value of a widget as the editor sends it untouched, or None if the input has no widget or no choice."""
    kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else list(options.get("options") or [])
        default = options.get("default")
        return default if default in choices else (choices[0] if choices else None)
    for name in str(kind).split(","):
        if name.split(":")[0] in _NEUTRAL:
            default = options.get("default")
            return _NEUTRAL[name.split(":")[0]] if default is None or isinstance(default, list) else default
    # a colour of a pack's own widget is a text
    return options["default"] if isinstance(options.get("default"), str) else None


@dataclass
class Workbench:
    """The classes of a server, by which prompts are completed."""

    info: Mapping[str, Mapping[str, Any]]
    _makers: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, facts in self.info.items():
            if str(facts["python_module"]).startswith("custom_nodes.") and not facts["output_node"] and not name.startswith("Yggdrasill"):
                for number, kind in enumerate(facts["output"]):
                    if isinstance(kind, str):
                        self._makers.setdefault(kind, []).append((name, number))
        for makers in self._makers.values():
            makers.sort(key=lambda maker: (len(self.info[maker[0]]["input"].get("required", {})), maker[0]))

    def shows(self, class_type: str) -> bool:
        """Return whether nodes of the class are output nodes."""
        return bool(self.info[class_type]["output_node"])

    def required(self, class_type: str) -> dict[str, Any]:
        """Return the specification of each required input."""
        found: dict[str, Any] = dict(self.info[class_type]["input"].get("required", {}))
        return found

    def widgets(self, class_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``given`` with the default of each required widget that it omits."""
        inputs = {}
        for name, spec in self.required(class_type).items():
            if name not in given:
                inputs.update({key: value for key, value in _dynamic(name, spec).items() if key not in given})
        return {**inputs, **given}

    def alone(self, class_type: str) -> Prompt:
        """Return a prompt with node ``1`` of the class, sources for its required inputs, and a dump of each output.

        Raises:
            Unfillable: an input needs a model, a choice from an empty list, or a type that no other class makes.
        """
        prompt: Prompt = {"1": {"class_type": class_type, "inputs": {}}}
        self._fill(prompt, "1", _MAX_DEPTH)
        add_dumps(prompt, self.info, only=["1"])
        return prompt

    def _fill(self, prompt: Prompt, node: str, depth: int) -> None:
        class_type = prompt[node]["class_type"]
        inputs = prompt[node]["inputs"]
        for name, spec in self.required(class_type).items():
            found = _dynamic(name, spec)
            inputs.update(found or {name: self._link(prompt, spec, depth, class_type)})

    def _link(self, prompt: Prompt, spec: Any, depth: int, user: str) -> list[Any]:
        kinds = _kinds(spec)
        for kind in kinds:
            if kind in SOURCES:
                node = f"s{len(prompt)}"
                prompt[node] = {"class_type": "PacksSource", "inputs": {"kind": kind}}
                return [node, 0]
        if depth == 0 or _MODELS.intersection(kinds):
            raise Unfillable(" or ".join(kinds))
        for kind in kinds:
            for maker, output in self._makers.get(kind, []):
                trial = dict(prompt)
                node = f"s{len(trial)}"
                trial[node] = {"class_type": maker, "inputs": {}}
                try:
                    if maker != user:
                        self._fill(trial, node, depth - 1)
                        prompt.update(trial)
                        return [node, output]
                except Unfillable:
                    continue
        raise Unfillable(" or ".join(kinds))


def _kinds(spec: Any) -> list[str]:
    if isinstance(spec[0], list) or spec[0] == "COMBO":
        return ["a choice from an empty list"]
    if spec[0] == "COMFY_MATCHTYPE_V3":
        return str(spec[1]["template"].get("allowed_types") or "*").split(",")
    return str(spec[0]).split(",")


def _dynamic(name: str, spec: Any) -> dict[str, Any]:
    """Return the values of a widget; of one that brings inputs of its own, also theirs."""
    if spec[0] == "COMFY_DYNAMICCOMBO_V3":
        option = spec[1]["options"][0]
        found = {name: option["key"]}
        for inner, inner_spec in option["inputs"].get("required", {}).items():
            found.update(_dynamic(f"{name}.{inner}", inner_spec))
        return found
    if spec[0] == "COMFY_AUTOGROW_V3":
        template = spec[1]["template"]
        names = template.get("names") or [f"{template.get('prefix', '')}{number}" for number in range(9)]
        return {f"{name}.{each}": number + 1 for number, each in enumerate(names[: template.get("min", 1)])}
    value = widget_default(spec)
    return {} if value is None else {name: value}


def add_dumps(prompt: Prompt, info: Mapping[str, Mapping[str, Any]], only: list[str] | None = None) -> None:
    """Add a dump for each output that no node of the prompt uses, except models and flow control."""
    used = {tuple(value) for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list) and len(value) == 2}
    for node in list(only or prompt):
        for number, kind in enumerate(info[prompt[node]["class_type"]]["output"]):
            if (node, number) not in used and str(kind) not in UNRECORDED:
                prompt[f"{1000 + len(prompt)}"] = {"class_type": "PacksDump", "inputs": {"value": [node, number]}}


def workflow_of(prompt: Prompt) -> dict[str, Any]:
    """Return the editor's workflow for a prompt, for nodes that read it."""
    nodes = [
        {
            "id": int(node) if node.isdigit() else 5000 + number,
            "type": facts["class_type"],
            "pos": [number * 300, 0],
            "size": [200, 100],
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [value for value in facts["inputs"].values() if not isinstance(value, list)],
        }
        for number, (node, facts) in enumerate(prompt.items())
    ]
    return {"version": 0.4, "nodes": nodes, "links": [], "groups": [], "extra": {}}
